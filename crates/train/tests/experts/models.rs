//! Tiny models with experts, and the policy beside plain autograd.

use arch::ModelConfig;
use tch::{Kind, Tensor};
use train::{Checkpointing, PolicyConfig};

use crate::cases::{self, ALGORITHMS};
use crate::plain;

/// Two of four experts everywhere, weights that sum to one.
pub fn mixtral() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type": "mixtral", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3,
        "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 256,
        "rope_theta": 10000.0, "initializer_range": 0.15, "tie_word_embeddings": false}"#,
    )
    .expect("a good configuration")
}

/// Three of five experts, not normalised, beside a layer with an MLP; tied.
pub fn qwen() -> ModelConfig {
    ModelConfig::from_json(
        r#"{"model_type": "qwen3_moe", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 12,
        "mlp_only_layers": [1], "norm_topk_prob": false, "max_position_embeddings": 256,
        "rope_theta": 10000.0, "initializer_range": 0.15, "tie_word_embeddings": true}"#,
    )
    .expect("a good configuration")
}

/// |a - b| / |b|
pub fn ratio(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    norm(&(a.to_kind(Kind::Double) - b.to_kind(Kind::Double))) / norm(b).max(1e-300)
}

#[test]
fn gradients_equal_plain_autograd() {
    // A router's gradient sums terms that nearly cancel: two orders of fp32 sums differ by 2.1e-6
    // here, while fp64 holds 1e-10.
    for (kind, tolerance) in [(Kind::Double, 1e-10), (Kind::Float, 4e-6)] {
        for model in [mixtral(), qwen()] {
            for algorithm in ALGORITHMS {
                let units = cases::units(algorithm, 12, 12);
                let loss = cases::loss(algorithm, &units);
                let weights = cases::weights(&model, kind);
                let plain = plain::gradients(&model, &weights, &units, 1.0, &loss);
                for (tokens, checkpointing, share_prefix) in [
                    (4096, Checkpointing::None, true),
                    (48, Checkpointing::Full, true),
                    (60, Checkpointing::Selective, false),
                ] {
                    let config = PolicyConfig {
                        kind,
                        microbatch_tokens: tokens,
                        checkpointing,
                        share_prefix,
                        ..PolicyConfig::default()
                    };
                    let what = format!("{} {algorithm:?} {config:?}", model.family.model_type);
                    let mut policy = cases::policy(&model, config);
                    let got = policy.accumulate(&units, &loss).expect(&what);
                    assert!((got.loss - plain.loss).abs() <= tolerance * 10.0, "{what}");
                    for (name, grad) in policy.grads().iter() {
                        let off = ratio(&grad, &plain.grads[name]);
                        assert!(off <= tolerance, "{what}: {name} is off by {off:e}");
                    }
                }
            }
        }
    }
}
