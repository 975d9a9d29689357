//! The parameter table and the sizes that follow from it.

use arch::{Cut, Init, ModelConfig, Role, Shard};

fn config(more: &str) -> ModelConfig {
    ModelConfig::from_json(&format!(
        r#"{{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
            "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128{more}}}"#
    ))
    .unwrap()
}

#[test]
fn counts_are_those_of_the_published_model() {
    // Qwen/Qwen3-0.6B: 596,049,920 parameters tied, 440,467,456 without the embedding
    let tied = config(r#", "tie_word_embeddings": true"#);
    assert_eq!(tied.param_count(), 596_049_920);
    assert_eq!(tied.param_count() - 151_936 * 1024, 440_467_456);
    assert_eq!(config("").param_count(), 596_049_920 + 151_936 * 1024);
    assert_eq!(tied.matmul_params(), config("").matmul_params());
    assert_eq!(tied.kv_bytes_per_token(2), 2 * 28 * 8 * 128 * 2);
}

#[test]
fn experts_are_counted_as_often_as_a_token_goes_to_them() {
    // Qwen/Qwen3-30B-A3B: 30,532,122,624 parameters, 3.3 billion of them at work for a token
    let c = ModelConfig::from_json(
        r#"{"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
            "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
            "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": true}"#,
    )
    .unwrap();
    assert_eq!(c.param_count(), 30_532_122_624);
    let attention = 2048 * 128 * (32 + 4 + 4 + 32);
    let layer = attention + 128 * 2048 + 8 * 3 * 2048 * 768;
    assert_eq!(c.matmul_params(), 48 * layer + 151_936 * 2048);
    // mistralai/Mixtral-8x7B-v0.1
    let c = ModelConfig::from_json(
        r#"{"model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}"#,
    )
    .unwrap();
    assert_eq!(c.param_count(), 46_702_792_704);

    let params = c.params();
    let find = |name: &str| params.iter().find(|p| p.name == name).unwrap();
    let router = find("model.layers.3.block_sparse_moe.gate.weight");
    assert_eq!(
        (router.segment, router.shard, router.expert),
        (8, Shard::Inside, None)
    );
    assert_eq!(router.shape, [8, 4096]);
    let down = find("model.layers.3.block_sparse_moe.experts.5.w2.weight");
    assert_eq!(
        (down.segment, down.shard, down.expert),
        (8, Shard::Row(Cut::Column), Some(5))
    );
    assert_eq!(down.shape, [4096, 14336]);
    // in the order of the forward: gate, up, down of one expert after another
    let order = params.iter().filter(|p| p.segment == 8).skip(2).take(4);
    let order: Vec<_> = order
        .map(|p| &p.name["model.layers.3.block_sparse_moe.experts.".len()..])
        .collect();
    assert_eq!(
        order,
        ["0.w1.weight", "0.w3.weight", "0.w2.weight", "1.w1.weight"]
    );
}

#[test]
fn flops_count_matrices_and_what_attention_sees() {
    let c = config("");
    let attention = 28.0 * 4.0 * 16.0 * 128.0;
    let dense = 2.0 * c.matmul_params() as f64;
    assert_eq!(c.flops_per_token(1), dense + attention);
    // rows see 1, 2, 3, 4, 5: three on average
    assert_eq!(c.flops_per_token(5), dense + 3.0 * attention);
    assert_eq!(c.train_flops_per_token(5), 3.0 * c.flops_per_token(5));
    let windowed =
        config(r#", "use_sliding_window": true, "sliding_window": 2, "max_window_layers": 0"#);
    // rows see 1, 2, 2, 2, 2
    assert_eq!(windowed.flops_per_token(5), dense + 1.8 * attention);
}

#[test]
fn the_table_says_where_and_how() {
    let c = config("");
    let params = c.params();
    let find = |name: &str| params.iter().find(|p| p.name == name).unwrap();
    let q = find("model.layers.3.self_attn.q_proj.weight");
    assert_eq!(
        (q.segment, q.role, q.shard),
        (7, Role::Linear, Shard::Heads)
    );
    assert_eq!(q.shape, [2048, 1024]);
    let o = find("model.layers.3.self_attn.o_proj.weight");
    assert_eq!((o.segment, o.shard), (7, Shard::Row(Cut::Heads)));
    assert_eq!(o.shape, [1024, 2048]);
    let down = find("model.layers.0.mlp.down_proj.weight");
    assert_eq!((down.segment, down.shard), (2, Shard::Row(Cut::Column)));
    let norm = find("model.norm.weight");
    assert_eq!(
        (norm.segment, norm.init, norm.decay),
        (57, Init::Ones, false)
    );
    let head = find("lm_head.weight");
    assert_eq!(
        (head.segment, head.role, head.shard),
        (58, Role::Head, Shard::Vocab)
    );
    assert!(head.decay && q.decay);
    assert_eq!(params[0].role, Role::Embed);
    assert!(params.windows(2).all(|w| w[0].segment <= w[1].segment));
    let k_norm = find("model.layers.0.self_attn.k_norm.weight");
    assert_eq!(
        (&k_norm.shape[..], k_norm.shard),
        (&[128][..], Shard::Inside)
    );
    let k = find("model.layers.0.self_attn.k_proj.weight");
    assert_eq!((k.shard, k.expert), (Shard::KvHeads, None));
}
