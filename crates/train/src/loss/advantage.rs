//! Advantages from rewards, in float64, and what shapes rewards before them.

use std::ops::Range;

use super::Named;

/// The completions of a batch, group by group.
pub struct Rewards<'a> {
    /// Reward of each completion.
    pub total: &'a [f64],
    /// `components[i]`: the parts of completion `i`'s reward, unweighted, in a fixed order (only
    /// `gdpo` reads them).
    pub components: &'a [Vec<f64>],
    /// Weight of each component.
    pub weights: &'a [f64],
    /// Tokens of each completion that are in the loss.
    pub tokens: &'a [usize],
    /// The completions of each prompt.
    pub groups: &'a [Range<usize>],
}

/// One advantage per completion.
pub type Advantage = fn(&Rewards) -> Vec<f64>;

/// Every way to form advantages, by the name a recipe uses.
pub static ADVANTAGES: &[Named<Advantage>] = &[
    Named {
        name: "grpo",
        what: group_normalised,
    },
    Named {
        name: "batch",
        what: batch_scaled,
    },
    Named {
        name: "dr_grpo",
        what: centred,
    },
    Named {
        name: "rloo",
        what: leave_one_out,
    },
    Named {
        name: "reinforce_plus_plus",
        what: reinforce_plus_plus,
    },
    Named {
        name: "gdpo",
        what: gdpo,
    },
];

/// Keeps the quotient finite when all rewards of a group are equal.
const EPSILON: f64 = 1e-4;

/// `(R - mean) / (std + 1e-4)` in the group, with the unbiased std.
pub fn group_normalised(rewards: &Rewards) -> Vec<f64> {
    per_group(rewards, |group| {
        let (mean, std) = mean_std(group);
        group.iter().map(|r| (r - mean) / (std + EPSILON)).collect()
    })
}

/// `R - group mean`, divided by the std of the whole batch.
pub fn batch_scaled(rewards: &Rewards) -> Vec<f64> {
    let (_, std) = mean_std(rewards.total);
    centred(rewards)
        .into_iter()
        .map(|a| a / (std + EPSILON))
        .collect()
}

/// `R - group mean`, not divided (Dr. GRPO).
pub fn centred(rewards: &Rewards) -> Vec<f64> {
    per_group(rewards, |group| {
        let (mean, _) = mean_std(group);
        group.iter().map(|r| r - mean).collect()
    })
}

/// `R` minus the mean of the others in the group (RLOO). A group of one has no baseline: 0.
pub fn leave_one_out(rewards: &Rewards) -> Vec<f64> {
    per_group(rewards, |group| {
        let others = (group.len() as f64 - 1.0).max(1.0);
        // mean of differences, not difference of sums: exact when the others are equal
        group
            .iter()
            .map(|r| group.iter().map(|other| r - other).sum::<f64>() / others)
            .collect()
    })
}

/// `R - group mean`, then whitened over all tokens in the loss (REINFORCE++ with baseline).
pub fn reinforce_plus_plus(rewards: &Rewards) -> Vec<f64> {
    let centred = centred(rewards);
    let count = rewards.tokens.iter().sum::<usize>().max(1) as f64;
    let over_tokens = |value: &dyn Fn(f64) -> f64| {
        centred
            .iter()
            .zip(rewards.tokens)
            .map(|(a, n)| value(*a) * *n as f64)
            .sum::<f64>()
            / count
    };
    let mean = over_tokens(&|a| a);
    let variance = over_tokens(&|a| (a - mean) * (a - mean));
    centred
        .iter()
        .map(|a| (a - mean) / variance.max(1e-8).sqrt())
        .collect()
}

/// Each component normalised in its group, weighted and summed, then whitened over the batch
/// (GDPO).
pub fn gdpo(rewards: &Rewards) -> Vec<f64> {
    let mut sum = vec![0.0; rewards.total.len()];
    for (part, weight) in rewards.weights.iter().enumerate() {
        let values: Vec<f64> = rewards.components.iter().map(|c| c[part]).collect();
        let normal = group_normalised(&Rewards {
            total: &values,
            ..*rewards
        });
        sum.iter_mut()
            .zip(normal)
            .for_each(|(s, a)| *s += weight * a);
    }
    let (mean, std) = mean_std(&sum);
    sum.iter().map(|s| (s - mean) / (std + EPSILON)).collect()
}

fn per_group(rewards: &Rewards, form: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let mut out = vec![0.0; rewards.total.len()];
    for group in rewards.groups {
        out[group.clone()].copy_from_slice(&form(&rewards.total[group.clone()]));
    }
    out
}

/// Mean and unbiased standard deviation, in two passes. Equal values give exactly `(value, 0)`.
pub fn mean_std(values: &[f64]) -> (f64, f64) {
    if is_constant(values) {
        return (values.first().copied().unwrap_or(0.0), 0.0);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// Whether the group teaches nothing: all its rewards are equal. Dynamic sampling drops it.
pub fn is_constant(group: &[f64]) -> bool {
    group.windows(2).all(|pair| pair[0] == pair[1])
}

/// DAPO's soft overlong punishment, `min(-(len - (max - buffer)) / buffer * penalty, 0)`: 0 up
/// to `max - buffer` tokens, `-penalty` at `max`.
pub fn overlong_penalty(len: usize, max: usize, buffer: usize, penalty: f64) -> f64 {
    let over = len as f64 - (max as f64 - buffer as f64);
    (-over / buffer.max(1) as f64 * penalty).min(0.0)
}
