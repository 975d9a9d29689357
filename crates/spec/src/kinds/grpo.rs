//! `grpo`: reinforcement learning on groups of completions. Each variant is chosen part by part:
//! advantage, ratio, KL, correction and reduction (formulas in `train::loss::grpo`).

use super::training::{settle_length, training_config};
use super::{ArtifactKind, Config, Environments, Functions, Invalid, Kind, Port, check};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Advantage {
    /// (R - group mean) / (group std + 1e-4).
    Grpo,
    /// (R - group mean) / (batch std + 1e-4).
    Batch,
    /// R - group mean.
    DrGrpo,
    /// R - mean of the others in the group.
    Rloo,
    /// R - group mean, whitened over all valid tokens of the batch.
    ReinforcePlusPlus,
    /// Each reward component normalised in its group, summed, whitened over the batch.
    Gdpo,
}

/// The per-token policy term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ratio {
    /// Clipped token ratio (PPO).
    Clip,
    /// Clipped sequence ratio.
    Gspo,
    /// Truncated, detached token ratio times the log-probability; the cap is `clip_high` itself.
    Cispo,
    /// The log-probability alone.
    Reinforce,
}

/// How the terms of all tokens become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Mean over sequences of each sequence's token mean.
    Grpo,
    /// Mean over all tokens.
    Dapo,
    /// Sum over tokens / (sequences x max_tokens).
    DrGrpo,
}

/// The estimator of the KL divergence to the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kl {
    /// Subtracted from the reward, since its gradient as a loss is zero in expectation.
    K1,
    /// (lp - ref)^2 / 2, whose gradient is that of the KL.
    K2,
    /// exp(ref - lp) - (ref - lp) - 1; biased gradient.
    K3,
    /// `k3` times the ratio.
    K3Unbiased,
}

/// Correction for rollouts whose log-probabilities are not the trainer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    None,
    /// Truncated importance weight exp(old - gen), at most `correction_cap`.
    Tis,
    /// Tokens whose weight is outside [1/`correction_cap`, `correction_cap`] leave the loss.
    Icepop,
    /// Sequences whose geometric mean weight is outside these bounds leave the loss.
    Sequence,
}

/// What happens to a completion that reached `max_tokens` without ending: `"keep"`, `"filter"`, or
/// a table `{ buffer, factor }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OverlongCompletion {
    Plain(PlainOverlong),
    /// The reward falls by up to `factor` over the last `buffer` tokens.
    Penalty(OverlongPenalty),
}

/// [`OverlongCompletion`] without settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlainOverlong {
    /// Trained on as it is.
    Keep,
    /// Left out of the loss and its count.
    Filter,
}

/// Reward change: min(-(length - (max_tokens - buffer)) / buffer * factor, 0).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OverlongPenalty {
    pub buffer: u64,
    pub factor: f64,
}

// Not derived: serde's untagged enums lose the place and cause of an error inside them.
impl<'de> Deserialize<'de> for OverlongCompletion {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> de::Visitor<'de> for Either {
            type Value = OverlongCompletion;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("\"keep\", \"filter\" or a table { buffer, factor }")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<OverlongCompletion, E> {
                PlainOverlong::deserialize(de::value::StrDeserializer::new(name))
                    .map(OverlongCompletion::Plain)
            }
            fn visit_map<A: de::MapAccess<'de>>(
                self,
                map: A,
            ) -> Result<OverlongCompletion, A::Error> {
                OverlongPenalty::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(OverlongCompletion::Penalty)
            }
        }
        deserializer.deserialize_any(Either)
    }
}

training_config! {
    /// Samples groups of completions, rewards them, and moves the policy towards the better ones.
    pub struct Grpo: batch_size = 16, lr = 1e-6, {
        /// Where prompts and rewards come from: a name, or a weighted list with options.
        pub environment: Environments = Environments::default(),
        /// Completions per prompt.
        pub group_size: u64 = 8,
        /// How rewards become advantages.
        pub advantage: Advantage = Advantage::Grpo,
        /// The per-token policy term.
        pub ratio: Ratio = Ratio::Clip,
        /// How the terms of all tokens become one number.
        pub reduction: Reduction = Reduction::Dapo,
        /// The ratio is not pushed below 1 - clip_low.
        pub clip_low: f64 = 0.2,
        /// The ratio is not pushed above 1 + clip_high; for `cispo`, the cap itself (about 5).
        pub clip_high: f64 = 0.2,
        /// For negative advantages the term is at most -dual_clip x advantage; 0 is off.
        pub dual_clip: f64 = 0.0,
        /// Weight of the KL divergence to the reference; 0 needs no reference.
        pub kl_beta: f64 = 0.0,
        /// Estimator of the KL divergence.
        pub kl: Kl = Kl::K3Unbiased,
        /// Correction for rollouts in another precision.
        pub correction: Correction = Correction::None,
        /// Bound of the correction's weight.
        pub correction_cap: f64 = 2.0,
        /// Optimizer updates per batch of rollouts.
        pub updates: u64 = 1,
        /// Longest completion of one turn in tokens; all turns together end at the model's context.
        pub max_tokens: u64 = 256,
        /// Sampling temperature; log-probabilities in the loss are scaled alike.
        pub temperature: f64 = 1.0,
        /// Nucleus sampling; 1 is off.
        pub top_p: f64 = 1.0,
        /// Samples among the k most likely tokens; 0 is off.
        pub top_k: u64 = 0,
        /// Strings that end a completion.
        pub stop: Vec<String> = Vec::new(),
        /// Drop groups whose rewards are all equal, and sample on until the batch is full.
        pub dynamic_sampling: bool = false,
        /// Completions cut at `max_tokens`: `keep`, `filter`, or `{ buffer, factor }`.
        pub overlong: OverlongCompletion = OverlongCompletion::Plain(PlainOverlong::Keep),
        /// Updates send tokens to the experts that sampling sent them to; a model without experts
        /// has none to replay.
        #[serde(skip_serializing_if = "crate::kinds::training::is_true")]
        pub routing_replay: bool = true,
        /// Steps between greedy evaluations on held-out tasks; 0 never evaluates.
        pub validate_every: u64 = 0,
        /// Held-out tasks of one evaluation.
        pub validate_examples: u64 = 64,
    }
}

