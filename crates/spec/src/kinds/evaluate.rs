//! `evaluate`: metrics of a model on environments or held-out data.

use super::training::config;
use super::{ArtifactKind, Config, Dtype, Environments, Functions, Invalid, Kind, Port, check};

config! {
    /// Accuracy, pass@k, cons@k per task where there is an environment; perplexity (and, on
    /// preference rows, preference accuracy) of `data` otherwise.
    pub struct Evaluate {
        /// Where tasks and grades come from: a name, or a weighted list with options.
        pub environment: Environments = Environments::default(),
        /// Tasks to grade, or rows to score; 0 takes all rows of `data`.
        pub examples: u64 = 256,
        /// Completions per task.
        pub samples: u64 = 1,
        /// The k of pass@k and cons@k; each at most `samples`.
        pub k: Vec<u64> = vec![1],
        /// Longest completion of one turn in tokens; all turns together end at the model's context.
        pub max_tokens: u64 = 256,
        /// Sampling temperature; 0 is greedy.
        pub temperature: f64 = 0.0,
        /// Nucleus sampling; 1 is off.
        pub top_p: f64 = 1.0,
        /// Samples among the k most likely tokens; 0 is off.
        pub top_k: u64 = 0,
        /// Strings that end a completion.
        pub stop: Vec<String> = Vec::new(),
        /// Longest row in tokens for perplexity; 0 is the model's own limit.
        pub max_length: u64 = 0,
        /// Seed of every draw.
        pub seed: u64 = 0,
        /// Compute precision.
        pub dtype: Dtype = Dtype::Fp32,
    }
}

impl Config for Evaluate {
    fn finish(&mut self) -> Result<(), Invalid> {
        self.environment.check()?;
        check::at_least("samples", self.samples, 1)?;
        for (i, &k) in self.k.iter().enumerate() {
            if k == 0 || k > self.samples {
                return Err(Invalid::range(
                    &format!("k[{i}]"),
                    k,
                    &format!("between 1 and the {} samples of each task", self.samples),
                ));
            }
        }
        if self.samples > 1 && self.temperature == 0.0 {
            return Err(Invalid::conflict(
                "samples",
                format!(
                    "{} samples of each task, but temperature 0 makes them all equal",
                    self.samples
                ),
                "set `temperature = 1.0`, or `samples = 1`",
            ));
        }
        if self.max_length == 1 {
            return Err(Invalid::range(
                "max_length",
                self.max_length,
                "0 (the model's own limit) or 2 and more",
            ));
        }
        check::sampling(self.max_tokens, self.temperature, self.top_p)
    }

    fn check_inputs(&self, inputs: &[&str]) -> Result<(), Invalid> {
        if self.environment.is_empty() && !inputs.contains(&"data") {
            return Err(Invalid::missing(
                "environment",
                "say what to evaluate on: `environment = \"addition\"`, or an input `data`",
            ));
        }
        if !self.environment.is_empty() && self.examples == 0 && !inputs.contains(&"data") {
            return Err(Invalid::range(
                "examples",
                0,
                "1 or more where there is no `data` to exhaust",
            ));
        }
        Ok(())
    }
}

pub const KIND: Kind = Kind {
    name: "evaluate",
    version: 1,
    doc: "metrics of a model",
    inputs: &[
        Port::one("model", ArtifactKind::Weights, "the model to evaluate"),
        Port::many(
            "data",
            ArtifactKind::Dataset,
            "tasks for the environment, or rows to score",
        )
        .optional(),
    ],
    outputs: &[
        Port::one(
            "report",
            ArtifactKind::Report,
            "metrics, per task, with confidence intervals",
        ),
        Port::one(
            "completions",
            ArtifactKind::Dataset,
            "every completion with its grade",
        ),
    ],
    open_inputs: false,
    trainer: true,
    accelerated: true,
    checkpoints: false,
    config: Functions::of::<Evaluate>(),
};
