//! `generate`: completions of given prompts.

use super::training::config;
use super::{ArtifactKind, Config, Dtype, Functions, Invalid, Kind, Port, check};

config! {
    /// Samples `n` completions per prompt; each depends on its own seed only.
    pub struct Generate {
        /// Longest completion in tokens.
        pub max_tokens: u64 = 256,
        /// Sampling temperature; 0 is greedy.
        pub temperature: f64 = 1.0,
        /// Nucleus sampling; 1 is off.
        pub top_p: f64 = 1.0,
        /// Samples among the k most likely tokens; 0 is off.
        pub top_k: u64 = 0,
        /// Completions per prompt.
        pub n: u64 = 1,
        /// Strings that end a completion.
        pub stop: Vec<String> = Vec::new(),
        /// Go on after the end token, up to `max_tokens`.
        pub ignore_eos: bool = false,
        /// Seed of every draw.
        pub seed: u64 = 0,
        /// Compute precision.
        pub dtype: Dtype = Dtype::Fp32,
    }
}

impl Config for Generate {
    fn finish(&mut self) -> Result<(), Invalid> {
        check::sampling(self.max_tokens, self.temperature, self.top_p)?;
        check::at_least("n", self.n, 1)
    }
}

pub const KIND: Kind = Kind {
    name: "generate",
    version: 1,
    doc: "completions of prompts",
    inputs: &[
        Port::one("model", ArtifactKind::Weights, "the model that generates"),
        Port::many(
            "prompts",
            ArtifactKind::Dataset,
            "rows of prompt, tokens or messages",
        ),
    ],
    outputs: &[Port::one(
        "completions",
        ArtifactKind::Dataset,
        "one line per completion",
    )],
    open_inputs: false,
    trainer: true,
    accelerated: true,
    checkpoints: false,
    config: Functions::of::<Generate>(),
};
