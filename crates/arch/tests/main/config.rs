//! What is read from `config.json`, and what is refused.

use arch::{ExpertSizes, FAMILIES, ModelConfig, Scaling, Sizes};
use serde_json::{Value, json};

fn base(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    })
}

fn with(model_type: &str, more: Value) -> Result<ModelConfig, String> {
    let mut config = base(model_type);
    for (key, value) in more.as_object().unwrap() {
        if value == "ABSENT" {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    ModelConfig::from_json(&config.to_string()).map_err(|e| e.to_string())
}

#[test]
fn absent_keys_mean_what_transformers_takes_them_for() {
    let bare = |family| {
        with(family, json!({"num_key_value_heads": "ABSENT", "max_position_embeddings": "ABSENT", "num_attention_heads": 32, "rms_norm_eps": "ABSENT"})).unwrap()
    };
    let found: Vec<_> = FAMILIES
        .iter()
        .map(|f| {
            let c = bare(f.model_type);
            (
                f.model_type,
                c.kv_heads,
                c.head_dim,
                c.max_positions,
                c.windows[3],
                c.qkv_bias,
                c.o_bias,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("llama", 32, 2, 2048, None, false, false),
            ("qwen2", 32, 2, 32768, None, true, false),
            ("qwen3", 32, 128, 32768, None, false, false),
            ("mistral", 8, 2, 131072, Some(4096), false, false),
            ("mixtral", 8, 2, 131072, None, false, false),
            ("qwen3_moe", 4, 2, 32768, None, false, false),
        ]
    );
    let c = bare("llama");
    assert_eq!(
        (c.norm_eps, c.rope.theta, c.tie_embeddings),
        (1e-6, 10_000.0, false)
    );
    let c = bare("mixtral");
    assert_eq!((c.norm_eps, c.rope.theta), (1e-5, 1_000_000.0));
    let experts = |family| {
        let e = bare(family).experts.unwrap();
        (e.count, e.per_token, e.intermediate_size, e.normalize)
    };
    assert_eq!(experts("mixtral"), (8, 2, 96, true));
    assert_eq!(experts("qwen3_moe"), (128, 8, 768, false));
    let null = with(
        "mistral",
        json!({"num_key_value_heads": null, "sliding_window": null}),
    )
    .unwrap();
    assert_eq!((null.kv_heads, null.windows), (8, vec![None; 4]));
}

#[test]
fn layers_have_experts_by_each_familys_rule() {
    let sparse = |more: Value| {
        let c = with("qwen3_moe", more).unwrap();
        let layers = (0..4).filter(|l| c.experts_of(*l).is_some());
        layers.collect::<Vec<_>>()
    };
    assert_eq!(sparse(json!({})), [0, 1, 2, 3]);
    assert_eq!(sparse(json!({"decoder_sparse_step": 2})), [1, 3]);
    assert_eq!(sparse(json!({"mlp_only_layers": [0, 3]})), [1, 2]);
    assert_eq!(
        sparse(json!({"mlp_only_layers": [1], "decoder_sparse_step": 2})),
        [3]
    );
    // no expert anywhere is a dense model
    assert!(sparse(json!({"num_experts": 0})).is_empty());
    assert!(sparse(json!({"mlp_only_layers": [0, 1, 2, 3]})).is_empty());
    let count = |more| with("qwen3_moe", more).unwrap().experts.unwrap().count;
    assert_eq!(count(json!({"num_experts": 12})), 12);
    assert_eq!(count(json!({"num_local_experts": 12})), 12);
    let windows = |more| with("qwen3_moe", more).unwrap().windows;
    assert_eq!(
        windows(json!({"use_sliding_window": true, "sliding_window": 5})),
        [Some(5); 4]
    );
    assert_eq!(windows(json!({"sliding_window": 5})), [None; 4]);
}

#[test]
fn windows_follow_each_familys_rule() {
    let windows = |family, more| with(family, more).map(|c| c.windows);
    for family in ["qwen2", "qwen3"] {
        let on = json!({"use_sliding_window": true, "sliding_window": 9, "max_window_layers": 1});
        let want = vec![None, Some(9), Some(9), Some(9)];
        assert_eq!(windows(family, on), Ok(want));
        let off = json!({"use_sliding_window": false, "sliding_window": 9, "max_window_layers": 0});
        assert_eq!(windows(family, off), Ok(vec![None; 4]));
        let listed = json!({
            "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"],
        });
        assert_eq!(windows(family, listed), Ok(vec![None, Some(7), None, None]));
    }
    assert_eq!(
        windows("mistral", json!({"sliding_window": 5})),
        Ok(vec![Some(5); 4])
    );
    assert_eq!(
        windows("llama", json!({"sliding_window": 5})),
        Ok(vec![None; 4])
    );
}

#[test]
fn rope_is_read_in_the_old_form_and_the_new() {
    let scaling = json!({
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    });
    let mut old = scaling.clone();
    old["type"] = "llama3".into();
    let mut new = scaling.clone();
    new["rope_type"] = "llama3".into();
    new["rope_theta"] = 500_000.0.into();
    let old = with("llama", json!({"rope_theta": 500000, "rope_scaling": old})).unwrap();
    let new = with("llama", json!({"rope_parameters": new})).unwrap();
    assert_eq!(old.rope, new.rope);
    assert_eq!(old.rope.theta, 500_000.0);
    assert!(matches!(
        old.rope.scaling,
        Scaling::Llama3 {
            original_max_positions: 128,
            ..
        }
    ));
    // an empty table is no table
    let empty = with(
        "llama",
        json!({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7.0}}),
    );
    assert_eq!(empty.unwrap().rope.theta, 7.0);
    // before its maximum, dynamic scaling is none
    let dynamic = json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}});
    assert_eq!(with("llama", dynamic).unwrap().rope.scaling, Scaling::None);
}

