//! `dpo`: direct preference optimisation and its variants, on pairs.

use super::training::{settle_length, training_config};
use super::{ArtifactKind, Config, Functions, Invalid, Kind, Overlong, Port, check};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The loss over a pair; formulas in `train::loss::dpo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    Sigmoid,
    Hinge,
    Ipo,
    Robust,
    Cdpo,
    ApoZero,
    SigmoidNorm,
    SppoHard,
    /// Needs no reference.
    Simpo,
    /// Needs no reference; holds the chosen completion's likelihood up by itself.
    Orpo,
}

impl Loss {
    /// Whether the loss compares with a reference model.
    pub fn needs_reference(self) -> bool {
        !matches!(self, Self::Simpo | Self::Orpo)
    }
}

training_config! {
    /// Raises the chosen completion of each pair above the rejected one, relative to a reference.
    pub struct Dpo: batch_size = 16, lr = 1e-6, {
        /// The loss over a pair.
        pub loss: Loss = Loss::Sigmoid,
        /// Strength of the pull to the reference.
        pub beta: f64 = 0.1,
        /// Assumed share of flipped labels, for `robust` and `cdpo`.
        pub label_smoothing: f64 = 0.0,
        /// Weight of the chosen completion's negative log-likelihood, added to the loss.
        pub sft_weight: f64 = 0.0,
        /// Target margin of `simpo`.
        pub gamma: f64 = 0.5,
        /// Longest prompt plus completion in tokens.
        pub max_length: u64 = 1024,
        /// What happens to a longer pair.
        pub overlong: Overlong = Overlong::Truncate,
        /// Steps between evaluations on `validation`; 0 evaluates at the end only.
        pub validate_every: u64 = 0,
    }
}

impl Config for Dpo {
    fn finish(&mut self) -> Result<(), Invalid> {
        settle_length(
            &mut self.steps,
            &mut self.epochs,
            &mut self.until,
            Some(1.0),
        )?;
        self.training().check()?;
        check::positive("beta", self.beta)?;
        if !(0.0..0.5).contains(&self.label_smoothing) {
            return Err(Invalid::range(
                "label_smoothing",
                self.label_smoothing,
                "at least 0 and below 0.5",
            ));
        }
        if self.label_smoothing > 0.0 && !matches!(self.loss, Loss::Robust | Loss::Cdpo) {
            return Err(Invalid::conflict(
                "label_smoothing",
                "'label_smoothing' has no effect with this loss",
                "use loss = \"robust\" or \"cdpo\", or remove it",
            ));
        }
        check::not_negative("sft_weight", self.sft_weight)?;
        check::not_negative("gamma", self.gamma)?;
        check::at_least("max_length", self.max_length, 2)
    }

    fn check_inputs(&self, inputs: &[&str]) -> Result<(), Invalid> {
        let (reference, logprobs) = (inputs.contains(&"reference"), inputs.contains(&"logprobs"));
        if reference && logprobs {
            return Err(Invalid::conflict(
                "",
                "both 'reference' and 'logprobs' are given",
                "keep `logprobs` (scored once, shared by every run) or `reference` (scored at the start)",
            ));
        }
        if !self.loss.needs_reference() && (reference || logprobs) {
            return Err(Invalid::conflict(
                "loss",
                "this loss uses no reference, but one is given",
                "remove the input `reference` or `logprobs`",
            ));
        }
        Ok(())
    }
}

pub const KIND: Kind = Kind {
    name: "dpo",
    version: 1,
    doc: "direct preference optimisation",
    inputs: &[
        Port::one(
            "model",
            ArtifactKind::Weights,
            "the model to train, and the reference where none is given",
        ),
        Port::many(
            "data",
            ArtifactKind::Dataset,
            "preference rows: prompt, chosen, rejected",
        ),
        Port::one("reference", ArtifactKind::Weights, "the reference model").optional(),
        Port::many(
            "logprobs",
            ArtifactKind::Dataset,
            "the reference's `score` of `data`",
        )
        .optional(),
        Port::many(
            "validation",
            ArtifactKind::Dataset,
            "held-out preference rows",
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
    config: Functions::of::<Dpo>(),
};
