//! Tiny models and requests.

use arch::ModelConfig;
use model::{Decoder, Weights};
use rollout::{Request, Sampling};
use tch::{Device, Kind};

pub const VOCAB: usize = 97;

/// A Qwen3 of two layers with odd sizes.
pub fn config() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "vocab_size": 97, "hidden_size": 40,
            "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
            "head_dim": 20, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.3}"#,
    )
    .expect("a good configuration")
}

/// The decoder and random weights.
pub fn model(kind: Kind) -> (Decoder, Weights) {
    let config = config();
    let weights = Weights::init(&config, 7, kind, Device::Cpu).expect("fresh weights");
    (Decoder::new(config), weights)
}

/// Requests of mixed prompts, lengths and sampling.
pub fn requests(n: u64) -> Vec<Request> {
    (0..n)
        .map(|id| Request {
            id,
            prompt: (0..1 + id * 7 % 45)
                .map(|i| ((id * 31 + i * 17 + i * i) % VOCAB as u64) as u32)
                .collect(),
            samples: 1 + (id % 3) as usize,
            sampling: Sampling {
                max_tokens: 1 + (id * 13 % 40) as usize,
                temperature: [1.0, 0.0, 0.7][id as usize % 3],
                top_p: [1.0, 0.9][id as usize % 2],
                top_k: [0, 0, 20][id as usize % 3],
                seed: 5,
                ..Sampling::default()
            },
        })
        .collect()
}

/// The golden Qwen3 with its tokenizer and ChatML template.
pub fn golden() -> (Decoder, Weights, data::Tokenizer) {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/models/qwen3-tied");
    let config = ModelConfig::from_dir(&dir).expect("a configuration");
    let weights = Weights::load(&dir, &config, Kind::Float, Device::Cpu).expect("weights");
    let tokenizer = data::Tokenizer::from_dir(&dir).expect("a tokenizer");
    (Decoder::new(config), weights, tokenizer)
}
