//! GRPO and its family: what one token contributes to the loss.
//!
//! Notation: `lp`, `old`, `ref`, `gen` log-probabilities of the sampled tokens under the current,
//! the pre-update, the reference and the generating policy; `A` advantage; `r = exp(lp - old)`;
//! `sg` stop-gradient. The loss is `sum over tokens of (w * policy term + beta * KL term) *
//! weight`, where `w` corrects for the sampler and `weight` comes from the reduction.

use tch::{Kind, Tensor};

use super::{Named, Rows};

/// The local completions: every tensor is `[N]`, one entry per completion token in the loss.
pub struct Batch<'a> {
    pub lp: &'a Tensor,
    /// Detached. With one update per rollout batch this is `sg(lp)`.
    pub old: &'a Tensor,
    /// Log-probabilities recorded by the sampler.
    pub generated: &'a Tensor,
    /// Only read when the KL coefficient is not zero.
    pub reference: Option<&'a Tensor>,
    pub advantage: &'a Tensor,
    /// The rows of each completion, in order.
    pub sequences: &'a Rows,
}

/// Counts over the whole batch (all ranks, all microbatches), and the longest completion allowed.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub tokens: usize,
    pub sequences: usize,
    pub max_tokens: usize,
}

/// The numbers the terms may use.
#[derive(Debug, Clone, Copy)]
pub struct Params {
    pub clip_low: f64,
    pub clip_high: f64,
    /// `c` of dual clip.
    pub clip_dual: f64,
    /// Bounds of the correction for a sampler that is not the trainer.
    pub correction_low: f64,
    pub correction_high: f64,
}

/// The policy term per token, `[N]`; its mean is minimised.
pub type Term = fn(&Batch, &Params) -> Tensor;
/// A KL estimate per token, `[N]`.
pub type Kl = fn(lp: &Tensor, old: &Tensor, reference: &Tensor) -> Tensor;
/// Weight of each token in the loss, `[N]`.
pub type Reduction = fn(&Batch, &Counts) -> Tensor;
/// Detached factor on the policy term, `[N]`.
pub type Correction = fn(&Batch, &Params) -> Tensor;

/// The policy terms, by the name a recipe gives as `ratio`.
pub static TERMS: &[Named<Term>] = &[
    Named {
        name: "clip",
        what: clip,
    },
    Named {
        name: "dual_clip",
        what: dual_clip,
    },
    Named {
        name: "cispo",
        what: cispo,
    },
    Named {
        name: "gspo",
        what: gspo,
    },
    Named {
        name: "reinforce",
        what: reinforce,
    },
];

/// The KL estimates that are added to the loss (`k1` belongs in the reward: [`k1_in_reward`]).
pub static KLS: &[Named<Kl>] = &[
    Named {
        name: "k2",
        what: k2,
    },
    Named {
        name: "k3",
        what: k3,
    },
    Named {
        name: "k3_unbiased",
        what: k3_unbiased,
    },
];

/// The reductions.
pub static REDUCTIONS: &[Named<Reduction>] = &[
    Named {
        name: "grpo",
        what: mean_of_means,
    },
    Named {
        name: "dapo",
        what: token_mean,
    },
    Named {
        name: "dr_grpo",
        what: constant,
    },
];

/// The corrections for a sampler whose probabilities are not the trainer's.
pub static CORRECTIONS: &[Named<Correction>] = &[
    Named {
        name: "none",
        what: uncorrected,
    },
    Named {
        name: "tis",
        what: tis,
    },
    Named {
        name: "icepop",
        what: icepop,
    },
    Named {
        name: "sequence",
        what: sequence_mask,
    },
];

/// What a recipe chose.
pub struct Objective {
    pub term: Term,
    pub correction: Correction,
    pub reduction: Reduction,
    /// With its coefficient; none when that is 0 or the KL is in the reward.
    pub kl: Option<(Kl, f64)>,
    pub params: Params,
}

/// The local part of the loss, a scalar. A batch without a reference must not ask for a KL: its
/// KL term is taken as 0.
pub fn loss(objective: &Objective, batch: &Batch, counts: &Counts) -> Tensor {
    let mut per_token = (objective.term)(batch, &objective.params)
        * (objective.correction)(batch, &objective.params);
    if let (Some((kl, beta)), Some(reference)) = (objective.kl, batch.reference) {
        per_token += kl(batch.lp, batch.old, reference) * beta;
    }
    (per_token * (objective.reduction)(batch, counts)).sum(batch.lp.kind())
}

/// What each token's log-probability is multiplied with in the gradient of the loss, `[N]` f64,
/// while the policy is still the one that sampled (`r = 1`): the policy terms' gradients depend on
/// `lp - old` alone. Known before any forward, unless a KL or a correction, which read `lp`, is
/// part of the objective.
pub fn coefficients(
    objective: &Objective,
    advantage: &Tensor,
    rows: &Rows,
    counts: &Counts,
) -> Tensor {
    let zeros = advantage.to_kind(Kind::Double).zeros_like();
    let lp = zeros.copy().set_requires_grad(true);
    let batch = Batch {
        lp: &lp,
        old: &zeros,
        generated: &zeros,
        reference: None,
        advantage: &advantage.to_kind(Kind::Double),
        sequences: rows,
    };
    let loss = tch::with_grad(|| loss(objective, &batch, counts));
    Tensor::run_backward(&[loss], &[&lp], false, false).swap_remove(0)
}

// Policy terms.

fn ratio(batch: &Batch) -> Tensor {
    (batch.lp - batch.old).exp()
}

