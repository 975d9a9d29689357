//! Group-relative policy optimisation and its family: sample a group of completions of each
//! prompt, reward them, and move the policy towards the better ones of each group.
//!
//! Each step: rollout -> reward -> advantage -> (reference log-probabilities) -> update(s) ->
//! validate -> checkpoint.
//!
//! Departures from the papers and the usual scripts:
//! - with one update per batch the old policy is the current one, so there is no extra forward
//!   for it; with more, the first update's own log-probabilities are kept as `old`;
//! - with dynamic sampling the groups that are left over wait for the next step, in the
//!   checkpoint too; they are stale by then, and their `old` is what the sampler recorded;
//! - a rollout that failed is no reward of zero: it leaves its group;
//! - `k1` is taken from the reward, as its gradient as a loss is zero in expectation;
//! - a group's prompt is computed once, in training as in sampling;
//! - of a model with experts, updates send tokens where sampling sent them (`routing_replay`); the
//!   routers' weights are computed anew there; a reference routes by itself;
//! - rewards, baselines and variances are float64.

use data::env::{Environment, Split};
use rollout::Sampling;
use serde::{Deserialize, Serialize};
use spec::kinds::grpo::{Correction, Grpo, Kl, OverlongCompletion};
use train::loss::advantage::{self, Advantage};
use train::loss::{find, grpo};
use train::{Meter, Policy};

use crate::batch::Batch;
use crate::checkpoints::{Checkpoints, Next};
use crate::failure::{Failure, Result};
use crate::group::{self, Group};
use crate::play::{self, Prompt};
use crate::report::Metrics;
use crate::serving::Serving;
use crate::stage::{Done, Stage};
use crate::training::{self, Clock, due};

/// Rounds of rollouts that dynamic sampling makes before it goes on with what it has.
const ROUNDS: usize = 10;

/// Above this, sampler and trainer disagree too much to trust the ratios.
const PROB_ERROR_ALARM: f64 = 1.05;

/// What a checkpoint holds beside weights and optimizer.
#[derive(Serialize, Deserialize, Default)]
struct State {
    /// Prompts taken so far: the next is this one.
    cursor: u64,
    /// Groups sampled but not yet trained on.
    surplus: Vec<Group>,
    last: Metrics,
}

/// What does not change from step to step.
struct Run<'a> {
    stage: &'a Stage,
    with: &'a Grpo,
    tokenizer: &'a data::Tokenizer,
    environment: &'a dyn Environment,
    sampling: Sampling,
}

pub fn run(stage: &Stage) -> Result<Done> {
    let with: Grpo = stage.with()?;
    let training = with.training();
    let steps = with.steps.unwrap_or(0);
    let tokenizer = stage.tokenizer("model")?;
    let environment = play::environment(stage, &with.environment)?;
    let mut policy = training::policy(stage, stage.input("model")?, &training)?;
    policy.config_mut().temperature = with.temperature;
    tokenizer.check_fits(policy.decoder().config.vocab_size)?;
    let reference = reference(stage, &with)?;
    let objective = objective(&with)?;
    let advantage: Advantage = *named(advantage::ADVANTAGES, &with.advantage)?;
    let run = Run {
        stage,
        with: &with,
        tokenizer: &tokenizer,
        environment: &*environment,
        sampling: Sampling {
            max_tokens: with.max_tokens as usize,
            temperature: with.temperature,
            top_p: with.top_p,
            top_k: with.top_k as usize,
            stop: with.stop.clone(),
            seed: with.seed,
            ..Sampling::default()
        },
    };

    // only the ratio enters the loss: the gradient of the first update is known beforehand
    let known = objective.kl.is_none() && with.correction == Correction::None;

    let mut optimizer = training::optimizer(&training);
    let checkpoints = Checkpoints::open(stage)?;
    let resumed = checkpoints.resume(&mut policy, &mut optimizer)?;
    let (start, mut state) = resumed.map_or((0, State::default()), |r| (r.step, r.state));
    let schedule = training::schedule(&training, steps);
    let end = training::end(&training, steps)?;
    let meter = Meter::measure(policy.config().kind, stage.device, stage.gang.size);

    for step in start..end {
        let mut clock = Clock::start(stage, step + 1);
        let mut metrics = Metrics::new();
        let mut groups = run.rollout(&policy, &mut state, &mut metrics)?;
        clock.lap("rollout");

        if let Some(reference) = &reference {
            group::add_reference(&mut groups, reference)?;
        }
        run.shape_rewards(&mut groups);
        group::measure(&groups, &mut metrics);
        let batch = Batch::new(
            groups,
            advantage,
            &run.with.overlong,
            with.max_tokens as usize,
        );
        clock.lap("reward");

        let lr = schedule.at(step);
        if batch.is_empty() {
            stage
                .report
                .warn(format!("step {}: no group to train on", step + 1));
        }
        for update in 0..if batch.is_empty() { 0 } else { with.updates } {
            let done = batch.accumulate(&mut policy, &objective, update == 0, known)?;
            let applied = policy.apply(&mut optimizer, lr)?;
            // of several updates the first is on the policy that sampled: what is compared
            if update == 0 {
                metrics.extend(training::step_metrics(&done, &applied, lr, &clock, &meter));
            }
        }
        clock.lap("train");
        alarm(stage, &metrics);

        let step = step + 1;
        if with.validate_every > 0 && due(with.validate_every, step, steps) {
            metrics.extend(run.validate(&policy)?);
            clock.lap("validate");
        }
        clock.report(&mut metrics);
        metrics.extend(training::memory(stage)?);
        state.last = metrics.clone();
        stage.report.metrics(step, metrics);
        stage.report.progress(step, end);
        if checkpoints.after(step, &policy, &optimizer, &state, &state.last)? == Next::Stop {
            return Ok(Done::Stopped(step));
        }
    }
    training::export(stage, &policy)?;
    Ok(Done::Finished(state.last))
}

