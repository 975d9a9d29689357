//! Small pieces that the training loops share: set-up, batches, and the metrics of a step.

use std::path::Path;

use spec::kinds::{self, Length, Training};
use tch::Device;
use trace::{Category, Mark};
use train::{
    Accumulated, Checkpointing, Meter, Optimizer, OptimizerConfig, Policy, PolicyConfig, Schedule,
    Shape, StepStats,
};

use crate::failure::{Failure, Result};
use crate::report::Metrics;
use crate::stage::{Stage, compute_kind};

/// How this stage's policies compute.
pub fn policy_config(stage: &Stage, dtype: kinds::Dtype) -> PolicyConfig {
    let resources = &stage.job.resources;
    PolicyConfig {
        kind: compute_kind(dtype),
        device: stage.device,
        checkpointing: match resources.activation_checkpointing {
            spec::placement::ActivationCheckpointing::None => Checkpointing::None,
            spec::placement::ActivationCheckpointing::Selective => Checkpointing::Selective,
            spec::placement::ActivationCheckpointing::Full => Checkpointing::Full,
        },
        microbatch_tokens: resources.microbatch_tokens as usize,
        head_chunk: Some(resources.head_chunk as usize),
        reshard: resources.reshard,
        offload: resources.offload,
        ..PolicyConfig::default()
    }
}

/// The policy of the model in `dir`, to be trained.
pub fn policy(stage: &Stage, dir: &Path, training: &Training) -> Result<Policy> {
    let mut config = policy_config(stage, training.dtype);
    if !training.packing {
        // a unit over the budget gets a microbatch of its own
        config.microbatch_tokens = 1;
    }
    config.decay_embeddings = training.decay_embeddings;
    config.router_aux_loss_coef = training.router_aux_loss_coef;
    Ok(Policy::load(dir, config, stage.gang.groups.clone())?)
}

/// A model that only scores: a reference, or what `score` and `evaluate` look at.
pub fn scorer(stage: &Stage, dir: &Path, dtype: kinds::Dtype) -> Result<Policy> {
    let config = policy_config(stage, dtype);
    Ok(Policy::load(dir, config, stage.gang.groups.clone())?)
}

/// Writes the trained model; every rank gives its slices.
pub fn export(stage: &Stage, policy: &Policy) -> Result<()> {
    Ok(policy.export(stage.output("model")?, None)?)
}

/// A fresh optimizer.
pub fn optimizer(training: &Training) -> Optimizer {
    let config = match training.optimizer {
        kinds::Optimizer::Adamw => OptimizerConfig::AdamW {
            beta1: training.betas[0],
            beta2: training.betas[1],
            eps: training.eps,
            weight_decay: training.weight_decay,
        },
        kinds::Optimizer::Sgd => OptimizerConfig::Sgd {
            momentum: 0.0,
            weight_decay: training.weight_decay,
        },
    };
    Optimizer::new(
        config,
        (training.grad_clip > 0.0).then_some(training.grad_clip),
    )
}

/// The learning rate over `steps` steps.
pub fn schedule(training: &Training, steps: u64) -> Schedule {
    Schedule {
        lr: training.lr,
        shape: match training.schedule {
            kinds::Schedule::Constant => Shape::Constant,
            kinds::Schedule::Linear => Shape::Linear,
            kinds::Schedule::Cosine => Shape::Cosine,
            kinds::Schedule::Wsd => Shape::Wsd,
        },
        warmup: training.warmup,
        steps,
        decay: training.decay,
        final_lr: training.final_lr,
    }
}

/// The step after which the stage ends: its last, or the one that `until` says.
pub fn end(training: &Training, steps: u64) -> Result<u64> {
    match training.until {
        Some(until) if until > steps => Err(Failure::config(
            format!("it is to stop after step {until}, and the data is for {steps} steps"),
            format!("name a step from 1 to {steps}"),
        )),
        until => Ok(until.unwrap_or(steps)),
    }
}

/// Which rows each step takes: a function of the step, so that nothing is skipped or repeated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Batches {
    pub steps: u64,
    size: u64,
    /// Rows taken in all; the last batch may be smaller than the others.
    rows: u64,
}

impl Batches {
    /// Over `rows` rows of data.
    pub fn new(training: &Training, rows: usize) -> Batches {
        let size = training.batch_size;
        match training.length {
            Length::Steps(steps) => Batches {
                steps,
                size,
                rows: steps * size,
            },
            Length::Epochs(epochs) => {
                let rows = ((rows as f64 * epochs).ceil() as u64).max(1);
                Batches {
                    steps: rows.div_ceil(size),
                    size,
                    rows,
                }
            }
        }
    }

