//! The stage kinds: one slice, [`KINDS`], from which the parser, `recipe schema`, help and docs
//! derive. A kind is one file here (its configuration) and one file in `stages` (what it runs).
//!
//! A configuration's serialised form is the identity that enters the key. A field added after a
//! kind's first release must carry a neutral default and
//! `#[serde(skip_serializing_if = ..)]` for that default, so that old results keep their keys.

pub mod command;
mod common;
pub mod convert;
pub mod dpo;
pub mod evaluate;
pub mod export;
pub mod generate;
pub mod grpo;
pub mod init;
pub mod score;
pub mod sft;
mod training;

pub use common::{Dtype, EnvironmentChoice, Environments, Overlong, StoreDtype, TrainOn};
pub use training::{Length, Optimizer, Schedule, Training};

use crate::read;
use crate::tree::Node;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an artifact is, as far as inputs and outputs are checked before anything runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A Hugging Face style model directory.
    Weights,
    /// JSON lines or Parquet: a file or a directory of them.
    Dataset,
    /// Metrics as `report.json`.
    Report,
    /// Anything else; as an input it accepts every artifact, and a source of unknown content is
    /// accepted everywhere.
    Files,
}

impl ArtifactKind {
    /// The word used in messages and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Dataset => "dataset",
            Self::Report => "report",
            Self::Files => "files",
        }
    }

    /// Whether an artifact of kind `given` may be used where `self` is wanted.
    pub fn accepts(self, given: Self) -> bool {
        self == given || self == Self::Files || given == Self::Files
    }
}

/// A named input or output of a stage kind.
#[derive(Debug)]
pub struct Port {
    pub name: &'static str,
    pub artifact: ArtifactKind,
    /// Inputs only: the stage is refused without it.
    pub required: bool,
    /// Inputs only: a list of references is accepted.
    pub many: bool,
    pub doc: &'static str,
}

impl Port {
    const fn one(name: &'static str, artifact: ArtifactKind, doc: &'static str) -> Self {
        Self {
            name,
            artifact,
            required: true,
            many: false,
            doc,
        }
    }
    const fn many(name: &'static str, artifact: ArtifactKind, doc: &'static str) -> Self {
        Self {
            name,
            artifact,
            required: true,
            many: true,
            doc,
        }
    }
    const fn optional(self) -> Self {
        Self {
            required: false,
            ..self
        }
    }
}

/// A stage kind: what the recipe may say about it, and what enters its key.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    /// Part of the key; raised when the meaning of a configuration changes.
    pub version: u32,
    pub doc: &'static str,
    pub inputs: &'static [Port],
    /// Empty for `command`, whose outputs are named in its configuration.
    pub outputs: &'static [Port],
    /// Inputs of any name are accepted (`command`).
    pub open_inputs: bool,
    /// Run by `recipe-worker`, so that the trainer's identity is part of the key. `command` stages
    /// are plain processes that the runner starts itself.
    pub trainer: bool,
    /// Uses the accelerator where there is one, and may run on several ranks.
    pub accelerated: bool,
    /// Takes checkpoints, so that `checkpoint` and resuming apply.
    pub checkpoints: bool,
    config: Functions,
}

/// A canonical configuration, and the outputs that it declares.
type Typed = (Value, Vec<String>);

/// The typed side of a kind, behind function pointers so that kinds fit in one slice.
#[derive(Debug)]
struct Functions {
    read: fn(&Node) -> Result<Typed, read::Error>,
    check_inputs: fn(&Value, &[&str]) -> Result<(), Invalid>,
    schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
    defaults: fn() -> Value,
    refuses: fn(&Value) -> Option<Invalid>,
}

impl Functions {
    const fn of<C: Config>() -> Self {
        Self {
            read: |node| {
                let mut config: C = read::from_node(node)?;
                config.finish().map_err(read::Error::Invalid)?;
                Ok((to_value(&config), config.outputs()))
            },
            check_inputs: |value, inputs| from_value::<C>(value)?.check_inputs(inputs),
            schema: |generator| generator.subschema_for::<C>(),
            defaults: || to_value(&C::default()),
            refuses: |value| from_value::<C>(value).err(),
        }
    }
}

impl Kind {
    /// Reads a `with` table into the canonical configuration; also the outputs of a stage that has it.
    pub(crate) fn read(&self, with: &Node) -> Result<(Value, Vec<crate::Output>), read::Error> {
        let (config, declared) = (self.config.read)(with)?;
        let fixed = self.outputs.iter().map(|p| crate::Output {
            name: p.name.to_owned(),
            artifact: p.artifact,
        });
        let declared = declared.into_iter().map(|name| crate::Output {
            name,
            artifact: ArtifactKind::Files,
        });
        Ok((config, fixed.chain(declared).collect()))
    }

