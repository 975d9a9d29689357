//! Log-probabilities of sampled tokens by the sampler and by training, in bf16 and fp32: mean and greatest exp|difference|.

use std::path::PathBuf;

use rollout::{Request, Rollout, RolloutConfig, Sampling};
use serde_json::json;
use tch::Kind;
use train::{Branch, Groups, Policy, PolicyConfig, Unit};

use crate::Result;
use crate::setup::{Setup, tokens};

pub fn run(setup: &Setup) -> Result<()> {
    let (sequences, prompt, new) = if setup.tiny {
        (4, 9, 7)
    } else {
        (64, 128, 256)
    };
    for (kind, dtype) in [(Kind::BFloat16, "bf16"), (Kind::Float, "fp32")] {
        let (name, config) = setup.model()?;
        let vocabulary = config.vocab_size;
        let masters = setup.weights(&config, Kind::Float);
        let how = PolicyConfig {
            kind,
            device: setup.device,
            ..PolicyConfig::default()
        };
        let policy = Policy::new(config, masters, PathBuf::new(), how, Groups::solo())?;
        let sizes = RolloutConfig {
            max_sequences: sequences,
            cache_tokens: sequences * (prompt + new + 32),
            ..RolloutConfig::default()
        };
        let mut rollout = Rollout::new(policy.decoder(), policy.weights(), sizes)?;
        let request = |i: usize| Request {
            id: i as u64,
            prompt: tokens(prompt, i, vocabulary),
            samples: 1,
            sampling: Sampling {
                max_tokens: new,
                ignore_eos: true,
                ..Sampling::default()
            },
        };
        let mut samples = rollout.run_all((0..sequences).map(request).collect())?;
        samples.sort_by_key(|s| s.request);
        let units: Vec<Unit> = samples
            .iter()
            .map(|s| Unit {
                prefix: tokens(prompt, s.request as usize, vocabulary),
                branches: vec![Branch {
                    tokens: s.tokens.clone(),
                    mask: vec![true; s.tokens.len()],
                }],
                ..Unit::default()
            })
            .collect();
        let trained = policy.logprobs(&units)?;
        let apart: Vec<f64> = samples
            .iter()
            .zip(&trained)
            .flat_map(|(s, t)| s.logprobs.iter().zip(&t[0]))
            .map(|(a, b)| f64::from(a - b).abs().exp())
            .collect();
        let mean = apart.iter().sum::<f64>() / apart.len() as f64;
        let most = apart.iter().copied().fold(1.0, f64::max);
        let limit = if kind == Kind::Float { 1.001 } else { 1.05 };
        let line = json!({
            "measure": "agree", "model": name, "dtype": dtype, "tokens": apart.len(),
            "mean_exp_difference": mean, "max_exp_difference": most, "limit": limit, "ok": mean < limit,
            "kernels": train::numerics(setup.device, kind)["kernels"],
        });
        println!("{line}");
        if mean.is_nan() || mean >= limit {
            return Err(
                format!("sampler and trainer disagree in {dtype}: mean ratio {mean}").into(),
            );
        }
    }
    Ok(())
}
