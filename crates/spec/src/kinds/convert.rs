//! `convert`: weights from elsewhere, checked and brought into the store.

use super::training::config;
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Port, StoreDtype};

config! {
    /// Reads a Hugging Face directory, or a distributed checkpoint of PyTorch (`.metadata` and
    /// `.distcp` files), checks every tensor against its family, and writes a Hugging Face one.
    pub struct Convert {
        /// Precision of the tensors written.
        pub dtype: StoreDtype = StoreDtype::Keep,
        /// What stands before the Hugging Face names of a distributed checkpoint's tensors, such as
        /// "model."; found when left out, unless the checkpoint has several models.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub prefix: Option<String> = None,
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
    inputs: &[
        Port::one(
            "model",
            ArtifactKind::Weights,
            "a Hugging Face model directory, or a distributed checkpoint of PyTorch",
        ),
        Port::one(
            "config",
            ArtifactKind::Weights,
            "where config.json and the tokenizer are, if not beside the weights",
        )
        .optional(),
    ],
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
