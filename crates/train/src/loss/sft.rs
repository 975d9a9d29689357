//! Supervised fine-tuning: negative log-likelihood of the target tokens.

use tch::Tensor;

/// `-sum(logp) / tokens`: `logp` `[N]` log-probabilities (nats) of the local target tokens,
/// `tokens` the number of target tokens in the whole batch, over all ranks and microbatches.
pub fn nll(logp: &Tensor, tokens: usize) -> Tensor {
    -logp.sum(logp.kind()) / tokens.max(1) as f64
}
