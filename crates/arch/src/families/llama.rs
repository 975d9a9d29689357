//! Llama 2 and 3: biases by two switches, no windows.

use super::{Biases, Family, no_experts, no_windows};

pub static FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    default_kv_heads: None,
    default_head_dim: None,
    default_max_positions: 2048,
    default_norm_eps: 1e-6,
    default_rope_theta: 10_000.0,
    biases: |r| {
        let attention = r.flag("attention_bias")?.unwrap_or(false);
        Ok(Biases {
            qkv: attention,
            o: attention,
            mlp: r.flag("mlp_bias")?.unwrap_or(false),
        })
    },
    windows: no_windows,
    qk_norm: false,
    experts: no_experts,
    expert_keys: None,
};
