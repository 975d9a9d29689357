//! Generation: 64 requests of 32 tokens for 128 tokens each.

use rollout::bench::{Load, run as generate};
use serde_json::{Value, json};
use tch::Kind;

use crate::Result;
use crate::measure::{Peer, Setup};
use crate::model;

pub fn run(setup: &Setup, kind: Kind) -> Result<Value> {
    let load = Load {
        kind,
        device: setup.device,
        repeat: 1,
        ..Load::default()
    };
    let timed = setup.time_as(kind, &mut || {
        let line = generate(&load)?;
        Ok(line["seconds"].as_f64().unwrap_or(f64::NAN))
    })?;
    let tokens = load.requests * load.tokens;
    let each = model::config()?.flops_per_token(load.prompt + load.tokens);
    let flops = each * (tokens + load.requests * load.prompt) as f64;
    let peer = Peer {
        name: "vLLM 0.32 CPU build, fp32",
        rate: 4170.0,
        target: 2.0,
    };
    let mut fields = timed.fields(setup, "tokens/s", tokens as f64, flops, &peer);
    let work = json!({
        "requests": load.requests, "prompt": load.prompt, "tokens": load.tokens,
    });
    fields.insert("work".into(), work);
    Ok(Value::Object(fields))
}
