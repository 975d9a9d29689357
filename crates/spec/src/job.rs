//! The contract between `recipe` and `recipe-worker`: a [`JobSpec`] as JSON in, [`Event`]s as JSON
//! lines out, an exit code at the end.
//!
//! `recipe-worker run --job job.json`, one process per rank; the rank comes from `RANK`,
//! `LOCAL_RANK`, `WORLD_SIZE`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT`. Rank 0 prints
//! events on stdout, the other ranks only `failed`; logs go to stderr. SIGTERM asks for a
//! checkpoint and then exit code 75.

use crate::{ArtifactKind, FailureClass, Resources};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Version of [`JobSpec`] and [`Event`]: a worker refuses another one.
pub const VERSION: u32 = 1;

/// Exit codes of the worker.
pub mod exit {
    pub const OK: i32 = 0;
    pub const FAILED: i32 = 1;
    /// The configuration or the data is wrong; a retry would fail alike.
    pub const CONFIG: i32 = 2;
    /// Infrastructure; worth a retry.
    pub const INFRA: i32 = 4;
    /// What was read is not what the store says it is.
    pub const INTEGRITY: i32 = 5;
    /// Stopped on request, with a checkpoint.
    pub const STOPPED: i32 = 75;
}

/// Everything a rank needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    pub version: u32,
    /// Name of the stage kind.
    pub kind: String,
    /// The stage's name in the recipe, for messages.
    pub stage: String,
    pub key: String,
    pub attempt: u32,
    /// Canonical configuration; read it with [`crate::kinds::from_value`].
    pub with: Value,
    /// Local copies of the inputs; read-only.
    pub inputs: BTreeMap<String, Vec<InputSpec>>,
    /// Empty directories to fill, by output name.
    pub outputs: BTreeMap<String, PathBuf>,
    pub resources: Resources,
    pub checkpoint: crate::Checkpoint,
    /// What readers choose a step by: a checkpoint of the best so far is kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watch: Vec<crate::BestStep>,
    /// Where to go on from, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<ResumeSpec>,
    /// URL of the store, for committing checkpoints.
    pub store: String,
    /// `cpu` or `cuda`.
    pub device: String,
    /// The attempt's own directory, for temporary files.
    pub scratch: PathBuf,
    /// Steps to record, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<ProfileSpec>,
    pub provenance: Provenance,
}

/// One artifact or source on local disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    pub path: PathBuf,
    /// Content digest, 64 hex digits.
    pub digest: String,
    pub artifact: ArtifactKind,
    /// The reference as the recipe has it (`sft.model`), for messages.
    pub source: String,
}

/// A checkpoint on local disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeSpec {
    pub step: u64,
    pub path: PathBuf,
}

/// Steps of which every rank writes a trace, `rank<r>.json`, below `dir`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    pub steps: StepRange,
    pub dir: PathBuf,
}

/// Steps from `first` to `last`, both of them among them; the first of a stage is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepRange {
    pub first: u64,
    pub last: u64,
}

impl StepRange {
    pub fn contains(self, step: u64) -> bool {
        (self.first..=self.last).contains(&step)
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

impl FromStr for StepRange {
    type Err = String;

    /// Reads `A..B`.
    fn from_str(text: &str) -> Result<StepRange, String> {
        let number = |part: &str| match part.parse::<u64>() {
            Ok(0) => Err("steps are counted from 1".to_owned()),
            Ok(step) => Ok(step),
            Err(_) => Err(format!("'{part}' is no step")),
        };
        let Some((first, last)) = text.split_once("..") else {
            return Err("give the first and the last step, as in 10..12".into());
        };
        let (first, last) = (number(first)?, number(last)?);
        match first <= last {
            true => Ok(StepRange { first, last }),
            false => Err(format!(
                "it ends before it begins: did you mean {last}..{first}?"
            )),
        }
    }
}

/// Who asked; for logs only, never for what is written to an output, which is content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    pub recipe: String,
    pub run: String,
}

/// One line on the worker's stdout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// First line. `numerics`: device, instruction set, libtorch, mesh, threads, microbatch, kernels.
    Started {
        version: u32,
        device: String,
        numerics: Map<String, Value>,
    },
    /// `total` is 0 where it is not known.
    Progress {
        step: u64,
        total: u64,
    },
    /// Metrics of one step, by the names users know (`train/loss`).
    /// A value that is no finite number is null.
    Metrics {
        step: u64,
        #[serde(deserialize_with = "numbers")]
        metrics: BTreeMap<String, f64>,
    },
    /// A checkpoint was committed.
    Checkpoint {
        step: u64,
    },
    /// Went on from a checkpoint.
    Resumed {
        step: u64,
    },
    Message {
        level: Level,
        text: String,
    },
    /// Last line of a stage that succeeded: its summary metrics.
    Finished {
        #[serde(deserialize_with = "numbers")]
        metrics: BTreeMap<String, f64>,
    },
    /// Last line of a stage that failed.
    Failed {
        class: FailureClass,
        code: String,
        message: String,
        help: String,
    },
    /// Last line of a stage that was asked to stop; a checkpoint of `step` exists.
    Stopped {
        step: u64,
    },
}

/// How much a message matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Info,
    Warning,
}

/// Reads metrics: null, which JSON has for what is no finite number, is NaN.
pub fn numbers<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, f64>, D::Error> {
    let read = BTreeMap::<String, Option<f64>>::deserialize(from)?;
    let number = |(name, value): (String, Option<f64>)| (name, value.unwrap_or(f64::NAN));
    Ok(read.into_iter().map(number).collect())
}
