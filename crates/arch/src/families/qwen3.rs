//! Qwen 3: norms over each head of queries and keys, a head size of its own.

use super::{Biases, Family, no_experts, qwen_windows};

pub static FAMILY: Family = Family {
    model_type: "qwen3",
    architecture: "Qwen3ForCausalLM",
    default_kv_heads: Some(32),
    default_head_dim: Some(128),
    default_max_positions: 32768,
    default_norm_eps: 1e-6,
    default_rope_theta: 10_000.0,
    biases: |r| {
        let attention = r.flag("attention_bias")?.unwrap_or(false);
        Ok(Biases {
            qkv: attention,
            o: attention,
            mlp: false,
        })
    },
    windows: qwen_windows,
    qk_norm: true,
    experts: no_experts,
    expert_keys: None,
};
