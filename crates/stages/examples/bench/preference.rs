//! DPO: steps of 16 pairs whose sequences have about 30 tokens, half of them a prompt that the
//! pair shares; reference log-probabilities are known.

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use train::loss::{dpo, find};
use train::{Branch, LossOut, Tokens, Unit};

use crate::Result;
use crate::measure::{Peer, Setup};
use crate::model::{self, LEARNING_RATE};

const PAIRS: usize = 16;
const PROMPT: usize = 15;
/// Completions have one token less to one more.
const COMPLETION: usize = 15;

pub fn run(setup: &Setup, kind: Kind) -> Result<Value> {
    let mut policy = model::policy(setup, kind)?;
    let mut optimizer = model::optimizer();
    let units: Vec<Unit> = (0..PAIRS).map(pair).collect();
    let reference = policy.logprobs(&units)?;
    let loss = find(dpo::LOSSES, "sigmoid")?;
    let params = dpo::Params {
        beta: 0.1,
        label_smoothing: 0.0,
        gamma: 0.0,
    };
    let evaluate = |tokens: &Tokens| {
        let device = tokens.logp.device();
        let known = tokens.units.iter().flat_map(|span| &reference[span.unit]);
        let known: Vec<f32> = known.flatten().copied().collect();
        let known = Tensor::from_slice(&known).to_device(device);
        let branches =
            |unit: &train::UnitSpan| (unit.branches[0].clone(), unit.branches[1].clone());
        let spans: Vec<_> = tokens.units.iter().map(branches).collect();
        let pairs = dpo::Pairs::new(&tokens.logp, Some(&known), &spans, device);
        let per_pair = (loss.per_pair)(&pairs, &params);
        let better = pairs.chosen.gt_tensor(&pairs.rejected).sum(Kind::Double);
        Ok(LossOut {
            loss: per_pair.sum(per_pair.kind()) / PAIRS as f64,
            metrics: vec![("accuracy", better.double_value(&[]) / PAIRS as f64)],
        })
    };
    let mut flops = 0.0;
    let timed = setup.time(kind, &mut || {
        let done = policy.accumulate(&units, &evaluate)?;
        flops = done.work.flops;
        policy.apply(&mut optimizer, LEARNING_RATE)?;
        Ok(())
    })?;
    let peer = Peer {
        name: "TRL 1.16 DPO, fp32",
        script: "dpo",
        rate: 49.0,
        target: 2.0,
    };
    let mut fields = timed.fields(setup, "pairs/s", PAIRS as f64, flops, &peer);
    let work = json!({ "pairs": PAIRS, "prompt": PROMPT, "completion": COMPLETION });
    fields.insert("work".into(), work);
    Ok(Value::Object(fields))
}

fn pair(index: usize) -> Unit {
    let branch = |side: usize| {
        let length = COMPLETION - 1 + (index + side) % 3;
        Branch {
            tokens: model::tokens(length, 1000 + 2 * index + side),
            mask: vec![true; length],
        }
    };
    Unit {
        prefix: model::tokens(PROMPT, index),
        branches: vec![branch(0), branch(1)],
        ..Unit::default()
    }
}
