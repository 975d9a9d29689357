//! Supervised fine-tuning: minimise the mean negative log-likelihood of the trained tokens.
//!
//! Departures from the usual script:
//! - the loss of a step is the sum over its tokens divided by their number over all ranks and
//!   microbatches, so neither accumulation nor ranks change it;
//! - rows are made into examples before the first step; those longer than `max_length` are
//!   truncated or dropped as the recipe says, and counted;
//! - the coefficient of each log-probability is known beforehand, so backward is fused into
//!   forward.

use data::example;
use data::order::Order;
use serde::{Deserialize, Serialize};
use spec::kinds::sft::Sft;
use train::loss::sft;
use train::{Meter, Policy, Unit};

use crate::checkpoints::{Checkpoints, Next};
use crate::examples;
use crate::failure::Result;
use crate::report::Metrics;
use crate::stage::{Done, Stage};
use crate::training::{self, Batches, Clock, due};

/// What a checkpoint holds beside weights and optimizer; the cursor follows from the step.
#[derive(Serialize, Deserialize, Default)]
struct State {
    last: Metrics,
}

pub fn run(stage: &Stage) -> Result<Done> {
    let with: Sft = stage.with()?;
    let training = with.training();
    let tokenizer = stage.tokenizer("model")?;
    let mut policy = training::policy(stage, stage.input("model")?, &training)?;
    tokenizer.check_fits(policy.decoder().config.vocab_size)?;
    let limits = example::Limits {
        max_length: with.max_length as usize,
        overlong: examples::overlong(with.overlong),
    };
    let train_on = examples::train_on(with.train_on);
    let read = |input| examples::sequences(stage, input, &tokenizer, train_on, &limits);
    let examples = read("data")?.required("data")?;
    let held_out = read("validation")?.items;
    stage.report.metrics(0, examples.metrics());

    let mut optimizer = training::optimizer(&training);
    let checkpoints = Checkpoints::open(stage)?;
    let resumed = checkpoints.resume(&mut policy, &mut optimizer)?;
    let (start, mut state) = resumed.map_or((0, State::default()), |r| (r.step, r.state));

    let order = Order::new(examples.items.len(), training.seed);
    let batches = Batches::new(&training, examples.items.len());
    let schedule = training::schedule(&training, batches.steps);
    let end = training::end(&training, batches.steps)?;
    let meter = Meter::measure(policy.config().kind, stage.device, stage.gang.size);

    for step in start..end {
        let mut clock = Clock::start(stage, step + 1);
        let rows = order.take(batches.cursor(step), batches.len(step));
        let batch: Vec<Unit> = rows
            .into_iter()
            .map(|row| examples.items[row].clone())
            .collect();
        let tokens = batch.iter().map(Unit::masked).sum();
        let coefficient = sft::coefficient(tokens);
        clock.lap("data");
        let done = policy.accumulate_known(&batch, &|_, _, _| coefficient, None)?;
        let lr = schedule.at(step);
        let update = policy.apply(&mut optimizer, lr)?;
        clock.lap("train");

        let step = step + 1;
        let mut metrics = training::step_metrics(&done, &update, lr, &clock, &meter);
        metrics.insert("train/tokens".into(), tokens as f64);
        if due(with.validate_every, step, batches.steps) {
            metrics.extend(validate(&policy, &held_out)?);
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
    summary.extend(examples.metrics());
    Ok(Done::Finished(summary))
}

/// `validation/loss` and `validation/perplexity` of held-out examples, if there are any.
fn validate(policy: &Policy, held_out: &[Unit]) -> Result<Metrics> {
    let _validate = trace::phase("validate").with("examples", held_out.len());
    let mut metrics = Metrics::new();
    let tokens: usize = held_out.iter().map(Unit::masked).sum();
    if tokens > 0 {
        let sum: f64 = examples::sums(policy, held_out)?.iter().flatten().sum();
        let loss = -sum / tokens as f64;
        metrics.insert("validation/loss".into(), loss);
        metrics.insert("validation/perplexity".into(), loss.exp());
    }
    Ok(metrics)
}
