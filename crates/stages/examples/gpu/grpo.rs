//! The timeline of a GRPO step: generation, rewards and advantages, forward and backward, the update.

use rollout::{Request, Rollout, RolloutConfig, Sample, Sampling};
use serde_json::json;
use train::loss::advantage::{self, Rewards};
use train::loss::find;
use train::{Branch, Unit};

use crate::Result;
use crate::setup::{Setup, tokens};

pub fn run(setup: &Setup) -> Result<()> {
    let (groups, size, prompt, most) = if setup.tiny {
        (2, 2, 9, 8)
    } else {
        (64, 16, 256, 1024)
    };
    let (name, config) = setup.model()?;
    let vocabulary = config.vocab_size;
    let mut policy = setup.policy(config, if setup.tiny { 64 } else { 16384 })?;
    let mut optimizer = setup.optimizer();
    for step in 0..2 {
        let sizes = RolloutConfig {
            max_rows: 8192,
            max_sequences: 512,
            cache_tokens: if setup.tiny { 4096 } else { 500_000 },
            ..RolloutConfig::default()
        };
        // completions of a quarter to the whole of the limit, as those of a task end
        let length = |group: usize| most / 4 + (group * 37 + step) % (most - most / 4 + 1);
        let ask = |group: usize| tokens(prompt, step * groups + group, vocabulary);
        let request = |group: usize| Request {
            id: group as u64,
            prompt: ask(group),
            samples: size,
            sampling: Sampling {
                max_tokens: length(group),
                ignore_eos: true,
                seed: step as u64,
                ..Sampling::default()
            },
        };
        let (mut samples, generation) = setup.seconds(|| {
            let mut rollout = Rollout::new(policy.decoder(), policy.weights(), sizes)?;
            Ok(rollout.run_all((0..groups).map(request).collect())?)
        })?;
        let ((units, coefficients), rewards) = setup.seconds(|| {
            samples.sort_by_key(|s| (s.request, s.sample));
            let coefficients = coefficients(&samples, groups, size, vocabulary)?;
            let units: Vec<Unit> = samples
                .chunks(size)
                .enumerate()
                .map(|(g, s)| unit(ask(g), s))
                .collect();
            Ok((units, coefficients))
        })?;
        let coefficient = |unit: usize, branch: usize, _: usize| coefficients[unit * size + branch];
        let (done, walk) =
            setup.seconds(|| Ok(policy.accumulate_known(&units, &coefficient, None)?))?;
        let (_, update) = setup.seconds(|| Ok(policy.apply(&mut optimizer, 1e-6)?))?;
        let total = generation + rewards + walk + update;
        let line = json!({
            "measure": "grpo", "model": name, "groups": groups, "group_size": size, "prompt": prompt, "most": most,
            "step": step, "completion_tokens": samples.iter().map(|s| s.tokens.len()).sum::<usize>(),
            "seconds": total, "seconds_generation": generation, "seconds_rewards": rewards,
            "seconds_forward_backward": walk, "seconds_update": update,
            "share_other": (rewards + update) / total, "train_tokens": done.work.tokens,
            "peak_bytes": setup.peak(),
            "kernels": train::numerics(setup.device, tch::Kind::BFloat16)["kernels"],
        });
        println!("{line}");
    }
    Ok(())
}

fn unit(prefix: Vec<u32>, samples: &[Sample]) -> Unit {
    let branch = |s: &Sample| Branch {
        tokens: s.tokens.clone(),
        mask: vec![true; s.tokens.len()],
    };
    Unit {
        prefix,
        branches: samples.iter().map(branch).collect(),
        ..Unit::default()
    }
}

/// Of each completion's tokens: its advantage over the tokens of all. The reward is the share of small token ids.
fn coefficients(
    samples: &[Sample],
    groups: usize,
    size: usize,
    vocabulary: usize,
) -> Result<Vec<f64>> {
    let small = |s: &Sample| {
        s.tokens
            .iter()
            .filter(|t| (**t as usize) < vocabulary / 4)
            .count() as f64
    };
    let rewards: Vec<f64> = samples
        .iter()
        .map(|s| small(s) / s.tokens.len() as f64)
        .collect();
    let lengths: Vec<usize> = samples.iter().map(|s| s.tokens.len()).collect();
    let of_groups: Vec<_> = (0..groups).map(|g| g * size..(g + 1) * size).collect();
    let form = find(advantage::ADVANTAGES, "grpo")?;
    let advantages = form(&Rewards {
        total: &rewards,
        components: &[],
        weights: &[],
        tokens: &lengths,
        groups: &of_groups,
    });
    let total = lengths.iter().sum::<usize>() as f64;
    Ok(advantages.iter().map(|a| -a / total).collect())
}
