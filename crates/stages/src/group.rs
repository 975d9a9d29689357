//! Groups of completions with their rewards, and what is measured of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use train::loss::advantage;
use train::{Branch, Policy, Replay, Unit};

use crate::failure::Result;
use crate::play::Played;
use crate::report::Metrics;

/// How far trainer and sampler are apart: mean over tokens of `exp |lp_train - lp_gen|`.
pub const PROB_ERROR: &str = "train/token_mult_prob_error";

/// The completions of one prompt.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Group {
    pub id: u64,
    pub environment: String,
    pub prompt: Vec<u32>,
    pub completions: Vec<Completion>,
    /// Sampled before the last update.
    pub stale: bool,
    /// Rollouts that failed, and left the group.
    pub failures: usize,
    /// What the first of them said.
    pub failed: Option<String>,
}

/// One completion with its rewards.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Completion {
    /// Everything after the prompt.
    pub tokens: Vec<u32>,
    /// Which of them the policy sampled.
    pub mask: Vec<bool>,
    /// The sampler's log-probability of each sampled token.
    pub generated: Vec<f32>,
    /// The experts that the prompt and these tokens went to, where the updates replay them.
    #[serde(with = "crate::ids", default)]
    pub routes: Vec<u16>,
    /// The reference's, where there is one.
    pub reference: Vec<f32>,
    /// By component.
    pub rewards: Vec<(String, f64)>,
    pub truncated: bool,
}

impl Completion {
    /// The reward: the sum of its components.
    pub fn total(&self) -> f64 {
        self.rewards.iter().map(|(_, value)| value).sum()
    }

    fn branch(&self) -> Branch {
        Branch {
            tokens: self.tokens.clone(),
            mask: self.mask.clone(),
        }
    }
}

impl Group {
    /// The trajectories of one prompt.
    pub fn new(played: Vec<Played>) -> Group {
        let mut group = Group {
            id: played.first().map_or(0, |first| first.id),
            environment: played
                .first()
                .map_or_else(String::new, |first| first.environment.clone()),
            prompt: played
                .first()
                .map_or_else(Vec::new, |first| first.prompt.clone()),
            completions: Vec::new(),
            stale: false,
            failures: 0,
            failed: None,
        };
        for one in played {
            match one.rewards {
                Some(rewards) => group.completions.push(Completion {
                    tokens: one.tokens,
                    mask: one.mask,
                    generated: one.logprobs,
                    routes: one.routes,
                    reference: Vec::new(),
                    rewards,
                    truncated: one.truncated,
                }),
                None => {
                    group.failures += 1;
                    group.failed = group.failed.or(one.failure);
                }
            }
        }
        group
    }

    /// The reward of each completion.
    /// The reward: the sum of its components.
    pub fn totals(&self) -> Vec<f64> {
        self.completions.iter().map(Completion::total).collect()
    }

    /// The completions to keep, as one unit.
    pub fn unit(&self, keep: impl Fn(&Completion) -> bool) -> Unit {
        let kept: Vec<&Completion> = self.completions.iter().filter(|c| keep(c)).collect();
        Unit {
            prefix: self.prompt.clone(),
            branches: kept.iter().map(|c| c.branch()).collect(),
            replay: self.replay(&kept),
        }
    }

    /// Where the tokens went. The prompt went the same way for all completions.
    fn replay(&self, kept: &[&Completion]) -> Option<Replay> {
        let first = kept.first().filter(|c| !c.routes.is_empty())?;
        // of all tokens but the last
        let choices = first.routes.len() / (self.prompt.len() + first.tokens.len() - 1);
        let prompt = self.prompt.len() * choices;
        Some(Replay {
            prefix: first.routes[..prompt].to_vec(),
            branches: kept.iter().map(|c| c.routes[prompt..].to_vec()).collect(),
        })
    }
}

/// Adds the reference's log-probabilities of every sampled token, routed by itself.
pub fn add_reference(groups: &mut [Group], reference: &Policy) -> Result<()> {
    let units = groups.iter().map(|group| Unit {
        replay: None,
        ..group.unit(|_| true)
    });
    let units: Vec<Unit> = units.collect();
    for (group, values) in groups.iter_mut().zip(reference.logprobs(&units)?) {
        for (completion, values) in group.completions.iter_mut().zip(values) {
            completion.reference = values;
        }
    }
    Ok(())
}

/// Reward, its spread, each component, and length, over all completions and per environment.
pub fn measure(groups: &[Group], metrics: &mut Metrics) {
    let totals: Vec<f64> = groups.iter().flat_map(Group::totals).collect();
    if totals.is_empty() {
        return;
    }
    let (mean, std) = advantage::mean_std(&totals);
    metrics.insert("train/reward".into(), mean);
    metrics.insert("train/reward_std".into(), std);
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut add = |name: String, value: f64| {
        let (sum, n) = sums.entry(name).or_default();
        *sum += value;
        *n += 1.0;
    };
    for group in groups {
        for completion in &group.completions {
            add(
                "train/completion_length".into(),
                completion.generated.len() as f64,
            );
            add(
                "train/truncation_rate".into(),
                f64::from(u8::from(completion.truncated)),
            );
            add(
                format!("train/reward/{}", group.environment),
                completion.total(),
            );
            for (name, value) in &completion.rewards {
                add(format!("train/rewards/{name}"), *value);
            }
        }
    }
    metrics.extend(sums.into_iter().map(|(name, (sum, n))| (name, sum / n)));
}
