//! What all training kinds share: length, optimizer, schedule, precision and seed.

use super::{Dtype, Invalid, check};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at `lr`.
    Constant,
    /// Falls linearly to `lr * final_lr`.
    Linear,
    /// Falls along half a cosine to `lr * final_lr`.
    Cosine,
    /// Warm-up, stable, then a linear fall over the last `decay` of the steps.
    Wsd,
}

/// The optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Adam with decoupled weight decay.
    Adamw,
    /// Plain gradient descent, no momentum.
    Sgd,
}

/// How long to train.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Length {
    Steps(u64),
    /// Passes over the data; the last partial batch of the last pass is a step as well.
    Epochs(f64),
}

/// The fields that every training kind has, as one value for the shared loop pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    pub length: Length,
    /// Steps after which to stop, where that is before the last.
    pub until: Option<u64>,
    /// Examples, pairs or prompts per step, over all ranks.
    pub batch_size: u64,
    pub optimizer: Optimizer,
    pub lr: f64,
    pub schedule: Schedule,
    pub warmup: u64,
    pub decay: f64,
    pub final_lr: f64,
    pub weight_decay: f64,
    pub decay_embeddings: bool,
    pub betas: [f64; 2],
    pub eps: f64,
    pub grad_clip: f64,
    pub dtype: Dtype,
    pub packing: bool,
    pub router_aux_loss_coef: f64,
    pub seed: u64,
}

impl Training {
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        match self.length {
            Length::Steps(steps) => check::at_least("steps", steps, 1)?,
            Length::Epochs(epochs) => check::positive("epochs", epochs)?,
        }
        if let Some(until) = self.until {
            check::at_least("until", until, 1)?;
            if let Length::Steps(steps) = self.length
                && until > steps
            {
                let wanted = format!("at most the {steps} steps of the stage");
                return Err(Invalid::range("until", until, &wanted));
            }
        }
        check::at_least("batch_size", self.batch_size, 1)?;
        check::positive("lr", self.lr)?;
        check::fraction("decay", self.decay)?;
        if !(0.0..=1.0).contains(&self.final_lr) {
            return Err(Invalid::range(
                "final_lr",
                self.final_lr,
                "a share of lr between 0 and 1",
            ));
        }
        check::not_negative("weight_decay", self.weight_decay)?;
        check::fraction("betas[0]", self.betas[0])?;
        check::fraction("betas[1]", self.betas[1])?;
        check::positive("eps", self.eps)?;
        check::not_negative("grad_clip", self.grad_clip)?;
        check::not_negative("router_aux_loss_coef", self.router_aux_loss_coef)?;
        if let Length::Steps(steps) = self.length
            && self.warmup > steps
        {
            return Err(Invalid::range(
                "warmup",
                self.warmup,
                &format!("at most the {steps} steps of the stage"),
            ));
        }
        Ok(())
    }
}

/// `epochs` and `steps` as they stand in `with`: exactly one, `default_epochs` where neither is given. To stop after the
/// last step is not to stop.
pub(crate) fn settle_length(
    steps: &mut Option<u64>,
    epochs: &mut Option<f64>,
    until: &mut Option<u64>,
    default_epochs: Option<f64>,
) -> Result<(), Invalid> {
    if until == steps {
        *until = None;
    }
    match (&steps, &epochs) {
        (Some(_), Some(_)) => Err(Invalid::conflict(
            "epochs",
            "both 'steps' and 'epochs' are given",
            "keep one of them",
        )),
        (None, None) => match default_epochs {
            Some(value) => {
                *epochs = Some(value);
                Ok(())
            }
            None => Err(Invalid::missing(
                "steps",
                "say how many steps to train: `steps = 100`",
            )),
        },
        _ => Ok(()),
    }
}

/// Leaves a field that is off out of the key.
pub(crate) fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

/// Leaves a field that is on, as it was before it could be off, out of the key.
pub(crate) fn is_true(x: &bool) -> bool {
    *x
}

