//! Greedy completions equal transformers' on every golden model.

use model::{Decoder, Weights};
use rollout::{Request, Rollout, RolloutConfig, Sampling};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tch::{Device, Kind};

fn models() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut found: Vec<_> = std::fs::read_dir(&root)
        .expect("golden models")
        .map(|e| e.expect("a directory entry").path())
        .filter(|p| p.join("expected.json").is_file())
        .collect();
    found.sort();
    assert!(
        found.len() >= 5,
        "golden models are missing from {}",
        root.display()
    );
    found
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array()
        .expect("a list of ids")
        .iter()
        .map(|t| t.as_u64().expect("an id") as u32)
        .collect()
}

#[test]
fn greedy_equals_transformers() {
    for dir in models() {
        let text = std::fs::read_to_string(dir.join("expected.json")).expect("a fixture");
        let expected: Value = serde_json::from_str(&text).expect("a fixture in JSON");
        let config = arch::ModelConfig::from_dir(&dir).expect("a configuration");
        let weights = Weights::load(&dir, &config, Kind::Float, Device::Cpu).expect("weights");
        let decoder = Decoder::new(config);
        let cases = expected["greedy"].as_array().expect("greedy cases");
        assert!(!cases.is_empty());
        for (plain, max_rows) in [(false, 1024), (false, 5), (true, 1024), (true, 5)] {
            let sizes = RolloutConfig {
                plain,
                max_rows,
                cache_tokens: 2048,
                ..RolloutConfig::default()
            };
            let mut rollout = Rollout::new(&decoder, &weights, sizes).expect("a rollout");
            let requests = cases.iter().enumerate().map(|(i, case)| Request {
                id: i as u64,
                prompt: ids(&case["tokens"]),
                samples: 1,
                sampling: Sampling {
                    max_tokens: case["completion"].as_array().expect("a completion").len(),
                    temperature: 0.0,
                    ignore_eos: true,
                    ..Sampling::default()
                },
            });
            let samples = rollout.run_all(requests.collect()).expect("completions");
            for (sample, case) in samples.iter().zip(cases) {
                assert_eq!(
                    sample.tokens,
                    ids(&case["completion"]),
                    "{} plain {plain} rows {max_rows}",
                    dir.display()
                );
            }
        }
    }
}
