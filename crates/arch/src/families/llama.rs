//! Llama 2 and 3: biases by two switches, no windows.

use super::{Biases, Family, no_windows};

pub static FAMILY: Family = Family {
    model_type: "llama",
    architecture: "LlamaForCausalLM",
    default_kv_heads: None,
    default_head_dim: None,
    default_max_positions: 2048,
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
};
