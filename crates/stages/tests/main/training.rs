//! Every training kind learns, scores and evaluates, alone and with a second rank.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bench::{Bench, digest, preferences, read_rows, sums};

/// Inputs of a job by name.
type Inputs<'a> = Vec<(&'a str, &'a Path)>;

#[test]
fn init_is_a_function_of_its_seed() {
    let bench = Bench::new();
    let first = bench.tiny("first", json!({}));
    assert_eq!(digest(&first), digest(&bench.tiny("second", json!({}))));
    assert_ne!(
        digest(&first),
        digest(&bench.tiny("third", json!({ "seed": 4 })))
    );
    for file in [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
    ] {
        assert!(first.join(file).exists(), "{file}");
    }
    let data = bench.rows("text.jsonl", &[json!({ "text": "aaabbb aaabbb ab" })]);
    for (family, kind) in [("llama", "byte"), ("qwen2", "bpe"), ("mistral", "char")] {
        let mut with = json!({
            "family": family, "hidden_size": 16, "layers": 1, "heads": 2, "tokenizer": kind,
        });
        if kind == "bpe" {
            with["vocab_size"] = json!(270);
        }
        let inputs: &[(&str, &Path)] = if kind == "byte" {
            &[]
        } else {
            &[("data", &data)]
        };
        bench.ok(&bench.job("init", family, with, inputs));
    }
}

#[test]
fn sft_learns_and_counts_what_it_leaves_out() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let mut rows = sums(20);
    rows.push(json!({ "prompt": "1+", "completion": "2=3 ".repeat(10) }));
    let data = bench.rows("sums.jsonl", &rows);
    let with = json!({
        "steps": 40, "batch_size": 10, "lr": 0.02, "max_length": 16, "overlong": "drop",
        "validate_every": 20,
    });
    let inputs: [(&str, &Path); 3] = [("model", &model), ("data", &data), ("validation", &data)];
    let ended = bench.run(&bench.job("sft", "sft", with, &inputs));
    let metrics = ended.finished();
    let loss = ended.series("train/loss");
    assert!(loss[0] > 2.0 && loss[39] < 1.0, "{loss:?}");
    assert_eq!(
        (metrics["data/examples"], metrics["data/dropped"]),
        (20.0, 1.0)
    );
    assert_eq!(metrics["data/unknown_tokens"], 0.0);
    assert_eq!(ended.series("validation/loss").len(), 2);
    for name in [
        "train/grad_norm",
        "train/lr",
        "timing/step",
        "performance/tokens_per_sec",
        "memory/peak_bytes",
    ] {
        assert!(ended.last().contains_key(name), "{name}");
    }
    // weights, gradients and two moments, and far from all of a machine
    let weights = std::fs::metadata(model.join("model.safetensors"))
        .unwrap()
        .len() as f64;
    let peak = ended.last()["memory/peak_bytes"];
    assert!(peak >= 4.0 * weights && peak < 5e8, "{peak} of {weights}");
}

#[test]
fn text_that_the_tokenizer_has_no_token_for_is_counted() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let mut rows = sums(4);
    rows.push(json!({ "prompt": "1+1=", "completion": "\u{2461}" }));
    let data = bench.rows("sums.jsonl", &rows);
    let with = json!({ "steps": 1, "batch_size": 4 });
    let ended = bench.run(&bench.job("sft", "sft", with, &[("model", &model), ("data", &data)]));
    assert_eq!(ended.finished()["data/unknown_tokens"], 1.0);
}

