//! `sft`: supervised fine-tuning on conversations, prompt/completion rows or plain text.

use super::training::{settle_length, training_config};
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Overlong, Port, TrainOn, check};

training_config! {
    /// Minimises the mean negative log-likelihood of the trained tokens.
    pub struct Sft: batch_size = 16, lr = 2e-5, {
        /// Longest example in tokens.
        pub max_length: u64 = 1024,
        /// What happens to a longer example.
        pub overlong: Overlong = Overlong::Truncate,
        /// Which tokens train: `assistant`, `last` or `all`.
        pub train_on: TrainOn = TrainOn::Assistant,
        /// Steps between evaluations on `validation`; 0 evaluates at the end only.
        pub validate_every: u64 = 0,
    }
}

impl Config for Sft {
    fn finish(&mut self) -> Result<(), Invalid> {
        settle_length(
            &mut self.steps,
            &mut self.epochs,
            &mut self.until,
            Some(1.0),
        )?;
        self.training().check()?;
        check::at_least("max_length", self.max_length, 2)
    }
}

pub const KIND: Kind = Kind {
    name: "sft",
    version: 1,
    doc: "supervised fine-tuning",
    inputs: &[
        Port::one("model", ArtifactKind::Weights, "the model to train"),
        Port::many(
            "data",
            ArtifactKind::Dataset,
            "rows of messages, prompt/completion or text",
        ),
        Port::many(
            "validation",
            ArtifactKind::Dataset,
            "held-out rows for validation metrics",
        )
        .optional(),
    ],
    outputs: &[Port::one(
        "model",
        ArtifactKind::Weights,
        "the trained model",
    )],
    open_inputs: false,
    trainer: true,
    accelerated: true,
    checkpoints: true,
    config: Functions::of::<Sft>(),
};
