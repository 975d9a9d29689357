//! What a loss needs whole, and what it sees of it.

use std::ops::Range;

use tch::Tensor;

/// Sequences that share an optional prefix: what a loss needs whole. SFT: no prefix, one branch.
/// DPO: the prompt as prefix, chosen and rejected as branches. GRPO: the prompt, its completions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unit {
    /// Token ids before every branch; may be empty. Computed once for all branches.
    pub prefix: Vec<u32>,
    /// Continuations of the prefix.
    pub branches: Vec<Branch>,
    /// For a model with experts: where the tokens go, if not where the routers would have them.
    /// Either all units of a batch say so or none does.
    pub replay: Option<Replay>,
}

/// The experts that tokens went to when they were sampled: token by token the choices of every
/// layer with experts, ascending, `arch::Experts::choices` ids each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replay {
    /// Of the prefix.
    pub prefix: Vec<u16>,
    /// Of each branch's tokens, up to the one before the last masked one at least.
    pub branches: Vec<Vec<u16>>,
}

/// One continuation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Branch {
    /// Token ids after the prefix.
    pub tokens: Vec<u32>,
    /// `mask[i]`: log p(tokens[i] | prefix, tokens[..i]) enters the loss. As long as `tokens`;
    /// with an empty prefix `mask[0]` is false, as nothing predicts the first token.
    pub mask: Vec<bool>,
}

impl Branch {
    /// Tokens that enter the loss.
    pub fn masked(&self) -> usize {
        self.mask.iter().filter(|&&m| m).count()
    }

    /// Leading tokens that must be computed for the last masked one to be predicted.
    pub(crate) fn inputs(&self) -> usize {
        self.mask.iter().rposition(|&m| m).unwrap_or(0)
    }
}

impl Unit {
    /// Tokens that enter the loss, over all branches.
    pub fn masked(&self) -> usize {
        self.branches.iter().map(Branch::masked).sum()
    }

    /// Tokens of the unit, the prefix counted once.
    pub fn tokens(&self) -> usize {
        self.prefix.len() + self.branches.iter().map(|b| b.tokens.len()).sum::<usize>()
    }
}

/// What a loss closure sees of one microbatch: leaf tensors with one entry per masked token.
pub struct Tokens<'a> {
    /// Log-probabilities `[N]` of the masked tokens under softmax(logits / temperature); a leaf
    /// that requires a gradient. fp32, in fp64 compute fp64.
    pub logp: Tensor,
    /// Entropy of the distribution that predicted each masked token `[N]`, same kind. A leaf that
    /// requires a gradient under [`Entropy::Differentiable`](crate::Entropy), constant under
    /// `Detached`, empty `[0]` under `Off`.
    pub entropy: Tensor,
    /// The microbatch's units in the order of their entries in `logp`.
    pub units: &'a [UnitSpan],
}

/// Where a unit's tokens lie in [`Tokens`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSpan {
    /// Index of the unit in the list that every rank gave.
    pub unit: usize,
    /// For each branch its entries in `logp`, in token order.
    pub branches: Vec<Range<usize>>,
}

/// What a loss closure returns for one microbatch.
pub struct LossOut {
    /// Scalar: the sum over this microbatch divided by the *global* count, so that the sum over
    /// microbatches and ranks is the batch's loss.
    pub loss: Tensor,
    /// Sums (or parts already divided by a global count) that add up over microbatches and ranks.
    pub metrics: Vec<(&'static str, f64)>,
}