#[test]
fn dpo_starts_at_ln_2_and_learns_to_prefer() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("pairs.jsonl", &preferences(24));
    let inputs: [(&str, &Path); 3] = [("model", &model), ("data", &data), ("validation", &data)];
    let with = json!({ "steps": 30, "batch_size": 8, "lr": 0.01 });
    let ended = bench.run(&bench.job("dpo", "dpo", with, &inputs));
    let metrics = ended.finished();
    let loss = ended.series("train/loss");
    assert!(
        (loss[0] - std::f64::consts::LN_2).abs() < 1e-6,
        "{}",
        loss[0]
    );
    assert!(
        metrics["validation/rewards/accuracies"] > 0.9,
        "{metrics:?}"
    );
    assert!(metrics["rewards/margins"] > 0.0);

    // evaluated without a reference: the likelier completion
    let out = bench.path("dpo.model");
    let inputs: [(&str, &Path); 2] = [("model", &out), ("data", &data)];
    let ended = bench.run(&bench.job("evaluate", "evaluate", json!({}), &inputs));
    assert!(
        ended.finished()["preference_accuracy"] > 0.9,
        "{:?}",
        ended.finished()
    );
}

#[test]
fn every_dpo_loss_runs() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("pairs.jsonl", &preferences(4));
    let inputs: [(&str, &Path); 2] = [("model", &model), ("data", &data)];
    for loss in [
        "hinge",
        "ipo",
        "robust",
        "cdpo",
        "apo_zero",
        "sigmoid_norm",
        "sppo_hard",
        "simpo",
        "orpo",
    ] {
        let with =
            json!({ "steps": 2, "batch_size": 4, "lr": 0.01, "loss": loss, "sft_weight": 0.1 });
        let ended = bench.run(&bench.job("dpo", loss, with, &inputs));
        assert!(ended.finished()["train/grad_norm"] > 0.0, "{loss}");
    }
}

#[test]
fn dpo_reads_reference_logprobs_of_a_score_stage() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("pairs.jsonl", &preferences(9));
    let inputs: [(&str, &Path); 2] = [("model", &model), ("data", &data)];
    let scored = bench.ok(&bench.job("score", "score", json!({}), &inputs));
    let rows = read_rows(&scored.join("logprobs.jsonl"));
    assert_eq!(rows.len(), 9);
    let chosen = &rows[0]["chosen"];
    let count = |list: &Value| list.as_array().unwrap().len();
    assert_eq!(count(&chosen["tokens"]), count(&chosen["logprobs"]) + 1);

    let with = json!({ "steps": 4, "batch_size": 4, "lr": 0.01 });
    let given = [inputs[0], inputs[1], ("logprobs", &*scored)];
    let known = bench.run(&bench.job("dpo", "known", with.clone(), &given));
    let computed = bench.run(&bench.job("dpo", "computed", with.clone(), &inputs));
    let pairs = known
        .series("train/loss")
        .into_iter()
        .zip(computed.series("train/loss"));
    for (a, b) in pairs {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }

    // scores of other rows are refused
    let other = bench.rows(
        "other.jsonl",
        &preferences(9).into_iter().rev().collect::<Vec<_>>(),
    );
    let inputs: [(&str, &Path); 3] = [("model", &model), ("data", &other), ("logprobs", &scored)];
    let refused = bench.run(&bench.job("dpo", "refused", with, &inputs));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("token"), "{}", refused.stderr);
}

#[test]
fn grpo_learns_a_task_within_reach() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let rows: Vec<Value> = (0..20)
        .map(|i| json!({ "prompt": [{ "role": "user", "content": format!("{i}=") }] }))
        .collect();
    let prompts = bench.rows("prompts.jsonl", &rows);
    let with = json!({
        "environment": { "name": "regex", "pattern": "^1" }, "steps": 24, "batch_size": 16,
        "group_size": 8, "lr": 0.003, "max_tokens": 4, "schedule": "constant",
        "validate_every": 24, "validate_examples": 16,
    });
    let inputs: [(&str, &Path); 2] = [("model", &model), ("data", &prompts)];
    let ended = bench.run(&bench.job("grpo", "grpo", with, &inputs));
    let metrics = ended.finished();
    let reward = ended.series("train/reward");
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(
        mean(&reward[..5]) < 0.3 && mean(&reward[19..]) > 0.5,
        "{reward:?}"
    );
    for error in ended.series("train/token_mult_prob_error") {
        assert!((1.0..1.00001).contains(&error), "{error}");
    }
    assert!(metrics["validation/accuracy"] > 0.5, "{metrics:?}");
    assert!(metrics["train/entropy"] > 0.0);
}

