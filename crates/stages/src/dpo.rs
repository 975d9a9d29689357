//! Direct preference optimisation and its relatives: raise the chosen completion of each pair
//! above the rejected one, relative to a reference.
//!
//! Departures from the usual script:
//! - a pair's shared prompt is computed once, in training and in scoring;
//! - reference log-probabilities come from the `logprobs` input (whose tokens must match), or are
//!   computed before the first step in the batches of training, so that a policy that equals its
//!   reference has a loss of exactly ln 2; checkpoints carry them, so a resumed run does not
//!   compute them again;
//! - log-ratios are taken token by token and summed after, which loses less in fp32 than the
//!   difference of two long sums.

use data::example;
use data::order::Order;
use serde::{Deserialize, Serialize};
use spec::kinds::dpo::Dpo;
use tch::{Device, Kind};
use train::loss::{Rows, dpo, find, sft};
use train::{LossOut, Meter, Policy, Tokens, Unit};

use crate::checkpoints::{Checkpoints, Next};
use crate::examples::{self, Examples};
use crate::failure::{Failure, Result};
use crate::reference::{self, Logprobs};
use crate::report::Metrics;
use crate::stage::{Done, Stage};
use crate::training::{self, Batches, Clock, due};

/// What a checkpoint holds beside weights, optimizer and reference log-probabilities.
#[derive(Serialize, Deserialize, Default)]
struct State {
    last: Metrics,
}

/// The loss as the recipe chose it.
struct Objective {
    loss: &'static dpo::Loss,
    params: dpo::Params,
    sft_weight: f64,
    device: Device,
}

pub fn run(stage: &Stage) -> Result<Done> {
    let with: Dpo = stage.with()?;
    let training = with.training();
    let tokenizer = stage.tokenizer("model")?;
    let mut policy = training::policy(stage, stage.input("model")?, &training)?;
    tokenizer.check_fits(policy.decoder().config.vocab_size)?;
    let limits = example::Limits {
        max_length: with.max_length as usize,
        overlong: examples::overlong(with.overlong),
    };
    let pairs = examples::pairs(stage, "data", &tokenizer, &limits)?.required("data")?;
    let held_out = examples::pairs(stage, "validation", &tokenizer, &limits)?;
    stage.report.metrics(0, pairs.metrics());

    let order = Order::new(pairs.items.len(), training.seed);
    let batches = Batches::new(&training, pairs.items.len());
    let objective = Objective {
        loss: find(dpo::LOSSES, &crate::word(&with.loss)).map_err(unknown)?,
        params: dpo::Params {
            beta: with.beta,
            label_smoothing: with.label_smoothing,
            gamma: with.gamma,
        },
        sft_weight: with.sft_weight,
        device: stage.device,
    };

    let mut checkpoints = Checkpoints::open(stage)?;
    let references = if objective.loss.reference {
        let once = batches.rows().min(pairs.items.len() as u64) as usize;
        let rows: Vec<Vec<usize>> = chunks(&order.take(0, once), training.batch_size as usize);
        Some(references(
            stage,
            &with,
            &mut checkpoints,
            &pairs,
            &rows,
            &held_out,
        )?)
    } else {
        None
    };
    let (reference, held_out_reference) = match &references {
        Some((train, validation)) => (Some(train), Some(validation)),
        None => (None, None),
    };

    let mut optimizer = training::optimizer(&training);
    let resumed = checkpoints.resume(&mut policy, &mut optimizer)?;
    let (start, mut state) = resumed.map_or((0, State::default()), |r| (r.step, r.state));
    let schedule = training::schedule(&training, batches.steps);
    let end = training::end(&training, batches.steps)?;
    let meter = Meter::measure(policy.config().kind, stage.device, stage.gang.size);

    for step in start..end {
        let mut clock = Clock::start(stage, step + 1);
        let rows = order.take(batches.cursor(step), batches.len(step));
        let batch: Vec<Unit> = rows.iter().map(|row| pairs.items[*row].clone()).collect();
        let counts = Counts::of(&batch);
        clock.lap("data");
        let done = policy.accumulate(&batch, &|tokens| {
            let reference = reference.map(|known| known.rows(tokens, |unit| rows[unit]));
            Ok(objective.evaluate(tokens, reference.transpose()?.as_ref(), &counts, NAMES))
        })?;
        let lr = schedule.at(step);
        let update = policy.apply(&mut optimizer, lr)?;
        clock.lap("train");

        let step = step + 1;
        let mut metrics = training::step_metrics(&done, &update, lr, &clock, &meter);
        if due(with.validate_every, step, batches.steps) {
            metrics.extend(validate(
                &policy,
                &objective,
                &held_out.items,
                held_out_reference,
            )?);
        }
        metrics.extend(training::memory(stage)?);
        state.last = metrics.clone();
        stage.report.metrics(step, metrics);
        stage.report.progress(step, end);
        if checkpoints.after(step, &policy, &optimizer, &state, &state.last)? == Next::Stop {
            return Ok(Done::Stopped(step));
        }
    }
    training::export(stage, &policy)?;
    let mut summary = state.last;
    summary.extend(pairs.metrics());
    Ok(Done::Finished(summary))
}

/// What the batch's sums are divided by.
struct Counts {
    pairs: usize,
    chosen_tokens: usize,
}

