//! `export`: a directory that Hugging Face loads, with a model card that says how it was made.

use super::training::config;
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Port, StoreDtype, check};

config! {
    /// Writes weights, tokenizer, generation config and model card.
    pub struct Export {
        /// Precision of the tensors written.
        pub dtype: StoreDtype = StoreDtype::Keep,
        /// Largest safetensors file in bytes before the weights are split.
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
