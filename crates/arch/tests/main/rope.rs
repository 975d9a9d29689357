//! Frequencies beside values printed by transformers 5.23 (`ROPE_INIT_FUNCTIONS`).

use arch::ModelConfig;

fn rope(scaling: &str) -> arch::Rope {
    ModelConfig::from_json(&format!(
        r#"{{"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 256,
            "rope_parameters": {{"rope_theta": 10000.0, {scaling}}}}}"#
    ))
    .unwrap()
    .rope
}

fn near(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!(
            (f64::from(*g) - w).abs() <= 3e-7 * w.abs(),
            "{got:?} beside {want:?}"
        );
    }
}

#[test]
fn frequencies_are_those_of_transformers() {
    let r = rope(r#""rope_type": "linear", "factor": 2.5"#);
    near(
        &r.inv_freq(),
        &[
            0.4000000059604645,
            0.12649109959602356,
            0.03999999910593033,
            0.012649111449718475,
            0.003999999724328518,
            0.0012649111449718475,
            0.0004000000189989805,
            0.0001264911115868017,
        ],
    );
    assert!((r.attention_factor() - 1.0).abs() < 1e-12);
    let r = rope(
        r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64"#,
    );
    near(
        &r.inv_freq(),
        &[
            1.0,
            0.24438458681106567,
            0.013042256236076355,
            0.0039528473280370235,
            0.0012499999720603228,
            0.00039528473280370235,
            0.0001250000059371814,
            3.9528473280370235e-05,
        ],
    );
    assert!((r.attention_factor() - 1.0).abs() < 1e-12);
    let r = rope(r#""rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64"#);
    near(
        &r.inv_freq(),
        &[
            1.0,
            0.23717081546783447,
            0.04999999701976776,
            0.007905694656074047,
            0.0024999999441206455,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05,
        ],
    );
    assert!((r.attention_factor() - 1.138629436111989).abs() < 1e-12);
    let r = rope(
        r#""rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 16, "beta_slow": 2, "truncate": false, "mscale": 1.5, "mscale_all_dim": 0.7"#,
    );
    near(
        &r.inv_freq(),
        &[
            1.0,
            0.03952847048640251,
            0.012500000186264515,
            0.0039528473280370235,
            0.0012499999720603228,
            0.00039528473280370235,
            0.0001250000059371814,
            3.9528473280370235e-05,
        ],
    );
    assert!((r.attention_factor() - 1.1452173535118173).abs() < 1e-12);
    let r = rope(r#""rope_type": "yarn", "factor": 8.0, "attention_factor": 1.25"#);
    near(
        &r.inv_freq(),
        &[
            1.0,
            0.24705293774604797,
            0.05625000223517418,
            0.010870330035686493,
            0.0012499999720603228,
            0.00039528473280370235,
            0.0001250000059371814,
            3.9528473280370235e-05,
        ],
    );
    assert!((r.attention_factor() - 1.25).abs() < 1e-12);
    let plain = rope(r#""rope_type": "default""#);
    near(
        &plain.inv_freq(),
        &[
            1.0,
            0.316_227_76,
            0.1,
            0.031_622_777,
            0.01,
            0.003_162_277_6,
            0.001,
            0.000_316_227_76,
        ],
    );
    assert_eq!(plain.attention_factor(), 1.0);
}
