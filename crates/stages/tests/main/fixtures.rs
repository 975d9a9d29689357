//! The stages on models that transformers made (tests/golden/models), against what it computes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bench::{Bench, digest, read_rows};

fn models() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models");
    let mut models: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("config.json").exists())
        .collect();
    models.sort();
    assert!(models.len() >= 7, "{models:?}");
    models
}

fn expected(model: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(model.join("expected.json")).unwrap()).unwrap()
}

fn floats(list: &Value) -> Vec<f64> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|x| x.as_f64().unwrap())
        .collect()
}

#[test]
fn score_agrees_with_transformers_packed_and_alone() {
    for model in models() {
        let expected = expected(&model);
        let sequences: Vec<&Value> = expected["sequences"].as_array().unwrap().iter().collect();
        let rows: Vec<Value> = sequences
            .iter()
            .map(|tokens| json!({ "tokens": tokens }))
            .collect();
        let bench = Bench::new();
        let data = bench.rows("rows.jsonl", &rows);
        for microbatch_tokens in [1, 4096] {
            let name = format!("score{microbatch_tokens}");
            let inputs: [(&str, &Path); 2] = [("model", &model), ("data", &data)];
            let mut job = bench.job("score", &name, json!({}), &inputs);
            job.resources.microbatch_tokens = microbatch_tokens;
            let scored = read_rows(&bench.ok(&job).join("logprobs.jsonl"));
            assert_eq!(scored.len(), rows.len());
            for (i, row) in scored.iter().enumerate() {
                assert_eq!(&row["tokens"], sequences[i]);
                let (ours, theirs) = (floats(&row["logprobs"]), floats(&expected["logprobs"][i]));
                assert_eq!(ours.len(), theirs.len());
                for (a, b) in ours.iter().zip(theirs) {
                    assert!(
                        (a - b).abs() < 1e-4,
                        "{} row {i}: {a} is not {b}",
                        model.display()
                    );
                }
            }
        }
    }
}

#[test]
fn greedy_generation_is_that_of_transformers() {
    for model in models() {
        let greedy = expected(&model)["greedy"].clone();
        let greedy = if greedy.is_array() {
            greedy
        } else {
            json!([greedy])
        };
        let greedy = greedy.as_array().unwrap();
        let rows: Vec<Value> = greedy
            .iter()
            .map(|g| json!({ "tokens": g["tokens"] }))
            .collect();
        let bench = Bench::new();
        let prompts = bench.rows("prompts.jsonl", &rows);
        let with = json!({ "temperature": 0.0, "max_tokens": 24, "ignore_eos": true });
        let inputs: [(&str, &Path); 2] = [("model", &model), ("prompts", &prompts)];
        let out = bench.ok(&bench.job("generate", "generate", with, &inputs));
        let completions = read_rows(&out.join("completions.jsonl"));
        assert_eq!(completions.len(), greedy.len());
        for (i, completion) in completions.iter().enumerate() {
            assert_eq!(
                completion["tokens"],
                greedy[i]["completion"],
                "{}",
                model.display()
            );
            assert_eq!(completion["index"], i);
            assert_eq!(completion["sample"], 0);
            assert_eq!(completion["finish_reason"], "length");
            assert_eq!(completion["logprobs"].as_array().unwrap().len(), 24);
        }
    }
}

#[test]
fn convert_then_export_keeps_every_file_of_the_weights() {
    for model in models() {
        let bench = Bench::new();
        let converted = bench.ok(&bench.job("convert", "convert", json!({}), &[("model", &model)]));
        let out = bench.ok(&bench.job("export", "export", json!({}), &[("model", &converted)]));
        let card = fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.contains("key of this export"), "{card}");
        fs::remove_file(out.join("README.md")).unwrap();
        assert_eq!(digest(&out), digest(&converted), "{}", model.display());
        for name in ["config.json", "tokenizer.json", "generation_config.json"] {
            let bytes = |dir: &Path| fs::read(dir.join(name)).unwrap();
            assert_eq!(
                bytes(&out),
                bytes(&model),
                "{} of {}",
                name,
                model.display()
            );
        }
    }
}