#[test]
fn every_variant_of_grpo_runs() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let variants = [
        json!({ "advantage": "batch", "reduction": "grpo" }),
        json!({ "advantage": "dr_grpo", "reduction": "dr_grpo" }),
        json!({ "advantage": "rloo", "ratio": "reinforce" }),
        json!({ "advantage": "reinforce_plus_plus", "ratio": "gspo", "clip_high": 0.0003 }),
        json!({ "advantage": "gdpo", "ratio": "cispo", "clip_high": 5.0, "correction": "tis" }),
        json!({ "dual_clip": 3.0, "clip_high": 0.28, "correction": "icepop", "updates": 2 }),
        json!({ "kl_beta": 0.1, "kl": "k1", "correction": "sequence" }),
        json!({ "kl_beta": 0.1, "kl": "k2", "overlong": "filter" }),
        json!({ "kl_beta": 0.1, "kl": "k3", "overlong": { "buffer": 2, "factor": 0.5 } }),
        json!({ "dtype": "bf16", "environment": [
            { "name": "addition", "digits": 1 }, { "name": "two_turn", "weight": 2.0 },
        ]}),
    ];
    for (i, variant) in variants.into_iter().enumerate() {
        let mut with = json!({
            "environment": { "name": "addition", "digits": 1 }, "steps": 2, "batch_size": 4,
            "group_size": 4, "lr": 0.001, "max_tokens": 4,
        });
        for (field, value) in variant.as_object().unwrap() {
            with[field] = value.clone();
        }
        let ended = bench.run(&bench.job("grpo", &format!("grpo{i}"), with, &[("model", &model)]));
        assert!(ended.finished()["train/reward"].is_finite(), "{variant}");
    }
}

#[test]
fn evaluate_reports_per_task_with_intervals() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let with = json!({
        "environment": [{ "name": "addition", "digits": 1 }, { "name": "two_turn" }],
        "examples": 20, "samples": 4, "k": [1, 4], "temperature": 1.0, "max_tokens": 4,
    });
    let job = bench.job("evaluate", "evaluate", with, &[("model", &model)]);
    let ended = bench.run(&job);
    let metrics = ended.finished();
    for name in [
        "accuracy",
        "pass@1",
        "pass@4",
        "cons@4",
        "mean_length",
        "truncation_rate",
    ] {
        assert!(metrics.contains_key(name), "{name}: {metrics:?}");
        assert!(
            metrics.contains_key(&format!("addition/{name}")),
            "{name}: {metrics:?}"
        );
    }
    assert!((metrics["accuracy"] - metrics["pass@1"]).abs() < 1e-12);
    assert!(metrics["pass@4"] >= metrics["pass@1"]);
    let report = fs::read_to_string(job.outputs["report"].join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let interval = &report["intervals"]["accuracy"];
    assert!(interval[0].as_f64() <= interval[1].as_f64());
    assert_eq!(report["counts"]["tasks"], 20);
    let completions = read_rows(&job.outputs["completions"].join("completions.jsonl"));
    assert_eq!(completions.len(), 80);

    let card = bench.job(
        "export",
        "export",
        json!({}),
        &[("model", &model), ("report", &job.outputs["report"])],
    );
    let card = fs::read_to_string(bench.ok(&card).join("README.md")).unwrap();
    assert!(card.contains("| accuracy |"), "{card}");
}

#[test]
fn evaluate_measures_perplexity_of_data() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({ "init_std": 1e-9 }));
    let data = bench.rows("sums.jsonl", &sums(6));
    let inputs: [(&str, &Path); 2] = [("model", &model), ("data", &data)];
    let ended = bench.run(&bench.job("evaluate", "evaluate", json!({}), &inputs));
    // all logits equal: the perplexity is the vocabulary
    let config: Value =
        serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap();
    let vocabulary = config["vocab_size"].as_f64().unwrap();
    assert!((ended.finished()["perplexity"] / vocabulary - 1.0).abs() < 1e-4);
}

