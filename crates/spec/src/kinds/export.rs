//! `export`: a directory that Hugging Face loads, with a model card that says how it was made.

use super::training::config;
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Port, StoreDtype, check};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files in which weights are exported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// Safetensors, as Hugging Face has them.
    #[default]
    Safetensors,
    /// A distributed checkpoint of PyTorch (`.metadata` and `.distcp` files), which
    /// `torch.distributed.checkpoint.load` reads into a state dictionary of any sharding.
    Dcp,
}

impl ExportFormat {
    // the field came after the first release: a default that is left out keeps old keys
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

config! {
    /// Writes weights, tokenizer, generation config and model card.
    pub struct Export {
        /// Precision of the tensors written.
        pub dtype: StoreDtype = StoreDtype::Keep,
        /// Files in which the weights are written.
        #[serde(skip_serializing_if = "ExportFormat::is_default")]
        pub format: ExportFormat = ExportFormat::Safetensors,
        /// Largest weights file in bytes before the weights are split.
        pub max_shard_bytes: u64 = 5_000_000_000,
        /// Title of the model card.
        pub title: String = "Model card".to_owned(),
    }
}

impl Config for Export {
    fn finish(&mut self) -> Result<(), Invalid> {
        check::at_least("max_shard_bytes", self.max_shard_bytes, 1)
    }
}

pub const KIND: Kind = Kind {
    name: "export",
    version: 1,
    doc: "a model directory for Hugging Face",
    inputs: &[
        Port::one("model", ArtifactKind::Weights, "the model to export"),
        Port::many(
            "report",
            ArtifactKind::Report,
            "evaluation reports for the model card",
        )
        .optional(),
    ],
    outputs: &[Port::one(
        "model",
        ArtifactKind::Weights,
        "the exported directory",
    )],
    open_inputs: false,
    trainer: true,
    accelerated: false,
    checkpoints: false,
    config: Functions::of::<Export>(),
};
