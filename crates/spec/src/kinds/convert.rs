//! `convert`: weights from elsewhere, checked and brought into the store.

use super::training::config;
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Port, StoreDtype};

config! {
    /// Reads a Hugging Face directory, checks every tensor against its family, and writes it.
    pub struct Convert {
        /// Precision of the tensors written.
        pub dtype: StoreDtype = StoreDtype::Keep,
    }
}

impl Config for Convert {
    fn finish(&mut self) -> Result<(), Invalid> {
        Ok(())
    }
}

pub const KIND: Kind = Kind {
    name: "convert",
    version: 1,
    doc: "check and bring in weights",
    inputs: &[Port::one(
        "model",
        ArtifactKind::Weights,
        "a Hugging Face model directory",
    )],
    outputs: &[Port::one(
        "model",
        ArtifactKind::Weights,
        "the same model, checked",
    )],
    open_inputs: false,
    trainer: true,
    accelerated: false,
    checkpoints: false,
    config: Functions::of::<Convert>(),
};
