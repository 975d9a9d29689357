//! Groups of completions, and a batch of them as the trainer takes it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use spec::kinds::grpo::{OverlongCompletion, PlainOverlong};
use tch::{Kind, Tensor};
use train::loss::advantage::{self, Advantage, Rewards};
use train::loss::{Rows, grpo};
use train::{Accumulated, Branch, LossOut, Policy, Tokens, Unit};

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
    /// The reference's, where there is one.
    pub reference: Vec<f32>,
    /// By component.
    pub rewards: Vec<(String, f64)>,
    pub truncated: bool,
}

impl Completion {
    fn total(&self) -> f64 {
        self.rewards.iter().map(|(_, value)| value).sum()
    }

    fn branch(&self) -> Branch {
        Branch { tokens: self.tokens.clone(), mask: self.mask.clone() }
    }
}

impl Group {
    /// The trajectories of one prompt.
    pub fn new(played: Vec<Played>) -> Group {
        let mut group = Group {
            id: played.first().map_or(0, |first| first.id),
            environment: played.first().map_or_else(String::new, |first| first.environment.clone()),
            prompt: played.first().map_or_else(Vec::new, |first| first.prompt.clone()),
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
    pub fn totals(&self) -> Vec<f64> {
        self.completions.iter().map(Completion::total).collect()
    }

    fn unit(&self, keep: impl Fn(&Completion) -> bool) -> Unit {
        let kept = self.completions.iter().filter(|completion| keep(completion));
        Unit { prefix: self.prompt.clone(), branches: kept.map(Completion::branch).collect() }
    }
}

/// Adds the reference's log-probabilities of every sampled token.
pub fn add_reference(groups: &mut [Group], reference: &Policy) -> Result<()> {
    let units: Vec<Unit> = groups.iter().map(|group| group.unit(|_| true)).collect();
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
            add("train/completion_length".into(), completion.generated.len() as f64);
            add("train/truncation_rate".into(), f64::from(u8::from(completion.truncated)));
            add(format!("train/reward/{}", group.environment), completion.total());
            for (name, value) in &completion.rewards {
                add(format!("train/rewards/{name}"), *value);
            }
        }
    }
    metrics.extend(sums.into_iter().map(|(name, (sum, n))| (name, sum / n)));
}

/// Groups ready to train on: units, and by unit and branch what the loss needs.
pub struct Batch {
    units: Vec<Unit>,
    known: Vec<Vec<Known>>,
    stale: Vec<bool>,
    counts: grpo::Counts,
    /// Tokens of groups that are not stale.
    fresh_tokens: usize,
    /// Log-probabilities of each unit's tokens at the first update.
    old: RefCell<BTreeMap<usize, Vec<f32>>>,
}

/// What is known of one completion.
struct Known {
    advantage: f64,
    generated: Vec<f32>,
    reference: Vec<f32>,
}

