//! Mistral: one sliding window for all layers, or none.

use super::{Biases, Family, no_experts};

pub static FAMILY: Family = Family {
    model_type: "mistral",
    architecture: "MistralForCausalLM",
    default_kv_heads: Some(8),
    default_head_dim: None,
    default_max_positions: 4096 * 32,
    default_norm_eps: 1e-6,
    default_rope_theta: 10_000.0,
    biases: |_| Ok(Biases::default()),
    windows: |r, layers| {
        // absent is 4096 for transformers, null is none
        let window = match r.size("sliding_window")? {
            None if !r.has("sliding_window") => Some(4096),
            w => w,
        };
        let want = if window.is_some() {
            "sliding_attention"
        } else {
            "full_attention"
        };
        if let Some(types) = r.texts("layer_types")?
            && (types.len() != layers || types.iter().any(|t| *t != want))
        {
            return Err(r.unsupported("layer_types", format!("only {want} in every layer is")));
        }
        Ok(vec![window; layers])
    },
    qk_norm: false,
    experts: no_experts,
    expert_keys: None,
};
