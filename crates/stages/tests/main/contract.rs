//! The contract with the runner: identity, events, exit codes, bad input.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use spec::{Event, FailureClass};

use crate::bench::{Bench, Ended, WORKER, sums};

fn failed(ended: &Ended) -> (FailureClass, &str, &str) {
    match ended.events.last() {
        Some(Event::Failed {
            class,
            code,
            message,
            ..
        }) => (*class, code, message),
        other => panic!("not failed: {other:?}\n{}", ended.stderr),
    }
}

#[test]
fn identity_names_sources_and_libtorch() {
    let output = Command::new(WORKER).arg("identity").output().unwrap();
    let identity: spec::Trainer = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(identity.sources.len(), 64);
    assert!(
        identity.libtorch.starts_with("2.11"),
        "{}",
        identity.libtorch
    );
}

/// A crate that the worker is built from but not digested would hide its changes from keys.
#[test]
fn every_crate_of_the_worker_is_digested() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let build = fs::read_to_string(format!("{root}/crates/stages/build.rs")).unwrap();
    let metadata = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "-p",
            "stages",
            "-e",
            "normal,build",
            "--prefix",
            "none",
        ])
        .current_dir(root)
        .output()
        .unwrap();
    let tree = String::from_utf8(metadata.stdout).unwrap();
    let root = fs::canonicalize(root).unwrap();
    let mut own = 0;
    for line in tree.lines() {
        let Some((_, path)) = line.split_once(&format!("({}/", root.display())) else {
            continue;
        };
        let path = path.split(')').next().unwrap();
        own += 1;
        assert!(
            build.contains(&format!("\"{path}\"")),
            "build.rs does not digest {path}"
        );
    }
    assert!(own >= 10, "{tree}");
}

#[test]
fn the_worker_runs_every_kind_that_needs_a_trainer() {
    let mut ours: Vec<&str> = stages::kinds().collect();
    let mut theirs: Vec<&str> = spec::KINDS
        .iter()
        .filter(|kind| kind.trainer)
        .map(|kind| kind.name)
        .collect();
    ours.sort_unstable();
    theirs.sort_unstable();
    assert_eq!(ours, theirs);
}

/// Every choice of a recipe has its function, under the same name.
#[test]
fn every_variant_of_a_recipe_has_its_loss() {
    fn words(kind: &str, field: &str) -> Vec<String> {
        let mut generator = schemars::SchemaGenerator::default();
        spec::kind(kind).unwrap().schema(&mut generator);
        let definitions = serde_json::to_value(generator.definitions()).unwrap();
        let choices = &definitions[field];
        let list = choices
            .get("oneOf")
            .or(choices.get("enum"))
            .unwrap_or(choices);
        list.as_array()
            .unwrap_or_else(|| panic!("{field}: {definitions:#}"))
            .iter()
            .flat_map(|one| match one {
                Value::String(word) => vec![word.clone()],
                other => match other.get("enum").and_then(Value::as_array) {
                    Some(words) => words.iter().map(|w| w.as_str().unwrap().into()).collect(),
                    None => vec![other["const"].as_str().unwrap().to_string()],
                },
            })
            .collect()
    }
    use train::loss::{advantage, dpo, find, grpo};
    for word in words("dpo", "Loss") {
        find(dpo::LOSSES, &word).unwrap();
    }
    for word in words("grpo", "Advantage") {
        find(advantage::ADVANTAGES, &word).unwrap();
    }
    for word in words("grpo", "Ratio") {
        find(grpo::TERMS, &word).unwrap();
    }
    for word in words("grpo", "Reduction") {
        find(grpo::REDUCTIONS, &word).unwrap();
    }
    for word in words("grpo", "Correction") {
        find(grpo::CORRECTIONS, &word).unwrap();
    }
    for word in words("grpo", "Kl").iter().filter(|word| *word != "k1") {
        find(grpo::KLS, word).unwrap();
    }
}

#[test]
fn bad_input_is_one_typed_failure() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("sums.jsonl", &sums(4));
    let sft = |with: Value, name: &str, data: &std::path::Path| {
        bench.run(&bench.job("sft", name, with, &[("model", &model), ("data", data)]))
    };

    let ended = sft(json!({ "steps": 1, "lrr": 1.0 }), "field", &data);
    let (class, _, message) = failed(&ended);
    assert_eq!((ended.code, class), (Some(2), FailureClass::Config));
    assert!(message.contains("lrr"), "{message}");

    let broken = bench.path("broken.jsonl");
    fs::write(
        &broken,
        "{\"messages\": [{\"role\": \"user\", \"content\": \"1\"}, {\"role\": \"assistant\", \"content\": \"2\"}]}\n{oops\n",
    )
    .unwrap();
    let ended = sft(json!({ "steps": 1 }), "row", &broken);
    let (class, code, message) = failed(&ended);
    assert_eq!(
        (ended.code, class, code),
        (Some(2), FailureClass::Config, "W0202")
    );
    assert!(message.contains("broken.jsonl:2"), "{message}");

    let ended = sft(
        json!({ "steps": 1, "max_length": 3, "overlong": "drop" }),
        "short",
        &data,
    );
    let (class, _, message) = failed(&ended);
    assert_eq!((ended.code, class), (Some(2), FailureClass::Config));
    assert!(message.contains("4 rows were dropped"), "{message}");

    // the embedding has fewer rows than the tokenizer has ids
    let small = bench.path("small");
    fs::create_dir(&small).unwrap();
    for entry in fs::read_dir(&model).unwrap().flatten() {
        fs::copy(entry.path(), small.join(entry.file_name())).unwrap();
    }
    let weights = small.join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let job = bench.job(
        "sft",
        "torn",
        json!({ "steps": 1 }),
        &[("model", &small), ("data", &data)],
    );
    let ended = bench.run(&job);
    let (class, code, message) = failed(&ended);
    assert_eq!(
        (ended.code, class, code),
        (Some(2), FailureClass::Config, "W0301")
    );
    assert!(message.contains("model.safetensors"), "{message}");
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn a_learning_rate_that_blows_up_is_a_failed_stage() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("sums.jsonl", &sums(8));
    let with = json!({
        "steps": 60, "batch_size": 4, "lr": 1e30, "optimizer": "sgd", "grad_clip": 0.0,
        "schedule": "constant",
    });
    let ended = bench.run(&bench.job("sft", "sft", with, &[("model", &model), ("data", &data)]));
    let (class, code, _) = failed(&ended);
    assert_eq!(
        (ended.code, class, code),
        (Some(1), FailureClass::Failed, "W0401")
    );
}