impl Run<'_> {
    /// A batch of groups: those that waited, then fresh ones. With dynamic sampling groups that
    /// teach nothing are dropped and replaced, and what is too much waits for the next step.
    fn rollout(
        &self,
        policy: &Policy,
        state: &mut State,
        metrics: &mut Metrics,
    ) -> Result<Vec<Group>> {
        let size = self.with.batch_size as usize;
        let mut groups = std::mem::take(&mut state.surplus);
        groups.iter_mut().for_each(|group| group.stale = true);
        let waited = groups.len();
        let rounds = if self.with.dynamic_sampling {
            ROUNDS
        } else {
            1
        };
        let (mut sampled, mut failed, mut flat) = (0usize, 0usize, 0usize);
        let serving = Serving::new(self.stage, policy)?;
        for _ in 0..rounds {
            if groups.len() >= size {
                break;
            }
            let fresh = self.fresh(&serving, &mut state.cursor, size)?;
            sampled += fresh.len();
            for group in fresh {
                failed += group.failures;
                let teaches = !advantage::is_constant(&group.totals());
                flat += usize::from(!teaches);
                if group.completions.len() > 1 && (teaches || !self.with.dynamic_sampling) {
                    groups.push(group);
                }
            }
        }
        if sampled > 0 && failed == sampled * self.with.group_size as usize {
            return Err(Failure::failed(
                "W0404",
                format!("all {failed} rollouts of a step failed"),
                "the environment's messages are above",
            ));
        }
        state.surplus = groups.split_off(groups.len().min(size));
        metrics.insert("train/prompts".into(), state.cursor as f64);
        metrics.insert("train/groups_sampled".into(), sampled as f64);
        metrics.insert("train/groups_stale".into(), waited.min(size) as f64);
        metrics.insert("train/groups_zero_std".into(), flat as f64);
        metrics.insert("train/rollouts_failed".into(), failed as f64);
        Ok(groups)
    }

    /// Groups of the next `count` prompts, sampled from the policy as it is.
    fn fresh(&self, serving: &Serving, cursor: &mut u64, count: usize) -> Result<Vec<Group>> {
        let prompts = (*cursor..*cursor + count as u64)
            .map(|id| {
                let task = self.environment.task(Split::Train, id, self.with.seed)?;
                Ok(Prompt { id, task })
            })
            .collect::<Result<Vec<Prompt>>>()?;
        *cursor += count as u64;
        let size = self.with.group_size as usize;
        let environment = self.environment;
        let draw = play::Draw {
            samples: size,
            sampling: &self.sampling,
            routes: self.with.routing_replay,
        };
        let played = play::play(serving, self.tokenizer, environment, &prompts, &draw)?;
        let groups: Vec<Group> = played
            .chunks(size)
            .map(|group| Group::new(group.to_vec()))
            .collect();
        for why in groups.iter().filter_map(|group| group.failed.as_ref()) {
            self.stage.report.warn(format!("a rollout failed: {why}"));
        }
        Ok(groups)
    }

    /// The overlong penalty and the KL that belongs in the reward.
    fn shape_rewards(&self, groups: &mut [Group]) {
        let max = self.with.max_tokens as usize;
        for completion in groups.iter_mut().flat_map(|group| &mut group.completions) {
            if let OverlongCompletion::Penalty(p) = self.with.overlong {
                let len = completion.generated.len();
                let penalty = advantage::overlong_penalty(len, max, p.buffer as usize, p.factor);
                completion.rewards.push(("overlong".into(), penalty));
            }
            if self.with.kl == Kl::K1 && self.with.kl_beta > 0.0 {
                let beta = self.with.kl_beta;
                let kl = grpo::k1_in_reward(&completion.generated, &completion.reference, beta);
                completion.rewards.push(("kl".into(), -kl));
            }
        }
    }

    /// Greedy accuracy and reward on held-out tasks.
    fn validate(&self, policy: &Policy) -> Result<Metrics> {
        let prompts = (0..self.with.validate_examples)
            .map(|id| {
                Ok(Prompt {
                    id,
                    task: self.environment.task(Split::Test, id, self.with.seed)?,
                })
            })
            .collect::<Result<Vec<Prompt>>>()?;
        let greedy = Sampling {
            temperature: 0.0,
            ..self.sampling.clone()
        };
        let environment = self.environment;
        let draw = play::Draw {
            samples: 1,
            sampling: &greedy,
            routes: false,
        };
        let serving = Serving::new(self.stage, policy)?;
        let played = play::play(&serving, self.tokenizer, environment, &prompts, &draw)?;
        let rewarded: Vec<_> = played
            .iter()
            .filter(|played| played.rewards.is_some())
            .collect();
        let n = rewarded.len().max(1) as f64;
        let accuracy = rewarded
            .iter()
            .map(|played| played.reward("correct"))
            .sum::<f64>()
            / n;
        Ok(Metrics::from([("validation/accuracy".into(), accuracy)]))
    }
}

