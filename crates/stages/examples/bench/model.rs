//! The tiny Qwen3 that peers were measured on, and a policy of it.

use std::path::PathBuf;

use arch::ModelConfig;
use model::Weights;
use tch::Kind;
use train::{Groups, Optimizer, OptimizerConfig, Policy, PolicyConfig};

use crate::Result;
use crate::measure::Setup;

const TINY: &str = r#"{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 660, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "hidden_act": "silu", "initializer_range": 0.02}"#;

pub const VOCAB: usize = 660;

/// Of every benchmark; small, so that weights stay ordinary however often a step is repeated.
pub const LEARNING_RATE: f64 = 1e-5;

pub fn config() -> Result<ModelConfig> {
    Ok(ModelConfig::from_json(TINY)?)
}

/// Random weights under the placement that a stage has by default.
pub fn policy(setup: &Setup, kind: Kind) -> Result<Policy> {
    let resources = spec::Resources::default();
    let config = PolicyConfig {
        kind,
        device: setup.device,
        microbatch_tokens: resources.microbatch_tokens as usize,
        head_chunk: Some(resources.head_chunk as usize),
        ..PolicyConfig::default()
    };
    let model = self::config()?;
    let masters = Weights::init(&model, 1, Kind::Float, setup.device)?;
    Ok(Policy::new(
        model,
        masters,
        PathBuf::new(),
        config,
        Groups::solo(),
    )?)
}

/// AdamW with clipping at 1.
pub fn optimizer() -> Optimizer {
    Optimizer::new(OptimizerConfig::default(), Some(1.0))
}

/// Some token ids, others for another `salt`.
pub fn tokens(count: usize, salt: usize) -> Vec<u32> {
    (0..count)
        .map(|i| ((i * 7 + i * i * 3 + salt * 131) % VOCAB) as u32)
        .collect()
}