impl Batch {
    /// Advantages are formed over all completions; truncated ones then leave the loss, and its
    /// counts, where the recipe filters them.
    pub fn new(
        groups: Vec<Group>,
        form: Advantage,
        overlong: &OverlongCompletion,
        max_tokens: usize,
    ) -> Batch {
        let advantages = advantages(&groups, form);
        let filter = *overlong == OverlongCompletion::Plain(PlainOverlong::Filter);
        let keep = |completion: &Completion| !(filter && completion.truncated);
        let mut batch = Batch {
            units: Vec::new(),
            known: Vec::new(),
            stale: Vec::new(),
            counts: grpo::Counts { tokens: 0, sequences: 0, max_tokens },
            fresh_tokens: 0,
            old: RefCell::default(),
        };
        for (group, advantages) in groups.into_iter().zip(advantages) {
            let unit = group.unit(keep);
            let masked = unit.masked();
            if masked == 0 {
                continue;
            }
            batch.counts.tokens += masked;
            batch.counts.sequences += unit.branches.len();
            batch.fresh_tokens += if group.stale { 0 } else { masked };
            batch.stale.push(group.stale);
            let kept = group.completions.into_iter().zip(advantages).filter(|(c, _)| keep(c));
            let known = kept.map(|(completion, advantage)| Known {
                advantage,
                generated: completion.generated,
                reference: completion.reference,
            });
            batch.known.push(known.collect());
            batch.units.push(unit);
        }
        batch
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Gradients of the loss. `first`: the policy is still the one that sampled the fresh groups,
    /// and its log-probabilities are remembered as `old`.
    pub fn accumulate(
        &self,
        policy: &mut Policy,
        objective: &grpo::Objective,
        first: bool,
    ) -> Result<Accumulated> {
        Ok(policy.accumulate(&self.units, &|tokens| Ok(self.loss(tokens, objective, first)))?)
    }

    fn loss(&self, tokens: &Tokens, objective: &grpo::Objective, first: bool) -> LossOut {
        let lp = &tokens.logp;
        let like = (lp.kind(), lp.device());
        let gather = |value: &dyn Fn(&Known) -> &[f32]| {
            let known = tokens.units.iter().flat_map(|span| &self.known[span.unit]);
            let flat: Vec<f32> = known.flat_map(|known| value(known).iter().copied()).collect();
            Tensor::from_slice(&flat).to_kind(like.0).to_device(like.1)
        };
        let spans: Vec<_> = tokens.units.iter().flat_map(|unit| unit.branches.clone()).collect();
        let sequences = Rows::new(&spans, like.1);
        let advantages: Vec<f64> = tokens
            .units
            .iter()
            .flat_map(|span| self.known[span.unit].iter().map(|known| known.advantage))
            .collect();
        let advantages = Tensor::from_slice(&advantages).to_kind(like.0).to_device(like.1);
        let generated = gather(&|known| &known.generated);
        let stale = self.stale_rows(tokens);
        let old = self.old(tokens, &generated, &stale, first);
        let has_reference = objective.kl.is_some();
        let reference = has_reference.then(|| gather(&|known| &known.reference));
        let batch = grpo::Batch {
            lp,
            old: &old,
            generated: &generated,
            reference: reference.as_ref(),
            advantage: &sequences.spread(&advantages),
            sequences: &sequences,
        };
        let loss = grpo::loss(objective, &batch, &self.counts);
        LossOut { loss, metrics: self.observe(tokens, &batch, objective, &stale) }
    }

    /// `[N]` bool: rows of stale groups.
    fn stale_rows(&self, tokens: &Tokens) -> Tensor {
        let rows: Vec<bool> = tokens
            .units
            .iter()
            .flat_map(|span| {
                let n = span.branches.iter().map(ExactSizeIterator::len).sum();
                std::iter::repeat_n(self.stale[span.unit], n)
            })
            .collect();
        Tensor::from_slice(&rows).to_device(tokens.logp.device())
    }

    /// The log-probabilities under the policy before the updates: for stale groups what the
    /// sampler recorded.
    fn old(&self, tokens: &Tokens, generated: &Tensor, stale: &Tensor, first: bool) -> Tensor {
        let now = tokens.logp.detach();
        let mut kept = self.old.borrow_mut();
        let before = if first {
            let flat: Vec<f32> = Vec::try_from(now.to_kind(Kind::Float)).unwrap_or_default();
            let mut start = 0;
            for span in tokens.units {
                let n: usize = span.branches.iter().map(ExactSizeIterator::len).sum();
                kept.insert(span.unit, flat[start..start + n].to_vec());
                start += n;
            }
            now
        } else {
            let flat: Vec<f32> =
                tokens.units.iter().flat_map(|span| kept[&span.unit].iter().copied()).collect();
            Tensor::from_slice(&flat).to_kind(now.kind()).to_device(now.device())
        };
        generated.where_self(stale, &before)
    }

    /// Means over the batch's tokens, as this microbatch's parts of them.
    fn observe(
        &self,
        tokens: &Tokens,
        batch: &grpo::Batch,
        objective: &grpo::Objective,
        stale: &Tensor,
    ) -> Vec<(&'static str, f64)> {
        let _no_grad = tch::no_grad_guard();
        let n = self.counts.tokens as f64;
        let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        let apart = (batch.lp - batch.generated).abs().exp() * stale.logical_not();
        let mut metrics = vec![
            (PROB_ERROR, sum(&apart) / self.fresh_tokens.max(1) as f64),
            ("train/entropy", sum(&tokens.entropy) / n),
            ("train/clip_ratio", grpo::clipped_tokens(batch, &objective.params) / n),
        ];
        if let Some(reference) = batch.reference {
            metrics.push(("train/kl", sum(&grpo::k3(batch.lp, batch.old, reference)) / n));
        }
        metrics
    }
}

/// One advantage per completion, by group.
fn advantages(groups: &[Group], form: Advantage) -> Vec<Vec<f64>> {
    let names: BTreeSet<&String> = groups
        .iter()
        .flat_map(|group| group.completions.iter().flat_map(|c| c.rewards.iter().map(|(name, _)| name)))
        .collect();
    let completions: Vec<&Completion> = groups.iter().flat_map(|group| &group.completions).collect();
    let components: Vec<Vec<f64>> = completions
        .iter()
        .map(|completion| {
            let part = |name: &String| {
                let parts = completion.rewards.iter().filter(|(other, _)| other == name);
                parts.map(|(_, value)| value).sum()
            };
            names.iter().map(|name| part(name)).collect()
        })
        .collect();
    let total: Vec<f64> = completions.iter().map(|completion| completion.total()).collect();
    let tokens: Vec<usize> = completions.iter().map(|c| c.generated.len()).collect();
    let mut start = 0;
    let ranges: Vec<_> = groups
        .iter()
        .map(|group| {
            start += group.completions.len();
            start - group.completions.len()..start
        })
        .collect();
    let all = form(&Rewards {
        total: &total,
        components: &components,
        weights: &vec![1.0; names.len()],
        tokens: &tokens,
        groups: &ranges,
    });
    ranges.into_iter().map(|range| all[range].to_vec()).collect()
}
