//! SFT: steps of 8 sequences of 256 tokens, all trained on.

use serde_json::{Value, json};
use tch::Kind;
use train::loss::sft;
use train::{Branch, Unit};

use crate::Result;
use crate::measure::{Peer, Setup};
use crate::model::{self, LEARNING_RATE};

const ROWS: usize = 8;
const LENGTH: usize = 256;

pub fn run(setup: &Setup, kind: Kind) -> Result<Value> {
    let mut policy = model::policy(setup, kind)?;
    let mut optimizer = model::optimizer();
    let units = units();
    let coefficient = sft::coefficient(units.iter().map(Unit::masked).sum());
    let mut flops = 0.0;
    let timed = setup.time(kind, &mut || {
        let done = policy.accumulate_known(&units, &|_, _, _| coefficient, None)?;
        flops = done.work.flops;
        policy.apply(&mut optimizer, LEARNING_RATE)?;
        Ok(())
    })?;
    let peer = Peer {
        name: "TRL 1.16 SFT, fp32",
        script: "sft",
        rate: 3600.0,
        target: if kind == Kind::Float { 1.3 } else { 2.5 },
    };
    let mut fields = timed.fields(setup, "tokens/s", (ROWS * LENGTH) as f64, flops, &peer);
    fields.insert("work".into(), work());
    Ok(Value::Object(fields))
}

/// A step's batch.
pub fn units() -> Vec<Unit> {
    let unit = |row| Unit {
        branches: vec![Branch {
            tokens: model::tokens(LENGTH, row),
            mask: (0..LENGTH).map(|i| i > 0).collect(),
        }],
        ..Unit::default()
    };
    (0..ROWS).map(unit).collect()
}

/// Its sizes.
pub fn work() -> Value {
    json!({ "rows": ROWS, "tokens": LENGTH })
}
