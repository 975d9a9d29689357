//! How a policy computes, and what it reports.

use parallel::Checkpointing;
use tch::{Device, Kind};

use crate::Sums;
use crate::head::accumulation;
use crate::metrics::Work;

/// Whether the entropy of each predicting distribution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Entropy {
    /// No: [`Tokens::entropy`] is empty.
    Off,
    /// Yes, as a constant of the loss.
    #[default]
    Detached,
    /// Yes, and the loss may pull on it.
    Differentiable,
}

/// How a policy computes. Nothing here but `kind`, `temperature` and `router_aux_loss_coef` changes
/// the mathematics.
#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// Compute kind: fp32, bf16 (with fp32 masters) or fp64.
    pub kind: Kind,
    /// Where.
    pub device: Device,
    /// What forward keeps for backward.
    pub checkpointing: Checkpointing,
    /// Rows per microbatch.
    pub microbatch_tokens: usize,
    /// Rows per chunk of the head; `None` chooses by memory.
    pub head_chunk: Option<usize>,
    /// Log-probabilities are of softmax(logits / temperature).
    pub temperature: f64,
    /// Weight of the loss that balances the load of experts; 0 is off.
    pub router_aux_loss_coef: f64,
    /// Compute a unit's prefix once for all its branches.
    pub share_prefix: bool,
    /// What [`Tokens::entropy`] holds.
    pub entropy: Entropy,
    /// Steps with a NaN or infinite gradient, in a row, after which training stops.
    pub skip_limit: u64,
    /// Whether weight decay applies to embeddings and the LM matrix too.
    pub decay_embeddings: bool,
    /// Give gathered parameters back after each use, instead of keeping them until the update.
    pub reshard: bool,
    /// Keep masters and moments in CPU memory, where the optimizer then runs.
    pub offload: bool,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        PolicyConfig {
            kind: Kind::Float,
            device: Device::Cpu,
            checkpointing: Checkpointing::None,
            microbatch_tokens: 8192,
            head_chunk: None,
            temperature: 1.0,
            router_aux_loss_coef: 0.0,
            share_prefix: true,
            entropy: Entropy::Detached,
            skip_limit: 10,
            decay_embeddings: true,
            reshard: true,
            offload: false,
        }
    }
}

/// What one accumulation over a batch gave, equal on all ranks.
#[derive(Debug, Clone, Default)]
pub struct Accumulated {
    /// The batch's loss, [`Accumulated::balance`] included.
    pub loss: f64,
    /// The weighted part of it that balances the load of experts.
    pub balance: f64,
    /// Sums of the closure's metrics.
    pub metrics: Sums,
    /// Tokens and FLOPs.
    pub work: Work,
}

/// What one update did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Factor that clipping applied.
    pub clip: f64,
    /// The gradient was NaN or infinite: weights and optimizer are as before.
    pub skipped: bool,
    /// Steps skipped so far.
    pub skipped_total: u64,
}

/// Bytes of what a rank holds between steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StateBytes {
    pub parameters: usize,
    pub gradients: usize,
    pub optimizer: usize,
}

impl StateBytes {
    /// All of it.
    pub fn total(&self) -> usize {
        self.parameters + self.gradients + self.optimizer
    }
}

/// Counts of steps skipped for a bad gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Skips {
    pub in_a_row: u64,
    pub total: u64,
}

impl PolicyConfig {
    /// Where masters and moments lie.
    pub(super) fn master_device(&self) -> Device {
        if self.offload {
            Device::Cpu
        } else {
            self.device
        }
    }

    /// Whether the masters are other tensors than the compute weights.
    pub(super) fn master_is_apart(&self) -> bool {
        self.kind != accumulation(self.kind) || self.master_device() != self.device
    }
}
