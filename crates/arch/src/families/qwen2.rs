//! Qwen 2 and 2.5: biases on query, key and value; later layers may slide.

use super::{Biases, Family, no_experts, qwen_windows};

pub static FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "Qwen2ForCausalLM",
    default_kv_heads: Some(32),
    default_head_dim: None,
    default_max_positions: 32768,
    default_norm_eps: 1e-6,
    default_rope_theta: 10_000.0,
    biases: |_| {
        Ok(Biases {
            qkv: true,
            ..Biases::default()
        })
    },
    windows: qwen_windows,
    qk_norm: false,
    experts: no_experts,
    expert_keys: None,
};
