//! Qwen 3 with experts: some layers may keep an MLP, and a window holds for all layers.

use super::{Biases, Family};
use crate::experts::{Experts, Names, count};

static NAMES: Names = Names {
    router: "mlp.gate",
    experts: "mlp.experts",
    gate: "gate_proj",
    up: "up_proj",
    down: "down_proj",
};

pub static FAMILY: Family = Family {
    model_type: "qwen3_moe",
    architecture: "Qwen3MoeForCausalLM",
    default_kv_heads: Some(4),
    default_head_dim: None,
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
    windows: |r, layers| {
        let window = match (r.flag("use_sliding_window")?, r.has("sliding_window")) {
            (Some(true), false) => Some(4096),
            (Some(true), true) => r.size("sliding_window")?,
            _ => None,
        };
        Ok(vec![window; layers])
    },
    qk_norm: true,
    experts: |r, layers| {
        let count = count(r, 128, true)?;
        let step = r.size("decoder_sparse_step")?.unwrap_or(1);
        let dense = r.counts("mlp_only_layers")?.unwrap_or_default();
        let sparse: Vec<bool> = (0..layers)
            .map(|layer| (layer + 1) % step == 0 && !dense.contains(&layer))
            .collect();
        if count == 0 || !sparse.contains(&true) {
            return Ok(None);
        }
        let experts = Experts {
            count,
            per_token: r.size("num_experts_per_tok")?.unwrap_or(8),
            intermediate_size: r.size("moe_intermediate_size")?.unwrap_or(768),
            normalize: r.flag("norm_topk_prob")?.unwrap_or(false),
            layers: sparse,
            names: &NAMES,
        };
        Ok(Some(experts.check(r)?))
    },
    expert_keys: Some(|sizes| {
        vec![
            ("num_experts", sizes.count.into()),
            ("num_experts_per_tok", sizes.per_token.into()),
            ("norm_topk_prob", true.into()),
            ("moe_intermediate_size", sizes.intermediate_size.into()),
        ]
    }),
};