#[test]
fn what_is_not_computed_is_refused_by_key_and_value() {
    let cases = [
        (
            "llama",
            json!({"model_type": "gemma"}),
            "'model_type' is \"gemma\", which is not supported; known: llama, qwen2, qwen3, mistral",
        ),
        (
            "llama",
            json!({"model_type": "ABSENT"}),
            "'model_type' is absent",
        ),
        (
            "llama",
            json!({"model_type": 3}),
            "'model_type' is 3, but must be a string",
        ),
        (
            "llama",
            json!({"hidden_act": "gelu"}),
            "'hidden_act' is \"gelu\", which is not supported; known: silu",
        ),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "longrope", "factor": 2}}),
            "'rope_scaling.rope_type' is \"longrope\", which is not supported; known: default, linear, dynamic, llama3, yarn",
        ),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "mrope"}}),
            "'rope_parameters.rope_type' is \"mrope\"",
        ),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "linear"}}),
            "no 'rope_scaling.factor', which model_type 'llama' needs",
        ),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "linear", "factor": -1}}),
            "'rope_scaling.factor' is -1, but must be a number above zero",
        ),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}}),
            "must be above low_freq_factor (4)",
        ),
        (
            "llama",
            json!({"rope_scaling": 3}),
            "'rope_scaling' is 3, but must be an object",
        ),
        (
            "qwen3",
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "parameters per layer type",
        ),
        (
            "llama",
            json!({"partial_rotary_factor": 0.5}),
            "'partial_rotary_factor' is 0.5",
        ),
        (
            "llama",
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "'rope_parameters.partial_rotary_factor' is 0.5",
        ),
        (
            "llama",
            json!({"attention_dropout": 0.1}),
            "'attention_dropout' is 0.1, which is not supported; set it to 0.0",
        ),
        (
            "llama",
            json!({"quantization_config": {"bits": 4}}),
            "'quantization_config' is {\"bits\":4}",
        ),
        (
            "llama",
            json!({"architectures": ["LlamaForSequenceClassification"]}),
            "'architectures' is [\"LlamaForSequenceClassification\"]",
        ),
        (
            "llama",
            json!({"vocab_size": "ABSENT"}),
            "no 'vocab_size', which model_type 'llama' needs",
        ),
        (
            "llama",
            json!({"vocab_size": "many"}),
            "'vocab_size' is \"many\", but must be a positive whole number",
        ),
        ("llama", json!({"vocab_size": 0}), "'vocab_size' is 0"),
        (
            "llama",
            json!({"num_hidden_layers": 1.5}),
            "'num_hidden_layers' is 1.5",
        ),
        ("llama", json!({"hidden_size": -64}), "'hidden_size' is -64"),
        (
            "llama",
            json!({"hidden_size": 4294967296u64}),
            "'hidden_size' is 4294967296",
        ),
        (
            "llama",
            json!({"hidden_size": 60}),
            "'hidden_size' is 60, but must be a multiple of num_attention_heads (8)",
        ),
        (
            "llama",
            json!({"head_dim": 5}),
            "'head_dim' is 5, but must be an even number",
        ),
        (
            "llama",
            json!({"num_key_value_heads": 3}),
            "'num_key_value_heads' is 3, but must be a divisor of num_attention_heads (8)",
        ),
        ("llama", json!({"rms_norm_eps": 0}), "'rms_norm_eps' is 0"),
        (
            "llama",
            json!({"attention_bias": "yes"}),
            "'attention_bias' is \"yes\", but must be true or false",
        ),
        (
            "qwen2",
            json!({"layer_types": ["full_attention"]}),
            "'layer_types' is [\"full_attention\"], which is not supported; it must name each of the 4 layers",
        ),
        (
            "qwen2",
            json!({"layer_types": vec!["sliding_attention"; 4]}),
            "sliding_attention needs use_sliding_window",
        ),
        (
            "qwen3",
            json!({"layer_types": vec!["chunked_attention"; 4]}),
            "known: full_attention, sliding_attention",
        ),
        (
            "mixtral",
            json!({"router_jitter_noise": 0.1}),
            "'router_jitter_noise' is 0.1, which is not supported; set it to 0.0",
        ),
        (
            "mixtral",
            json!({"num_experts_per_tok": 9}),
            "'num_experts_per_tok' is 9, but must be at most the 8 experts of a layer",
        ),
        (
            "mixtral",
            json!({"num_local_experts": 0}),
            "'num_local_experts' is 0, but must be a positive whole number",
        ),
        (
            "qwen3_moe",
            json!({"num_local_experts": 4, "num_experts": 8}),
            "'num_local_experts' is 4, but must be equal to num_experts (8)",
        ),
        (
            "qwen3_moe",
            json!({"num_experts": 70000}),
            "'num_experts' is 70000, but must be at most 65536",
        ),
        (
            "qwen3_moe",
            json!({"mlp_only_layers": ["a"]}),
            "'mlp_only_layers' is [\"a\"], but must be a list of whole numbers",
        ),
        (
            "mistral",
            json!({"layer_types": vec!["full_attention"; 4]}),
            "only sliding_attention in every layer is",
        ),
    ];
    for (family, more, want) in cases {
        let error = with(family, more).unwrap_err();
        assert!(error.contains(want), "{error}\nwanted: {want}");
    }
    for (text, want) in [("[1]", "it holds a list"), ("{", "EOF"), ("", "EOF")] {
        let error = ModelConfig::from_json(text).unwrap_err().to_string();
        assert!(
            error.contains("not a JSON object") && error.contains(want),
            "{error}"
        );
    }
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let absent = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(absent.contains("config.json"), "{absent}");
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    let bad = ModelConfig::from_dir(dir.path()).unwrap_err().to_string();
    assert!(bad.contains(&dir.path().display().to_string()), "{bad}");
}