    /// Where step `step` starts in the stream of rows.
    pub fn cursor(&self, step: u64) -> u64 {
        step * self.size
    }

    /// How many rows it takes.
    pub fn len(&self, step: u64) -> usize {
        self.size.min(self.rows.saturating_sub(self.cursor(step))) as usize
    }

    /// Rows taken in all.
    pub fn rows(&self) -> u64 {
        self.rows
    }
}

/// Times the parts of a step, which are phases of its trace if it has one.
pub struct Clock {
    start: Mark,
    lap: Mark,
    laps: Vec<(&'static str, f64)>,
}

impl Clock {
    /// Of a step, by its number: the first is 1.
    pub fn start(stage: &Stage, step: u64) -> Clock {
        stage.profile.step(step);
        Clock {
            start: Mark::now(),
            lap: Mark::now(),
            laps: Vec::new(),
        }
    }

    /// Ends a part; its seconds are reported as `timing/<name>`.
    pub fn lap(&mut self, name: &'static str) {
        let now = Mark::now();
        trace::lap(Category::Phase, name, &self.lap, &now);
        self.laps.push((name, now.since(&self.lap)));
        self.lap = now;
    }

    /// Adds the times so far.
    pub fn report(&self, metrics: &mut Metrics) {
        for (name, seconds) in &self.laps {
            metrics.insert(format!("timing/{name}"), *seconds);
        }
        metrics.insert("timing/step".into(), self.start.elapsed());
    }
}

/// The metrics that every training step has.
pub fn step_metrics(
    done: &Accumulated,
    update: &StepStats,
    lr: f64,
    clock: &Clock,
    meter: &Meter,
) -> Metrics {
    let mut metrics: Metrics = done.metrics.0.clone().into_iter().collect();
    metrics.insert("train/loss".into(), done.loss);
    metrics.insert("train/grad_norm".into(), update.grad_norm);
    metrics.insert("train/lr".into(), lr);
    if update.skipped_total > 0 {
        metrics.insert("train/skipped_steps".into(), update.skipped_total as f64);
    }
    clock.report(&mut metrics);
    let seconds = clock.start.elapsed();
    for (name, value) in meter.rates(done.work, seconds) {
        metrics.insert(name.into(), value);
    }
    metrics
}

/// `memory/peak_bytes`: the most bytes of tensors that lived at once on one rank since this was last asked, on the rank
/// with the most. On a CPU they are counted as libtorch takes and gives them back; a GPU's allocator counts its own.
pub fn memory(stage: &Stage) -> Result<Metrics> {
    let peak = match stage.device {
        Device::Cpu => torch::memory::peak(),
        device => torch::memory::device_peak(device).map_err(train::Error::from)?,
    };
    let most = stage.gang.most(peak, "memory")?;
    Ok(Metrics::from([("memory/peak_bytes".into(), most as f64)]))
}

/// Whether something done every `every` steps (0: at the end only) is due after `step` steps.
pub fn due(every: u64, step: u64, steps: u64) -> bool {
    step == steps || (every > 0 && step.is_multiple_of(every))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(length: Length) -> Training {
        let mut with = kinds::sft::Sft {
            batch_size: 4,
            ..Default::default()
        };
        match length {
            Length::Steps(steps) => with.steps = Some(steps),
            Length::Epochs(epochs) => with.epochs = Some(epochs),
        }
        with.training()
    }

    #[test]
    fn every_row_is_taken_once_per_epoch() {
        let batches = Batches::new(&training(Length::Epochs(1.0)), 10);
        assert_eq!(batches.steps, 3);
        let taken: Vec<usize> = (0..3).map(|step| batches.len(step)).collect();
        assert_eq!(taken, [4, 4, 2]);
        let batches = Batches::new(&training(Length::Steps(5)), 10);
        assert_eq!(
            (batches.steps, batches.len(4), batches.cursor(4)),
            (5, 4, 16)
        );
    }

    #[test]
    fn what_is_due_is_due_at_the_end_too() {
        let steps: Vec<u64> = (1..=7).filter(|step| due(3, *step, 7)).collect();
        assert_eq!(steps, [3, 6, 7]);
        assert_eq!((1..=7).filter(|step| due(0, *step, 7)).count(), 1);
    }
}