#[test]
fn two_ranks_do_what_one_does() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("sums.jsonl", &sums(13));
    let pairs = bench.rows("pairs.jsonl", &preferences(13));
    let model_and = |data| -> Inputs { vec![("model", &model), ("data", data)] };
    let train = json!({
        "steps": 6, "batch_size": 5, "lr": 0.05, "optimizer": "sgd", "grad_clip": 0.0,
    });
    let mut grpo = train.clone();
    for (field, value) in [
        ("environment", json!({ "name": "addition", "digits": 1 })),
        ("group_size", json!(4)),
        ("max_tokens", json!(4)),
    ] {
        grpo[field] = value;
    }
    let cases: [(&str, Value, Inputs); 3] = [
        ("sft", train.clone(), model_and(&data)),
        ("dpo", train, model_and(&pairs)),
        ("grpo", grpo, vec![("model", &model)]),
    ];
    let shards = spec::placement::Mesh {
        dp_shard: 2,
        ..Default::default()
    };
    let runs = cases.into_iter().flat_map(|(kind, with, inputs)| {
        let on = |mesh| (kind, with.clone(), inputs.clone(), mesh);
        [spec::placement::Mesh::default(), shards].map(on)
    });
    for (i, (kind, with, inputs, mesh)) in runs.enumerate() {
        let alone = bench.run(&bench.job(kind, &format!("{kind}{i}"), with.clone(), &inputs));
        let mut job = bench.job(kind, &format!("{kind}-two-{i}"), with, &inputs);
        job.resources.ranks = 2;
        job.resources.mesh = mesh;
        job.resources.microbatch_tokens = 24;
        let ranks = bench.gang(&job);
        for rank in &ranks {
            assert_eq!(rank.code, Some(0), "{kind}: {}", rank.stderr);
        }
        assert!(ranks[1].events.is_empty());
        let norms = |ended: &crate::bench::Ended| ended.series("train/grad_norm");
        assert_eq!(norms(&alone).len(), 6);
        for (a, b) in norms(&alone).into_iter().zip(norms(&ranks[0])) {
            assert!(
                (a / b - 1.0).abs() < 1e-5 || (a - b).abs() < 1e-7,
                "{kind}: {a} is not {b}"
            );
        }
        for (a, b) in alone
            .series("train/loss")
            .into_iter()
            .zip(ranks[0].series("train/loss"))
        {
            assert!((a - b).abs() < 1e-5, "{kind}: {a} is not {b}");
        }
    }
}

#[test]
fn two_ranks_generate_score_and_evaluate_what_one_does() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let prompts = bench.rows(
        "prompts.jsonl",
        &["1+1=", "2", "34-5="].map(|p| json!({ "prompt": p })),
    );
    let cases: [(&str, Value, Inputs); 2] = [
        (
            "generate",
            json!({ "n": 3, "max_tokens": 6 }),
            vec![("model", &model), ("prompts", &prompts)],
        ),
        (
            "evaluate",
            json!({ "environment": "addition", "examples": 7, "max_tokens": 4 }),
            vec![("model", &model)],
        ),
    ];
    for (kind, with, inputs) in cases {
        let alone = bench.job(kind, &format!("{kind}1"), with.clone(), &inputs);
        bench.ok(&alone);
        let mut job = bench.job(kind, &format!("{kind}2"), with, &inputs);
        job.resources.ranks = 2;
        for rank in bench.gang(&job) {
            assert_eq!(rank.code, Some(0), "{kind}: {}", rank.stderr);
        }
        for (name, dir) in &alone.outputs {
            assert_eq!(digest(dir), digest(&job.outputs[name]), "{kind}.{name}");
        }
    }
}