impl Counts {
    fn of(batch: &[Unit]) -> Counts {
        Counts {
            pairs: batch.len(),
            chosen_tokens: batch.iter().map(|unit| unit.branches[0].masked()).sum(),
        }
    }
}

/// Names of what is measured: in training, and on held-out pairs.
type Names = [&'static str; 6];
const NAMES: Names = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
];
const HELD_OUT: Names = [
    "validation/rewards/chosen",
    "validation/rewards/rejected",
    "validation/rewards/accuracies",
    "validation/rewards/margins",
    "validation/logps/chosen",
    "validation/logps/rejected",
];

impl Objective {
    /// The loss of the pairs at hand, and the usual measures of them. A reward is `beta` times
    /// the log-ratio to the reference (without one, the log-probability).
    fn evaluate(
        &self,
        tokens: &Tokens,
        reference: Option<&tch::Tensor>,
        counts: &Counts,
        names: Names,
    ) -> LossOut {
        let spans: Vec<_> = tokens
            .units
            .iter()
            .map(|unit| (unit.branches[0].clone(), unit.branches[1].clone()))
            .collect();
        let (chosen, rejected): (Vec<_>, Vec<_>) = spans.iter().cloned().unzip();
        let chosen = Rows::new(&chosen, self.device).sum(&tokens.logp);
        let rejected = Rows::new(&rejected, self.device).sum(&tokens.logp);
        let pairs = dpo::Pairs::new(&tokens.logp, reference, &spans, self.device);
        let per_pair = (self.loss.per_pair)(&pairs, &self.params);
        let mut loss = per_pair.sum(per_pair.kind()) / counts.pairs as f64;
        if self.sft_weight > 0.0 {
            loss += sft::nll(&chosen, counts.chosen_tokens) * self.sft_weight;
        }
        let mean = |x: &tch::Tensor| x.sum(Kind::Double).double_value(&[]) / counts.pairs as f64;
        let (dc, dr) = (
            &pairs.chosen * self.params.beta,
            &pairs.rejected * self.params.beta,
        );
        let values = [
            mean(&dc),
            mean(&dr),
            mean(&dc.gt_tensor(&dr)),
            mean(&(&dc - &dr)),
            mean(&chosen),
            mean(&rejected),
        ];
        LossOut {
            loss,
            metrics: names.into_iter().zip(values).collect(),
        }
    }
}

/// Reference log-probabilities of the pairs of `batches` and of the held-out pairs.
fn references(
    stage: &Stage,
    with: &Dpo,
    checkpoints: &mut Checkpoints,
    pairs: &Examples,
    batches: &[Vec<usize>],
    held_out: &Examples,
) -> Result<(Logprobs, Logprobs)> {
    let known = match stage.dataset("logprobs")? {
        Some(scored) => Some(Logprobs::from_score(&scored, &pairs.items, &pairs.rows)?),
        None => reference::restore(checkpoints, "reference.safetensors")?,
    };
    // the `logprobs` input covers `data` only; held-out pairs need the model itself
    let missing = known.is_none() || !held_out.items.is_empty();
    let model = match missing {
        true => {
            let dir = stage
                .optional("reference")
                .map_or_else(|| stage.input("model"), Ok)?;
            Some(training::scorer(stage, dir, with.dtype)?)
        }
        false => None,
    };
    let train = match (known, &model) {
        (Some(known), _) => known,
        (None, Some(model)) => {
            stage.report.info("computing reference log-probabilities");
            Logprobs::compute(model, &pairs.items, batches)?
        }
        (None, None) => Logprobs::default(),
    };
    reference::carry(stage, checkpoints, "reference.safetensors", &train)?;
    let all: Vec<usize> = (0..held_out.items.len()).collect();
    let validation = match &model {
        Some(model) => Logprobs::compute(model, &held_out.items, &chunks(&all, 256))?,
        None => Logprobs::default(),
    };
    Ok((train, validation))
}

fn chunks(rows: &[usize], size: usize) -> Vec<Vec<usize>> {
    rows.chunks(size.max(1)).map(<[usize]>::to_vec).collect()
}

/// Loss and measures on held-out pairs.
fn validate(
    policy: &Policy,
    objective: &Objective,
    pairs: &[Unit],
    reference: Option<&Logprobs>,
) -> Result<Metrics> {
    let _validate = trace::phase("validate").with("pairs", pairs.len());
    let mut metrics = Metrics::new();
    if pairs.is_empty() {
        return Ok(metrics);
    }
    let counts = Counts::of(pairs);
    let mut first = 0;
    for part in pairs.chunks(256) {
        let values = policy.logprobs(part)?;
        let (logp, units) = reference::flatten(&values, objective.device);
        let entropy = tch::Tensor::zeros([0], (logp.kind(), logp.device()));
        let tokens = Tokens {
            logp,
            entropy,
            units: &units,
        };
        let known = reference
            .map(|known| known.rows(&tokens, |unit| first + unit))
            .transpose()?;
        let out = objective.evaluate(&tokens, known.as_ref(), &counts, HELD_OUT);
        *metrics.entry("validation/loss".into()).or_default() += out.loss.double_value(&[]);
        for (name, value) in out.metrics {
            *metrics.entry(name.into()).or_default() += value;
        }
        first += part.len();
    }
    Ok(metrics)
}

fn unknown(e: train::loss::UnknownName) -> Failure {
    Failure::config(e.to_string(), "")
}