/// A configuration struct with a default for every field.
macro_rules! config {
    ($(#[$meta:meta])* pub struct $name:ident {
        $($(#[$field_meta:meta])* pub $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }
        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}
pub(crate) use config;

/// A configuration struct that also has the fields of [`Training`].
macro_rules! training_config {
    ($(#[$meta:meta])* pub struct $name:ident: batch_size = $batch_size:expr, lr = $lr:expr, {
        $($rest:tt)*
    }) => {
        $crate::kinds::training::config! {
            $(#[$meta])*
            pub struct $name {
                /// Optimizer steps to train; exclusive with `epochs`.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub steps: Option<u64> = None,
                /// Passes over the data; exclusive with `steps`.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub epochs: Option<f64> = None,
                /// Stop after this many of the steps: schedule and order of the rows stay those of the whole.
                #[serde(skip_serializing_if = "Option::is_none")]
                pub until: Option<u64> = None,
                /// Examples, pairs or prompts per step, over all ranks.
                pub batch_size: u64 = $batch_size,
                /// `adamw` or `sgd`.
                pub optimizer: $crate::kinds::Optimizer = $crate::kinds::Optimizer::Adamw,
                /// Peak learning rate.
                pub lr: f64 = $lr,
                /// How the learning rate moves after warm-up.
                pub schedule: $crate::kinds::Schedule = $crate::kinds::Schedule::Linear,
                /// Steps over which the learning rate rises linearly from 0.
                pub warmup: u64 = 0,
                /// Share of the steps in which `wsd` falls.
                pub decay: f64 = 0.2,
                /// Learning rate at the end, as a share of `lr`.
                pub final_lr: f64 = 0.0,
                /// Decoupled weight decay; never on norms and biases.
                pub weight_decay: f64 = 0.0,
                /// Whether weight decay applies to embeddings too.
                pub decay_embeddings: bool = true,
                /// Adam's decay rates of first and second moment.
                pub betas: [f64; 2] = [0.9, 0.999],
                /// Adam's epsilon.
                pub eps: f64 = 1e-8,
                /// Global gradient norm above which gradients are scaled down; 0 never clips.
                pub grad_clip: f64 = 1.0,
                /// Compute precision; master weights and optimizer state are fp32 either way.
                pub dtype: $crate::kinds::Dtype = $crate::kinds::Dtype::Fp32,
                /// Whether a microbatch takes as many sequences as fit `resources.microbatch_tokens`, end to
                /// end; otherwise each sequence, pair or group of completions has one to itself. Neither pads.
                pub packing: bool = true,
                /// Weight of the loss that balances the load of experts, over the whole batch; 0 is off.
                #[serde(skip_serializing_if = "crate::kinds::training::is_zero")]
                pub router_aux_loss_coef: f64 = 0.0,
                /// Seed of every draw.
                pub seed: u64 = 0,
                $($rest)*
            }
        }
        impl $name {
            /// The fields shared by all training kinds.
            pub fn training(&self) -> $crate::kinds::Training {
                use $crate::kinds::Length;
                $crate::kinds::Training {
                    // finish() leaves exactly one of the two
                    length: self.steps.map_or_else(|| Length::Epochs(self.epochs.unwrap_or(1.0)), Length::Steps),
                    until: self.until,
                    batch_size: self.batch_size,
                    optimizer: self.optimizer,
                    lr: self.lr,
                    schedule: self.schedule,
                    warmup: self.warmup,
                    decay: self.decay,
                    final_lr: self.final_lr,
                    weight_decay: self.weight_decay,
                    decay_embeddings: self.decay_embeddings,
                    betas: self.betas,
                    eps: self.eps,
                    grad_clip: self.grad_clip,
                    dtype: self.dtype,
                    packing: self.packing,
                    router_aux_loss_coef: self.router_aux_loss_coef,
                    seed: self.seed,
                }
            }
        }
    };
}
pub(crate) use training_config;
