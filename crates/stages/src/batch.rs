//! Groups as the trainer takes them: units, and what the loss needs to know of each token.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use spec::kinds::grpo::{OverlongCompletion, PlainOverlong};
use tch::{Device, Kind, Tensor};
use train::loss::advantage::{Advantage, Rewards};
use train::loss::{Rows, grpo};
use train::{Accumulated, LossOut, Policy, Tokens, Unit};

use crate::failure::Result;
use crate::group::{Completion, Group, PROB_ERROR};

/// Under this name the loss travels among the metrics of a microbatch.
const LOSS: &str = "train/loss";

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
            counts: grpo::Counts {
                tokens: 0,
                sequences: 0,
                max_tokens,
            },
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
            let kept = group
                .completions
                .into_iter()
                .zip(advantages)
                .filter(|(c, _)| keep(c));
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
    ///
    /// `known`: nothing but the ratio enters the loss. Then the gradient of the first update is
    /// known beforehand, unless a group is stale, and backward is fused into forward.
    pub fn accumulate(
        &self,
        policy: &mut Policy,
        objective: &grpo::Objective,
        first: bool,
        known: bool,
    ) -> Result<Accumulated> {
        if !(known && first) || self.stale.contains(&true) {
            let loss = |tokens: &Tokens| Ok(self.loss(tokens, objective, first));
            return Ok(policy.accumulate(&self.units, &loss)?);
        }
        let coefficients = self.coefficients(objective);
        let observe = |tokens: &Tokens| {
            let LossOut { loss, mut metrics } = self.loss(tokens, objective, first);
            metrics.push((LOSS, loss.double_value(&[])));
            Ok(metrics)
        };
        let coefficient = |unit: usize, branch: usize, i: usize| coefficients[unit][branch][i];
        let mut done = policy.accumulate_known(&self.units, &coefficient, Some(&observe))?;
        let observed = done.metrics.0.remove(LOSS);
        done.loss = observed.map_or(done.loss, |loss| loss + done.balance);
        Ok(done)
    }

    /// By unit, branch and token.
    fn coefficients(&self, objective: &grpo::Objective) -> Vec<Vec<Vec<f64>>> {
        let mut start = 0;
        let branches = self.units.iter().flat_map(|unit| &unit.branches);
        let spans: Vec<_> = branches
            .map(|branch| {
                start += branch.masked();
                start - branch.masked()..start
            })
            .collect();
        let rows = Rows::new(&spans, Device::Cpu);
        let advantages: Vec<f64> = self
            .known
            .iter()
            .flatten()
            .map(|known| known.advantage)
            .collect();
        let advantages = rows.spread(&Tensor::from_slice(&advantages));
        let flat = grpo::coefficients(objective, &advantages, &rows, &self.counts);
        let flat: Vec<f64> = Vec::try_from(flat).unwrap_or_default();
        let mut spans = spans.into_iter();
        let by_unit = |unit: &Unit| {
            spans
                .by_ref()
                .take(unit.branches.len())
                .map(|span| flat[span].to_vec())
                .collect()
        };
        self.units.iter().map(by_unit).collect()
    }

    fn loss(&self, tokens: &Tokens, objective: &grpo::Objective, first: bool) -> LossOut {
        let lp = &tokens.logp;
        let like = (lp.kind(), lp.device());
        let gather = |value: &dyn Fn(&Known) -> &[f32]| {
            let known = tokens.units.iter().flat_map(|span| &self.known[span.unit]);
            let flat: Vec<f32> = known
                .flat_map(|known| value(known).iter().copied())
                .collect();
            Tensor::from_slice(&flat).to_kind(like.0).to_device(like.1)
        };
        let spans: Vec<_> = tokens
            .units
            .iter()
            .flat_map(|unit| unit.branches.clone())
            .collect();
        let sequences = Rows::new(&spans, like.1);
        let advantages: Vec<f64> = tokens
            .units
            .iter()
            .flat_map(|span| self.known[span.unit].iter().map(|known| known.advantage))
            .collect();
        let advantages = Tensor::from_slice(&advantages)
            .to_kind(like.0)
            .to_device(like.1);
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
        LossOut {
            loss,
            metrics: self.observe(tokens, &batch, objective, &stale),
        }
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
            let flat: Vec<f32> = tokens
                .units
                .iter()
                .flat_map(|span| kept[&span.unit].iter().copied())
                .collect();
            Tensor::from_slice(&flat)
                .to_kind(now.kind())
                .to_device(now.device())
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
            (
                "train/clip_ratio",
                grpo::clipped_tokens(batch, &objective.params) / n,
            ),
        ];
        if let Some(reference) = batch.reference {
            metrics.push((
                "train/kl",
                sum(&grpo::k3(batch.lp, batch.old, reference)) / n,
            ));
        }
        metrics
    }
}

/// One advantage per completion, by group.
fn advantages(groups: &[Group], form: Advantage) -> Vec<Vec<f64>> {
    let names: BTreeSet<&String> = groups
        .iter()
        .flat_map(|group| {
            group
                .completions
                .iter()
                .flat_map(|c| c.rewards.iter().map(|(name, _)| name))
        })
        .collect();
    let completions: Vec<&Completion> =
        groups.iter().flat_map(|group| &group.completions).collect();
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
    let total: Vec<f64> = completions
        .iter()
        .map(|completion| completion.total())
        .collect();
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
    ranges
        .into_iter()
        .map(|range| all[range].to_vec())
        .collect()
}
