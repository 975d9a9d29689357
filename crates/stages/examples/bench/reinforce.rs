//! GRPO: steps of 4 groups of 8 completions of 58 tokens after prompts of 26, sampled from the
//! policy and then trained on once, as the stage does it.

use std::time::Instant;

use rollout::{Request, Rollout, RolloutConfig, Sample, Sampling};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use train::loss::advantage::{self, Rewards};
use train::loss::{Rows, find, grpo};
use train::{Accumulated, Branch, Policy, Tokens, Unit};

use crate::Result;
use crate::measure::{Peer, Setup, median};
use crate::model::{self, LEARNING_RATE};

const GROUPS: usize = 4;
const SIZE: usize = 8;
const PROMPT: usize = 26;
const COMPLETION: usize = 58;

pub fn run(setup: &Setup, kind: Kind) -> Result<Value> {
    let mut policy = model::policy(setup, kind)?;
    let mut optimizer = model::optimizer();
    let objective = objective()?;
    let (mut step, mut flops) = (0, 0.0);
    let (mut rollouts, mut updates) = (Vec::new(), Vec::new());
    let timed = setup.time(kind, &mut || {
        let start = Instant::now();
        let samples = sample(&policy, step)?;
        rollouts.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let done = accumulate(&mut policy, &objective, step, &samples)?;
        policy.apply(&mut optimizer, LEARNING_RATE)?;
        updates.push(start.elapsed().as_secs_f64());
        // sampling is a third of training's work over the same tokens: the forward
        flops = done.work.flops * 4.0 / 3.0;
        step += 1;
        Ok(())
    })?;
    let peer = Peer {
        name: "TRL 1.16 GRPO, fp32",
        script: "grpo",
        rate: 26.0,
        target: if kind == Kind::Float { 2.0 } else { 4.0 },
    };
    let completions = (GROUPS * SIZE) as f64;
    let mut fields = timed.fields(setup, "completions/s", completions, flops, &peer);
    fields.insert("rollout_seconds_median".into(), json!(median(&rollouts)));
    fields.insert("update_seconds_median".into(), json!(median(&updates)));
    let work = json!({
        "groups": GROUPS, "group_size": SIZE, "prompt": PROMPT, "completion": COMPLETION,
    });
    fields.insert("work".into(), work);
    Ok(Value::Object(fields))
}

/// The recipe's defaults.
fn objective() -> Result<grpo::Objective> {
    Ok(grpo::Objective {
        term: *find(grpo::TERMS, "clip")?,
        correction: *find(grpo::CORRECTIONS, "none")?,
        reduction: *find(grpo::REDUCTIONS, "dapo")?,
        kl: None,
        params: grpo::Params {
            clip_low: 0.2,
            clip_high: 0.2,
            clip_dual: 0.0,
            correction_low: 0.5,
            correction_high: 2.0,
        },
    })
}

fn prompt(step: usize, group: usize) -> Vec<u32> {
    model::tokens(PROMPT, step * GROUPS + group)
}

/// In the order of groups, then of completions.
fn sample(policy: &Policy, step: usize) -> Result<Vec<Sample>> {
    let config = RolloutConfig::default();
    let mut rollout = Rollout::new(policy.decoder(), policy.weights(), config)?;
    let request = |group| Request {
        id: group as u64,
        prompt: prompt(step, group),
        samples: SIZE,
        sampling: Sampling {
            max_tokens: COMPLETION,
            ignore_eos: true,
            seed: step as u64,
            ..Sampling::default()
        },
    };
    let mut samples = rollout.run_all((0..GROUPS).map(request).collect())?;
    samples.sort_by_key(|sample| (sample.request, sample.sample));
    Ok(samples)
}

/// Gradients of the first and only update, with the measures that the stage takes beside it.
fn accumulate(
    policy: &mut Policy,
    objective: &grpo::Objective,
    step: usize,
    samples: &[Sample],
) -> Result<Accumulated> {
    let units: Vec<Unit> = samples
        .chunks(SIZE)
        .enumerate()
        .map(|(group, samples)| Unit {
            prefix: prompt(step, group),
            branches: samples
                .iter()
                .map(|sample| Branch {
                    tokens: sample.tokens.clone(),
                    mask: vec![true; sample.tokens.len()],
                })
                .collect(),
            ..Unit::default()
        })
        .collect();
    let device = policy.config().device;
    let counts = grpo::Counts {
        tokens: units.iter().map(Unit::masked).sum(),
        sequences: samples.len(),
        max_tokens: COMPLETION,
    };
    let advantages = Tensor::from_slice(&advantages(samples)?);
    let spans = spans(samples.len());
    let coefficients = {
        let rows = Rows::new(&spans, tch::Device::Cpu);
        let flat = grpo::coefficients(objective, &rows.spread(&advantages), &rows, &counts);
        Vec::<f64>::try_from(flat)?
    };
    let observe = |tokens: &Tokens| {
        let of_unit = |span: &train::UnitSpan| span.unit * SIZE..(span.unit + 1) * SIZE;
        let order: Vec<usize> = tokens.units.iter().flat_map(of_unit).collect();
        let generated: Vec<f32> = order
            .iter()
            .flat_map(|i| samples[*i].logprobs.iter().copied())
            .collect();
        let generated = Tensor::from_slice(&generated).to_device(device);
        let rows = Rows::new(&self::spans(order.len()), device);
        let order: Vec<i64> = order.iter().map(|i| *i as i64).collect();
        let advantages = advantages
            .index_select(0, &Tensor::from_slice(&order))
            .to_kind(tokens.logp.kind())
            .to_device(device);
        let batch = grpo::Batch {
            lp: &tokens.logp,
            old: &tokens.logp,
            generated: &generated,
            reference: None,
            advantage: &rows.spread(&advantages),
            sequences: &rows,
        };
        let value = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        let apart = (&tokens.logp - &generated).abs().exp();
        Ok(vec![
            ("objective", value(&grpo::loss(objective, &batch, &counts))),
            ("prob_error", value(&apart) / counts.tokens as f64),
            ("entropy", value(&tokens.entropy) / counts.tokens as f64),
        ])
    };
    let coefficient = |unit: usize, branch: usize, i: usize| {
        coefficients[(unit * SIZE + branch) * COMPLETION + i]
    };
    let done = policy.accumulate_known(&units, &coefficient, Some(&observe))?;
    let error = done.metrics.get("prob_error");
    let most = if policy.config().kind == Kind::Float {
        1.001
    } else {
        1.2
    };
    if error.is_nan() || error > most {
        return Err(format!("sampler and trainer disagree: mean ratio {error}").into());
    }
    Ok(done)
}

/// Rows of that many completions, one after the other.
fn spans(completions: usize) -> Vec<std::ops::Range<usize>> {
    (0..completions)
        .map(|i| i * COMPLETION..(i + 1) * COMPLETION)
        .collect()
}

/// Of a reward that any model gets now and then: the share of small token ids.
fn advantages(samples: &[Sample]) -> Result<Vec<f64>> {
    let small = |sample: &Sample| sample.tokens.iter().filter(|t| **t < 64).count() as f64;
    let rewards: Vec<f64> = samples
        .iter()
        .map(|sample| small(sample) / COMPLETION as f64)
        .collect();
    let groups: Vec<_> = (0..GROUPS).map(|g| g * SIZE..(g + 1) * SIZE).collect();
    let form = find(advantage::ADVANTAGES, "grpo")?;
    Ok(form(&Rewards {
        total: &rewards,
        components: &[],
        weights: &[],
        tokens: &vec![COMPLETION; samples.len()],
        groups: &groups,
    }))
}
