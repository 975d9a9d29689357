//! The pipeline's cut: which contiguous segments each piece of the model has.

use std::ops::Range;

use crate::{ModelConfig, Role};

/// Sequence length at which attention's cost is weighed against the matrices'. Pieces must not
/// depend on the data, or a checkpoint's slices would.
const SEQUENCE: usize = 2048;

/// Cuts the segments into `pp * chunks` contiguous ranges, in order, so that the costliest is as
/// cheap as it can be. Piece `i` runs on pipeline rank `i % pp`. The first has the embedding, the
/// last the final norm and the head, whose cost is counted there.
///
/// # Panics
/// When there are more pieces than segments; [`crate::Mesh::check`] refuses that.
pub fn stages(config: &ModelConfig, pp: usize, chunks: usize) -> Vec<Range<usize>> {
    let costs = segment_flops(config);
    let (n, pieces) = (costs.len(), pp * chunks);
    assert!((1..=n).contains(&pieces), "{pieces} pieces of {n} segments");
    let mut before = vec![0.0];
    for cost in &costs {
        before.push(before[before.len() - 1] + cost);
    }
    // best[k][i]: the least cost of the costliest of k pieces of the first i segments, and where
    // the last of them starts
    let mut best = vec![vec![(f64::INFINITY, 0); n + 1]; pieces + 1];
    best[0][0] = (0.0, 0);
    for k in 1..=pieces {
        for i in k..=n {
            best[k][i] = (k - 1..i)
                .map(|j| (best[k - 1][j].0.max(before[i] - before[j]), j))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .expect("at least one place to cut");
        }
    }
    let mut end = n;
    let mut out: Vec<Range<usize>> = (1..=pieces)
        .rev()
        .map(|k| {
            let start = best[k][end].1;
            let range = start..end;
            end = start;
            range
        })
        .collect();
    out.reverse();
    out
}

/// The ranges of one pipeline rank, in order.
pub fn stages_of(config: &ModelConfig, pp: usize, chunks: usize, rank: usize) -> Vec<Range<usize>> {
    let all = stages(config, pp, chunks);
    all.into_iter().skip(rank).step_by(pp).collect()
}

/// Floating-point operations of each segment's forward for one token; the head's are the last
/// segment's.
fn segment_flops(config: &ModelConfig) -> Vec<f64> {
    let last = config.segment_count() - 1;
    let mut costs = vec![0.0; last + 1];
    for p in config.params() {
        if p.role == Role::Linear {
            costs[p.segment] += 2.0 * p.numel() as f64;
        }
    }
    for (layer, window) in config.windows.iter().enumerate() {
        let seen = window.map_or(SEQUENCE, |w| w.min(SEQUENCE)) as f64 / 2.0;
        costs[1 + 2 * layer] += 4.0 * seen * (config.heads * config.head_dim) as f64;
    }
    costs[last] += 2.0 * (config.vocab_size * config.hidden_size) as f64;
    costs
}
