//! Mixtral: every layer has experts, and a row's weights sum to one; else as Mistral.

use super::{Biases, Family};
use crate::experts::{Experts, Names, count};

static NAMES: Names = Names {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    gate: "w1",
    up: "w3",
    down: "w2",
};

pub static FAMILY: Family = Family {
    model_type: "mixtral",
    architecture: "MixtralForCausalLM",
    default_kv_heads: Some(8),
    default_head_dim: None,
    default_max_positions: 4096 * 32,
    default_norm_eps: 1e-5,
    default_rope_theta: 1_000_000.0,
    biases: |_| Ok(Biases::default()),
    windows: |r, layers| Ok(vec![r.size("sliding_window")?; layers]),
    qk_norm: false,
    experts: |r, layers| {
        if r.number("router_jitter_noise")?.unwrap_or(0.0) != 0.0 {
            return Err(r.unsupported("router_jitter_noise", "set it to 0.0"));
        }
        let experts = Experts {
            count: count(r, 8, false)?,
            per_token: r.size("num_experts_per_tok")?.unwrap_or(2),
            intermediate_size: r.need_size("intermediate_size")?,
            normalize: true,
            layers: vec![true; layers],
            names: &NAMES,
        };
        Ok(Some(experts.check(r)?))
    },
    // an expert is as wide as the MLP would be
    expert_keys: Some(|sizes| {
        vec![
            ("num_local_experts", sizes.count.into()),
            ("num_experts_per_tok", sizes.per_token.into()),
        ]
    }),
};
