//! Generation of many sequences at once: tokens a second, and the share of what memory bandwidth allows.
//!
//! The floor is the time in which a copy moves what decoding must read: all weights once a step, and each sequence's keys
//! and values once a step, at the bandwidth of a copy measured here.

use model::Decoder;
use rollout::{Request, Rollout, RolloutConfig, Sampling};
use serde_json::json;
use tch::Kind;

use crate::Result;
use crate::setup::{Setup, tokens};

pub fn run(setup: &Setup) -> Result<()> {
    let (sequences, prompt, new) = if setup.tiny {
        (3, 20, 5)
    } else {
        (256, 512, 512)
    };
    let (name, config) = setup.model()?;
    let vocabulary = config.vocab_size;
    let weights = setup.weights(&config, Kind::BFloat16);
    let weight_bytes: usize = weights.iter().map(|(_, t)| 2 * t.numel()).sum();
    let token_bytes = 2 * 2 * config.layers * config.kv_heads * config.head_dim;
    let decoder = Decoder::new(config);
    let sizes = RolloutConfig {
        max_rows: 8192,
        max_sequences: sequences,
        cache_tokens: sequences * (prompt + new + 32),
        ..RolloutConfig::default()
    };
    let mut rollout = Rollout::new(&decoder, &weights, sizes)?;
    let request = |i: usize, max_tokens| Request {
        id: i as u64,
        prompt: tokens(prompt, i, vocabulary),
        samples: 1,
        sampling: Sampling {
            max_tokens,
            ignore_eos: true,
            ..Sampling::default()
        },
    };
    // kernels are compiled, memory is taken
    rollout.run_all((0..sequences).map(|i| request(sequences + i, 2)).collect())?;
    let prompts: Vec<Request> = (0..sequences)
        .map(|i| request(2 * sequences + i, 1))
        .collect();
    let (_, prefill) = setup.seconds(|| Ok(rollout.run_all(prompts)?))?;
    let before = rollout.stats();
    let all: Vec<Request> = (0..sequences)
        .map(|i| request(3 * sequences + i, new))
        .collect();
    let (samples, seconds) = setup.seconds(|| Ok(rollout.run_all(all)?))?;
    let steps = rollout.stats().steps - before.steps;
    let made: usize = samples.iter().map(|s| s.tokens.len()).sum();
    if made != sequences * new {
        return Err(format!("{made} tokens instead of {}", sequences * new).into());
    }
    let bandwidth = setup.copy()?;
    // of a step at which sequences hold `held` tokens
    let step = |held: usize| (weight_bytes + sequences * held * token_bytes) as f64;
    let bytes: f64 = (prompt..prompt + new).map(step).sum();
    let floor = bytes / bandwidth;
    let line = json!({
        "measure": "decode", "model": name, "sequences": sequences, "prompt": prompt, "new": new, "steps": steps,
        "seconds": seconds, "seconds_prefill": prefill, "tokens_per_second": made as f64 / seconds,
        "decode_tokens_per_second": made as f64 / (seconds - prefill),
        "copy_gb_s": bandwidth / 1e9, "floor_seconds": floor, "share_of_floor": floor / (seconds - prefill),
        "peak_bytes": setup.peak(),
        "kernels": train::numerics(setup.device, Kind::BFloat16)["kernels"],
    });
    println!("{line}");
    Ok(())
}
