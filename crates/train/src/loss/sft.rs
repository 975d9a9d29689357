//! Supervised fine-tuning: negative log-likelihood of the target tokens.

use tch::Tensor;

/// What each target token's log-probability is multiplied with: the loss is their sum. `tokens`
/// is the number of target tokens in the whole batch, over all ranks and microbatches.
pub fn coefficient(tokens: usize) -> f64 {
    -1.0 / tokens.max(1) as f64
}

/// `-sum(logp) / tokens`: `logp` `[N]` log-probabilities (nats) of the local target tokens.
pub fn nll(logp: &Tensor, tokens: usize) -> Tensor {
    logp.sum(logp.kind()) * coefficient(tokens)
}