/// The reference of the KL term: the input, or where there is none the starting model.
fn reference(stage: &Stage, with: &Grpo) -> Result<Option<Policy>> {
    if with.kl_beta == 0.0 {
        return Ok(None);
    }
    let dir = stage
        .optional("reference")
        .map_or_else(|| stage.input("model"), Ok)?;
    let mut reference = training::scorer(stage, dir, with.dtype)?;
    reference.config_mut().temperature = with.temperature;
    Ok(Some(reference))
}

/// The loss as the recipe chose it, part by part.
fn objective(with: &Grpo) -> Result<grpo::Objective> {
    let term = match with.dual_clip {
        c if c > 0.0 => find(grpo::TERMS, "dual_clip").map_err(unknown)?,
        _ => named(grpo::TERMS, &with.ratio)?,
    };
    let kl = match with.kl {
        Kl::K1 => None,
        _ if with.kl_beta == 0.0 => None,
        _ => Some((*named(grpo::KLS, &with.kl)?, with.kl_beta)),
    };
    Ok(grpo::Objective {
        term: *term,
        correction: *named(grpo::CORRECTIONS, &with.correction)?,
        reduction: *named(grpo::REDUCTIONS, &with.reduction)?,
        kl,
        params: grpo::Params {
            clip_low: with.clip_low,
            clip_high: with.clip_high,
            clip_dual: with.dual_clip,
            correction_low: 1.0 / with.correction_cap,
            correction_high: with.correction_cap,
        },
    })
}

fn named<T>(
    table: &'static [train::loss::Named<T>],
    choice: &impl Serialize,
) -> Result<&'static T> {
    find(table, &crate::word(choice)).map_err(unknown)
}

fn unknown(e: train::loss::UnknownName) -> Failure {
    Failure::config(e.to_string(), "")
}

fn alarm(stage: &Stage, metrics: &Metrics) {
    if let Some(error) = metrics.get(group::PROB_ERROR)
        && *error > PROB_ERROR_ALARM
    {
        stage.report.warn(format!(
            "{} is {error:.4}: sampler and trainer disagree; use dtype = \"fp32\" or a `correction`",
            group::PROB_ERROR
        ));
    }
}