fn clipped(ratio: &Tensor, advantage: &Tensor, params: &Params) -> Tensor {
    let bounded = ratio.clamp(1.0 - params.clip_low, 1.0 + params.clip_high);
    -(ratio * advantage).minimum(&(bounded * advantage))
}

/// `-min(r A, clip(r, 1-low, 1+high) A)`.
pub fn clip(batch: &Batch, params: &Params) -> Tensor {
    clipped(&ratio(batch), batch.advantage, params)
}

/// `clip`, and for `A < 0` at most `-c A` (Ye et al. 2020).
pub fn dual_clip(batch: &Batch, params: &Params) -> Tensor {
    let term = clip(batch, params);
    let ceiling = batch.advantage * -params.clip_dual;
    let bounded = term.minimum(&ceiling);
    bounded.where_self(&batch.advantage.lt(0.0), &term)
}

/// `-sg(min(r, high)) A lp`: the cap is `clip_high` itself, about 5 (MiniMax-M1).
pub fn cispo(batch: &Batch, params: &Params) -> Tensor {
    -ratio(batch).clamp_max(params.clip_high).detach() * batch.advantage * batch.lp
}

/// `clip` with one ratio per sequence, `exp(mean over t of lp - old)` (Qwen3's GSPO).
pub fn gspo(batch: &Batch, params: &Params) -> Tensor {
    let sequence = batch.sequences.mean(&(batch.lp - batch.old)).exp();
    clipped(&batch.sequences.spread(&sequence), batch.advantage, params)
}

/// `-A lp`.
pub fn reinforce(batch: &Batch, _: &Params) -> Tensor {
    -batch.advantage * batch.lp
}

// KL estimates.

/// `(lp - ref)^2 / 2`: its gradient is that of the KL.
pub fn k2(lp: &Tensor, _old: &Tensor, reference: &Tensor) -> Tensor {
    (lp - reference).square() * 0.5
}

/// `exp(ref - lp) - (ref - lp) - 1`: its gradient is biased.
pub fn k3(lp: &Tensor, _old: &Tensor, reference: &Tensor) -> Tensor {
    let log_ratio = reference - lp;
    log_ratio.exp() - &log_ratio - 1.0
}

/// `k3` times `r`, which makes its gradient that of the KL.
pub fn k3_unbiased(lp: &Tensor, old: &Tensor, reference: &Tensor) -> Tensor {
    k3(lp, old, reference) * (lp - old).exp()
}

/// What a completion loses from its reward for its divergence, `beta * sum(lp - ref)`.
pub fn k1_in_reward(lp: &[f32], reference: &[f32], beta: f64) -> f64 {
    beta * lp
        .iter()
        .zip(reference)
        .map(|(a, b)| f64::from(*a) - f64::from(*b))
        .sum::<f64>()
}

// Reductions.

/// Mean over sequences of the per-sequence token means.
pub fn mean_of_means(batch: &Batch, counts: &Counts) -> Tensor {
    let lengths = batch.sequences.lengths(batch.lp).clamp_min(1);
    batch
        .sequences
        .spread(&(lengths * counts.sequences.max(1) as f64).reciprocal())
}

/// Mean over all tokens (DAPO).
pub fn token_mean(batch: &Batch, counts: &Counts) -> Tensor {
    batch
        .lp
        .detach()
        .full_like(1.0 / counts.tokens.max(1) as f64)
}

/// Sum over `sequences * max_tokens`, a constant (Dr. GRPO).
pub fn constant(batch: &Batch, counts: &Counts) -> Tensor {
    let places = counts.sequences.max(1) * counts.max_tokens.max(1);
    batch.lp.detach().full_like(1.0 / places as f64)
}

// Corrections, all from `exp(old - gen)`.

/// Every token counts as it is.
pub fn uncorrected(batch: &Batch, _: &Params) -> Tensor {
    batch.lp.detach().ones_like()
}

fn sampler_ratio(batch: &Batch) -> Tensor {
    (batch.old - batch.generated).detach().exp()
}

/// Truncated importance sampling: `min(w, high)`.
pub fn tis(batch: &Batch, params: &Params) -> Tensor {
    sampler_ratio(batch).clamp_max(params.correction_high)
}

/// `w` where it lies within its bounds, else 0 (IcePop).
pub fn icepop(batch: &Batch, params: &Params) -> Tensor {
    let w = sampler_ratio(batch);
    let inside = w
        .ge(params.correction_low)
        .logical_and(&w.le(params.correction_high));
    &w * inside.to_kind(w.kind())
}

/// 0 for every token of a sequence whose geometric mean of `w` is out of bounds, else 1.
pub fn sequence_mask(batch: &Batch, params: &Params) -> Tensor {
    let w = batch
        .sequences
        .mean(&(batch.old - batch.generated).detach())
        .exp();
    let inside = w
        .ge(params.correction_low)
        .logical_and(&w.le(params.correction_high));
    batch.sequences.spread(&inside.to_kind(batch.lp.kind()))
}

/// Share of the tokens whose ratio the clip holds back, as a local sum (a metric).
pub fn clipped_tokens(batch: &Batch, params: &Params) -> f64 {
    let r = (batch.lp - batch.old).detach().exp();
    let low = r
        .lt(1.0 - params.clip_low)
        .logical_and(&batch.advantage.lt(0.0));
    let high = r
        .gt(1.0 + params.clip_high)
        .logical_and(&batch.advantage.gt(0.0));
    low.logical_or(&high).sum(Kind::Double).double_value(&[])
}
