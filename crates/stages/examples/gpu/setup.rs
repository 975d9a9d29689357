//! The device, models and clocks of all measurements.

use std::path::PathBuf;
use std::time::Instant;

use arch::ModelConfig;
use model::Weights;
use tch::{Device, Kind, Tensor};
use train::{Groups, Meter, Optimizer, OptimizerConfig, Policy, PolicyConfig};

use crate::Result;

const QWEN3: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.02}"#;

/// Llama-3.1-8B with so many layers that weights, gradients and moments of full fine-tuning fit 139 GiB.
const LLAMA: &str = r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 12,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "hidden_act": "silu", "initializer_range": 0.02}"#;

const TINY: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.02}"#;

/// Where to measure.
pub struct Setup {
    pub device: Device,
    /// Not the real sizes.
    pub tiny: bool,
}

impl Setup {
    /// Loads the device's library; before the first tensor.
    pub fn new(device: &str) -> Result<Setup> {
        if device != "cpu" && device != "cuda" {
            return Err(format!("unknown device '{device}': use cuda or cpu").into());
        }
        let device = train::device(device, 0)?;
        Ok(Setup {
            device,
            tiny: device == Device::Cpu,
        })
    }

    /// Names and shapes of the models to train, the first also to generate with.
    pub fn models(&self) -> Result<Vec<(&'static str, ModelConfig)>> {
        let texts: &[(&str, &str)] = match self.tiny {
            true => &[("tiny", TINY)],
            false => &[
                ("qwen3-0.6b", QWEN3),
                ("llama-3.1-8b, 12 of 32 layers", LLAMA),
            ],
        };
        let parse =
            |(name, text): &(&'static str, &str)| Ok((*name, ModelConfig::from_json(text)?));
        texts.iter().map(parse).collect()
    }

    /// The model that generates.
    pub fn model(&self) -> Result<(&'static str, ModelConfig)> {
        Ok(self.models()?.remove(0))
    }

    /// Normal weights of deviation 0.02, drawn on the device.
    pub fn weights(&self, config: &ModelConfig, kind: Kind) -> Weights {
        tch::manual_seed(17);
        let make = |shape: &[usize]| {
            let size: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            match shape.len() {
                1 => Tensor::ones(size, (kind, self.device)),
                _ => Tensor::randn(size, (kind, self.device)) * 0.02,
            }
        };
        let all = config.params().into_iter().map(|def| {
            let tensor = make(&def.shape);
            (def.name, tensor)
        });
        Weights::of(all.collect(), kind, self.device)
    }

    /// A policy in bf16 with fp32 masters.
    pub fn policy(&self, config: ModelConfig, microbatch_tokens: usize) -> Result<Policy> {
        let masters = self.weights(&config, Kind::Float);
        let how = PolicyConfig {
            kind: Kind::BFloat16,
            device: self.device,
            microbatch_tokens,
            ..PolicyConfig::default()
        };
        Ok(Policy::new(
            config,
            masters,
            PathBuf::new(),
            how,
            Groups::solo(),
        )?)
    }

    /// AdamW with clipping at 1.
    pub fn optimizer(&self) -> Optimizer {
        Optimizer::new(OptimizerConfig::default(), Some(1.0))
    }

    /// Seconds of a call, the device's work included.
    pub fn seconds<T>(&self, once: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
        let start = Instant::now();
        let out = once()?;
        self.wait();
        Ok((out, start.elapsed().as_secs_f64()))
    }

    fn wait(&self) {
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
    }

    /// FLOP/s of a bf16 product.
    pub fn gemm(&self) -> f64 {
        Meter::measure(Kind::BFloat16, self.device, 1).peak.get()
    }

    /// Bytes a second that a copy reads and writes.
    pub fn copy(&self) -> Result<f64> {
        let n = if self.tiny { 1 << 20 } else { 1 << 30 };
        let from = Tensor::ones([n], (Kind::Uint8, self.device));
        let mut to = from.empty_like();
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let (_, seconds) = self.seconds(|| {
                to.copy_(&from);
                Ok(())
            })?;
            best = best.min(seconds);
        }
        Ok(2.0 * n as f64 / best)
    }

    /// The most bytes of the device's tensors since the last call; none on the CPU.
    pub fn peak(&self) -> Option<u64> {
        torch::memory::device_peak(self.device).ok()
    }
}

/// Some token ids, others for another `salt`.
pub fn tokens(count: usize, salt: usize, vocabulary: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * 7919 + i * i * 31 + salt * 104_729) % vocabulary) as u32)
        .collect()
}

/// The middle one; of an even number the upper middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