    /// Checks what depends on which inputs are given.
    pub fn check_inputs(&self, with: &Value, inputs: &[&str]) -> Result<(), Invalid> {
        (self.config.check_inputs)(with, inputs)
    }

    /// JSON Schema of `with`.
    pub fn schema(&self, generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        (self.config.schema)(generator)
    }

    /// The configuration that an empty `with` stands for, before required fields are checked.
    pub fn defaults(&self) -> Value {
        (self.config.defaults)()
    }

    /// What is wrong with a configuration, if anything.
    pub(crate) fn refuses(&self, with: &Value) -> Option<Invalid> {
        (self.config.refuses)(with)
    }

    /// `name@version`, as it stands in preimages.
    pub fn versioned(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// Every stage kind.
pub static KINDS: &[Kind] = &[
    init::KIND,
    convert::KIND,
    sft::KIND,
    dpo::KIND,
    grpo::KIND,
    score::KIND,
    generate::KIND,
    evaluate::KIND,
    export::KIND,
    command::KIND,
];

/// The kind of this name.
pub fn kind(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|k| k.name == name)
}

/// A `with` table. Implemented by each kind's configuration struct.
pub trait Config: Serialize + DeserializeOwned + JsonSchema + Default {
    /// Fills in what follows from other fields and refuses values out of range. Idempotent: a
    /// finished configuration is unchanged, so the worker may call it on what it is handed.
    fn finish(&mut self) -> Result<(), Invalid>;

    /// Refuses combinations with the stage's inputs, by their names.
    fn check_inputs(&self, inputs: &[&str]) -> Result<(), Invalid> {
        let _ = inputs;
        Ok(())
    }

    /// Outputs that the configuration declares beyond the kind's own.
    fn outputs(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A value that a configuration refuses.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// Path below `with`, such as `lr` or `environment[1].weight`.
    pub field: String,
    pub message: String,
    pub help: String,
    pub code: &'static str,
}

impl Invalid {
    /// A value out of its range.
    pub fn range(field: &str, value: impl std::fmt::Display, wanted: &str) -> Self {
        Self {
            field: field.to_owned(),
            message: format!("'{field}' is {value}"),
            help: format!("it must be {wanted}"),
            code: crate::codes::RANGE,
        }
    }

    /// A required field that is not there.
    pub fn missing(field: &str, help: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            message: format!("'{field}' is missing"),
            help: help.into(),
            code: crate::codes::MISSING,
        }
    }

    /// Fields that do not go together.
    pub fn conflict(field: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            field: field.to_owned(),
            message: message.into(),
            help: help.into(),
            code: crate::codes::CONFLICT,
        }
    }
}

/// Reads a canonical configuration, as the worker does with [`crate::JobSpec::with`].
pub fn from_value<C: Config>(with: &Value) -> Result<C, Invalid> {
    let mut config = C::deserialize(with).map_err(|e| Invalid {
        field: String::new(),
        message: format!("the configuration does not fit this version of the stage kind: {e}"),
        help: "use the `recipe` and `recipe-worker` of the same build".to_owned(),
        code: crate::codes::TYPE,
    })?;
    config.finish()?;
    Ok(config)
}

fn to_value<C: Config>(config: &C) -> Value {
    serde_json::to_value(config).expect("configuration structs hold only what JSON holds")
}

/// Shared range checks, each naming field and value.
pub(crate) mod check {
    use super::Invalid;

    pub fn positive(field: &str, value: f64) -> Result<(), Invalid> {
        if value.is_finite() && value > 0.0 {
            Ok(())
        } else {
            Err(Invalid::range(field, value, "a number above 0"))
        }
    }
    pub fn not_negative(field: &str, value: f64) -> Result<(), Invalid> {
        if value.is_finite() && value >= 0.0 {
            Ok(())
        } else {
            Err(Invalid::range(field, value, "0 or more"))
        }
    }
    /// Closed on the left, open on the right.
    pub fn fraction(field: &str, value: f64) -> Result<(), Invalid> {
        if (0.0..1.0).contains(&value) {
            Ok(())
        } else {
            Err(Invalid::range(field, value, "at least 0 and below 1"))
        }
    }
    pub fn at_least(field: &str, value: u64, least: u64) -> Result<(), Invalid> {
        if value >= least {
            Ok(())
        } else {
            Err(Invalid::range(field, value, &format!("{least} or more")))
        }
    }
    /// Sampling settings shared by `generate`, `evaluate` and `grpo`.
    pub fn sampling(max_tokens: u64, temperature: f64, top_p: f64) -> Result<(), Invalid> {
        at_least("max_tokens", max_tokens, 1)?;
        not_negative("temperature", temperature)?;
        if top_p > 0.0 && top_p <= 1.0 {
            Ok(())
        } else {
            Err(Invalid::range("top_p", top_p, "above 0 and at most 1"))
        }
    }
}
