//! Steps of supervised training on full sequences: tokens a second, model FLOPs, peak memory.
//!
//! MFU = model FLOPs / (seconds x peak), with the peak of a bf16 product measured here. Model FLOPs are three times the
//! forward's: 2 per weight of a matrix and token, and attention's 4 x heads x head_dim per query and key it sees.

use serde_json::json;
use train::loss::sft;
use train::{Branch, Unit};

use crate::Result;
use crate::setup::{Setup, median, tokens};

pub fn run(setup: &Setup) -> Result<()> {
    // tokens of a microbatch, and how often a step goes through one
    let (batch, microbatches, repeats) = if setup.tiny { (64, 2, 1) } else { (8192, 2, 5) };
    for (name, config) in setup.models()? {
        let vocabulary = config.vocab_size;
        let mut policy = setup.policy(config, batch)?;
        for length in [batch / 2, batch] {
            let unit = |row| Unit {
                branches: vec![Branch {
                    tokens: tokens(length, row, vocabulary),
                    mask: (0..length).map(|i| i > 0).collect(),
                }],
                ..Unit::default()
            };
            let units: Vec<Unit> = (0..microbatches * batch / length).map(unit).collect();
            let coefficient = sft::coefficient(units.iter().map(Unit::masked).sum());
            let mut optimizer = setup.optimizer();
            let (mut walks, mut updates, mut flops, mut loss) = (Vec::new(), Vec::new(), 0.0, 0.0);
            for step in 0..repeats + 2 {
                let (done, walk) = setup.seconds(|| {
                    Ok(policy.accumulate_known(&units, &|_, _, _| coefficient, None)?)
                })?;
                let (_, update) = setup.seconds(|| Ok(policy.apply(&mut optimizer, 1e-6)?))?;
                (flops, loss) = (done.work.flops, done.loss);
                match step {
                    // the first take memory and compile kernels
                    0 | 1 => drop(setup.peak()),
                    _ => {
                        walks.push(walk);
                        updates.push(update);
                    }
                }
            }
            let peak = setup.peak();
            let steps: Vec<f64> = walks.iter().zip(&updates).map(|(a, b)| a + b).collect();
            let (seconds, gemm) = (median(&steps), setup.gemm());
            let count = units.iter().map(Unit::tokens).sum::<usize>();
            let line = json!({
                "measure": "sft", "model": name, "length": length, "tokens": count, "microbatch_tokens": batch,
                "tokens_per_second": count as f64 / seconds, "mfu": flops / seconds / gemm,
                "gemm_tflops": gemm / 1e12, "model_tflop": flops / 1e12,
                "seconds_forward_backward": median(&walks), "seconds_update": median(&updates),
                "peak_bytes": peak, "loss": loss, "repeats": steps.len(),
                "kernels": train::numerics(setup.device, tch::Kind::BFloat16)["kernels"],
            });
            println!("{line}");
        }
    }
    Ok(())
}
