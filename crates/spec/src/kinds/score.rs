//! `score`: per-token log-probabilities of given sequences.

use super::training::config;
use super::{ArtifactKind, Config, Dtype, Functions, Invalid, Kind, Overlong, Port};

config! {
    /// Writes one line per row, in order; see DESIGN section 4 for the shapes.
    pub struct Score {
        /// Compute precision.
        pub dtype: Dtype = Dtype::Fp32,
        /// Longest sequence in tokens; 0 is the model's own limit. Set it as in the `dpo` stage
        /// that reads the result, so that both see the same tokens.
        pub max_length: u64 = 0,
        /// What happens to a longer row when `max_length` is set; beyond the model's limit it is an error.
        pub overlong: Overlong = Overlong::Truncate,
    }
}

impl Config for Score {
    fn finish(&mut self) -> Result<(), Invalid> {
        if self.max_length == 1 {
            return Err(Invalid::range(
                "max_length",
                self.max_length,
                "0 (the model's own limit) or 2 and more",
            ));
        }
        Ok(())
    }
}

pub const KIND: Kind = Kind {
    name: "score",
    version: 1,
    doc: "per-token log-probabilities",
    inputs: &[
        Port::one("model", ArtifactKind::Weights, "the model that scores"),
        Port::many(
            "data",
            ArtifactKind::Dataset,
            "rows of tokens, prompt/completion, messages or preferences",
        ),
    ],
    outputs: &[Port::one(
        "logprobs",
        ArtifactKind::Dataset,
        "tokens and log-probabilities per row",
    )],
    open_inputs: false,
    trainer: true,
    accelerated: true,
    checkpoints: false,
    config: Functions::of::<Score>(),
};