impl Config for Grpo {
    fn finish(&mut self) -> Result<(), Invalid> {
        settle_length(&mut self.steps, &mut self.epochs, &mut self.until, None)?;
        if self.epochs.is_some() {
            return Err(Invalid::conflict(
                "epochs",
                "'epochs' has no meaning for grpo",
                "use `steps`",
            ));
        }
        self.training().check()?;
        if self.environment.is_empty() {
            return Err(Invalid::missing(
                "environment",
                "say where prompts and rewards come from: `environment = \"addition\"`",
            ));
        }
        self.environment.check()?;
        check::at_least("group_size", self.group_size, 1)?;
        if self.group_size == 1 {
            return Err(Invalid::range(
                "group_size",
                self.group_size,
                "2 or more: an advantage compares the completions of one prompt",
            ));
        }
        check::fraction("clip_low", self.clip_low)?;
        check::positive("clip_high", self.clip_high)?;
        if self.ratio == Ratio::Cispo && self.clip_high < 1.0 {
            return Err(Invalid::range(
                "clip_high",
                self.clip_high,
                "at least 1 with ratio = \"cispo\", which caps the ratio at clip_high itself (about 5)",
            ));
        }
        if self.dual_clip != 0.0 && !(self.dual_clip > 1.0 && self.dual_clip.is_finite()) {
            return Err(Invalid::range(
                "dual_clip",
                self.dual_clip,
                "0 (off) or above 1",
            ));
        }
        check::not_negative("kl_beta", self.kl_beta)?;
        if !(self.correction_cap >= 1.0 && self.correction_cap.is_finite()) {
            return Err(Invalid::range(
                "correction_cap",
                self.correction_cap,
                "1 or more",
            ));
        }
        check::at_least("updates", self.updates, 1)?;
        check::at_least("validate_examples", self.validate_examples, 1)?;
        check::sampling(self.max_tokens, self.temperature, self.top_p)?;
        check::positive("temperature", self.temperature)?;
        if let OverlongCompletion::Penalty(penalty) = self.overlong {
            check::at_least("overlong.buffer", penalty.buffer, 1)?;
            if penalty.buffer > self.max_tokens {
                return Err(Invalid::range(
                    "overlong.buffer",
                    penalty.buffer,
                    "at most max_tokens",
                ));
            }
            check::positive("overlong.factor", penalty.factor)?;
        }
        Ok(())
    }

    fn check_inputs(&self, inputs: &[&str]) -> Result<(), Invalid> {
        if inputs.contains(&"reference") && self.kl_beta == 0.0 {
            return Err(Invalid::conflict(
                "kl_beta",
                "a reference is given, but 'kl_beta' is 0, so it would not be used",
                "set `kl_beta`, or remove the input `reference`",
            ));
        }
        Ok(())
    }
}

pub const KIND: Kind = Kind {
    name: "grpo",
    version: 1,
    doc: "reinforcement learning on groups of completions",
    inputs: &[
        Port::one("model", ArtifactKind::Weights, "the policy to train"),
        Port::one(
            "reference",
            ArtifactKind::Weights,
            "the reference of the KL term; the starting model where none is given",
        )
        .optional(),
        Port::many(
            "data",
            ArtifactKind::Dataset,
            "rows for environments that draw tasks from data",
        )
        .optional(),
    ],
    outputs: &[Port::one(
        "model",
        ArtifactKind::Weights,
        "the trained policy",
    )],
    open_inputs: false,
    trainer: true,
    accelerated: true,
    checkpoints: true,
    config: Functions::of::<Grpo>(),
};
