//! The rate of generation on the tiny Qwen3 that peers were measured on.

use crate::{Error, Request, Rollout, RolloutConfig, Sampling};
use arch::ModelConfig;
use model::{Decoder, Weights};
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Hidden 256, intermediate 768, 6 layers, 8 heads of 32, 4 key heads, vocabulary 660, tied.
const TINY: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 660,
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.02}"#;

/// What to generate.
#[derive(Debug, Clone)]
pub struct Load {
    pub requests: usize,
    pub prompt: usize,
    pub tokens: usize,
    pub kind: Kind,
    pub device: Device,
    /// Threads; 0 takes libtorch's number.
    pub threads: usize,
    /// Runs; the best counts, since other work on the machine only takes away.
    pub repeat: usize,
}

impl Default for Load {
    /// 64 requests of 32 tokens for 128 tokens each, fp32 on CPU.
    fn default() -> Self {
        Self {
            requests: 64,
            prompt: 32,
            tokens: 128,
            kind: Kind::Float,
            device: Device::Cpu,
            threads: 0,
            repeat: 5,
        }
    }
}

/// Measures a load, and libtorch's matrix product beside it; one JSON object.
///
/// # Errors
/// Those of a rollout, as text.
pub fn run(load: &Load) -> Result<serde_json::Value, Error> {
    let config = ModelConfig::from_json(TINY).map_err(|e| Error::Model(e.to_string()))?;
    let weights = Weights::init(&config, 1, load.kind, load.device)
        .map_err(|e| Error::Model(e.to_string()))?;
    let decoder = Decoder::new(config);
    let sampling = Sampling {
        max_tokens: load.tokens,
        ignore_eos: true,
        ..Sampling::default()
    };
    let requests = |run: usize| {
        let prompt = |i: usize| {
            (0..load.prompt)
                .map(|p| ((run + i * 131 + p * 17) % 660) as u32)
                .collect()
        };
        let request = |i| Request {
            id: i as u64,
            prompt: prompt(i),
            samples: 1,
            sampling: sampling.clone(),
        };
        (0..load.requests).map(request).collect::<Vec<_>>()
    };
    let sizes = RolloutConfig {
        threads: load.threads,
        ..RolloutConfig::default()
    };
    let mut rollout = Rollout::new(&decoder, &weights, sizes)?;
    let (mut seconds, mut peak) = (f64::INFINITY, 0f64);
    for run in 0..load.repeat.max(1) + 1 {
        let start = Instant::now();
        let samples = rollout.run_all(requests(run))?;
        assert!(
            samples.iter().all(|s| s.tokens.len() == load.tokens),
            "every request runs to its length"
        );
        if run > 0 {
            seconds = seconds.min(start.elapsed().as_secs_f64()); // the first run is for warming up
        }
        peak = peak.max(gemm_peak(load.kind, load.device));
    }
    let sampled = load.requests * load.tokens;
    Ok(serde_json::json!({
        "bench": "generate",
        "requests": load.requests,
        "prompt": load.prompt,
        "tokens": load.tokens,
        "dtype": format!("{:?}", load.kind).to_lowercase(),
        "seconds": seconds,
        "tokens_per_sec": sampled as f64 / seconds,
        "gemm_peak_gflops": peak,
    }))
}

/// libtorch's best rate on square matrices, in GFLOP/s.
fn gemm_peak(kind: Kind, device: Device) -> f64 {
    const SIDE: i64 = 1024;
    let (a, b) = (
        Tensor::ones([SIDE, SIDE], (kind, device)),
        Tensor::ones([SIDE, SIDE], (kind, device)),
    );
    let once = || {
        let start = Instant::now();
        let _ = a.matmul(&b).get(0).get(0).to_device(Device::Cpu);
        2.0 * (SIDE as f64).powi(3) / start.elapsed().as_secs_f64() / 1e9
    };
    (0..6).map(|_| once()).fold(0.0, f64::max)
}
