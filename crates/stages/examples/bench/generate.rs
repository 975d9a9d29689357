//! Generation: 64 requests of 32 tokens for 128 tokens each, by one engine again and again.

use ::model::{Decoder, Weights};
use rollout::{Request, Rollout, RolloutConfig, Sampling};
use serde_json::{Value, json};
use tch::Kind;

use crate::Result;
use crate::measure::{Peer, Setup};
use crate::model;

const REQUESTS: usize = 64;
const PROMPT: usize = 32;
const TOKENS: usize = 128;

pub fn run(setup: &Setup, kind: Kind) -> Result<Value> {
    let config = model::config()?;
    let flops = config.flops_per_token(PROMPT + TOKENS) * (REQUESTS * (PROMPT + TOKENS)) as f64;
    let weights = Weights::init(&config, 1, kind, setup.device)?;
    let decoder = Decoder::new(config);
    let mut rollout = Rollout::new(&decoder, &weights, RolloutConfig::default())?;
    let mut run = 0;
    let timed = setup.time(kind, &mut || {
        let request = |i| Request {
            id: i as u64,
            prompt: model::tokens(PROMPT, run * REQUESTS + i),
            samples: 1,
            sampling: Sampling {
                max_tokens: TOKENS,
                ignore_eos: true,
                ..Sampling::default()
            },
        };
        let samples = rollout.run_all((0..REQUESTS).map(request).collect())?;
        run += 1;
        match samples.iter().all(|s| s.tokens.len() == TOKENS) {
            true => Ok(()),
            false => Err("a request ended before its length".into()),
        }
    })?;
    let peer = Peer {
        name: "vLLM 0.32 CPU build, fp32",
        script: "generate",
        rate: 4170.0,
        target: 2.0,
    };
    let amount = (REQUESTS * TOKENS) as f64;
    let mut fields = timed.fields(setup, "tokens/s", amount, flops, &peer);
    let work = json!({ "requests": REQUESTS, "prompt": PROMPT, "tokens": TOKENS });
    fields.insert("work".into(), work);
    Ok(Value::Object(fields))
}