#[test]
fn what_is_written_reads_back() {
    for family in FAMILIES {
        let mut sizes = Sizes {
            model_type: family.model_type.into(),
            hidden_size: 48,
            intermediate_size: 80,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: Some(20),
            max_position_embeddings: 256,
            tie_word_embeddings: true,
            experts: family.expert_keys.map(|_| ExpertSizes {
                count: 4,
                per_token: 2,
                intermediate_size: 80,
            }),
            extra: serde_json::Map::new(),
        };
        let c = sizes.config(300, None, Some(2), Some(0)).unwrap();
        let again = ModelConfig::from_json(&c.to_json(None)).unwrap();
        assert_eq!(again.raw, c.raw);
        assert_eq!(again.params(), c.params());
        assert_eq!((c.vocab_size, c.head_dim, c.max_positions), (300, 20, 256));
        assert_eq!(c.windows, [None; 3]);
        assert_eq!(c.raw["architectures"], json!([family.architecture]));
        assert_eq!(c.raw["eos_token_id"], 2);

        // experts are said where there are some, and only there
        let said = sizes.experts;
        let some = ExpertSizes {
            count: 4,
            per_token: 2,
            intermediate_size: 80,
        };
        sizes.experts = said.is_none().then_some(some);
        let error = sizes.config(300, None, None, None).unwrap_err().to_string();
        assert!(error.contains(family.model_type), "{error}");
        sizes.experts = said;
        if let Some(experts) = &c.experts {
            assert_eq!((experts.count, experts.per_token), (4, 2));
            assert_eq!(experts.intermediate_size, 80);
        }

        sizes.extra.insert("hidden_act".into(), "gelu".into());
        assert!(sizes.config(300, None, None, None).is_err());
        sizes.extra.clear();
        sizes.num_attention_heads = 0;
        assert!(sizes.config(300, None, None, None).is_err());
    }
}

#[test]
fn the_dtype_is_written_under_the_name_it_had() {
    let new = with("llama", json!({"dtype": "bfloat16"})).unwrap();
    assert!(
        new.to_json(Some("float32"))
            .contains("\"dtype\": \"float32\"")
    );
    let old = with("llama", json!({"torch_dtype": "bfloat16"})).unwrap();
    let text = old.to_json(Some("float32"));
    assert!(text.contains("\"torch_dtype\": \"float32\"") && !text.contains("\"dtype\""));
}
