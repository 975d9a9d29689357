//! Stages on meshes: what one rank generates and scores, several do, however they hold the weights.

#[allow(dead_code, reason = "shared with the other tests of stages")]
#[path = "../main/bench.rs"]
mod bench;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spec::placement::{Mesh, RolloutMesh};

use bench::{Bench, read_rows};

/// Ranks of a mesh and how they hold the weights: in training, and generating if that is said.
struct Case {
    ranks: u32,
    mesh: Mesh,
    rollout: Option<RolloutMesh>,
}

fn cases() -> Vec<Case> {
    let one = Mesh {
        dp_replicate: 1,
        ..Mesh::default()
    };
    let case = |ranks, mesh, rollout| Case {
        ranks,
        mesh,
        rollout,
    };
    vec![
        // resharded to parts of the matrices
        case(2, Mesh { dp_shard: 2, ..one }, None),
        // the same parts as in training
        case(2, Mesh { tp: 2, ..one }, None),
        case(2, Mesh { pp: 2, ..one }, None),
        // whole on every rank, as told
        case(
            2,
            Mesh { dp_shard: 2, ..one },
            Some(RolloutMesh {
                dp: 2,
                tp: 1,
                ep: 1,
            }),
        ),
        case(
            4,
            Mesh {
                dp_shard: 2,
                cp: 2,
                ..one
            },
            Some(RolloutMesh {
                dp: 2,
                tp: 2,
                ep: 1,
            }),
        ),
    ]
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/models")
        .join(name)
}

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap();
    list.iter().map(|x| x.as_f64().unwrap()).collect()
}

fn close(a: &Value, b: &Value, what: &str) {
    let (a, b) = (numbers(a), numbers(b));
    assert_eq!(a.len(), b.len(), "{what}");
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 1e-4, "{what}: {a} is not {b}");
    }
}

/// Tied embeddings and three key and value heads; three heads of each.
#[test]
fn any_mesh_generates_and_scores_what_one_rank_does() {
    let bench = Bench::new();
    for model in ["qwen3-tied", "llama-linear"] {
        let dir = golden(model);
        let prompts: Vec<Value> = (0..5u32)
            .map(|i| json!({ "tokens": (0..3 + 2 * i).map(|t| (t * 7 + i) % 50 + 3).collect::<Vec<_>>() }))
            .collect();
        let rows = bench.rows(&format!("{model}.jsonl"), &prompts);
        let run = |kind: &str, port: &str, with: &Value, name: &str, case: Option<&Case>| {
            let inputs: [(&str, &Path); 2] = [("model", &dir), (port, &rows)];
            let mut job = bench.job(kind, name, with.clone(), &inputs);
            if let Some(case) = case {
                job.resources.ranks = case.ranks;
                job.resources.mesh = case.mesh;
                job.resources.rollout_mesh = case.rollout;
                for rank in bench.gang(&job) {
                    assert_eq!(rank.code, Some(0), "{name}: {}", rank.stderr);
                }
            } else {
                bench.ok(&job);
            }
            let out = job.outputs.values().next_back().unwrap();
            let file = std::fs::read_dir(out).unwrap().next().unwrap().unwrap();
            read_rows(&file.path())
        };
        let greedy = json!({ "temperature": 0.0, "max_tokens": 12, "ignore_eos": true });
        let alone = run(
            "generate",
            "prompts",
            &greedy,
            &format!("{model} alone"),
            None,
        );
        let score = json!({});
        let scored = run("score", "data", &score, &format!("{model} score"), None);
        for (i, case) in cases().iter().enumerate() {
            let name = format!("{model} {i}");
            let got = run("generate", "prompts", &greedy, &name, Some(case));
            assert_eq!(got.len(), alone.len());
            for (a, b) in got.iter().zip(&alone) {
                assert_eq!(a["tokens"], b["tokens"], "{name}");
                close(&a["logprobs"], &b["logprobs"], &name);
            }
            if case.rollout.is_none() {
                let name = format!("{model} score {i}");
                let got = run("score", "data", &score, &name, Some(case));
                for (a, b) in got.iter().zip(&scored) {
                    close(&a["logprobs"], &b["logprobs"], &name);
                }
            }
        }
    }
}

/// Two steps of GRPO from the same completions: rollout, reshard and update on every mesh.
#[test]
fn grpo_on_meshes_takes_one_ranks_steps() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let with = json!({
        "environment": { "name": "addition", "digits": 1 }, "steps": 2, "batch_size": 3,
        "group_size": 4, "max_tokens": 4, "lr": 0.05, "optimizer": "sgd", "grad_clip": 0.0,
    });
    let alone = bench.run(&bench.job("grpo", "alone", with.clone(), &[("model", &model)]));
    assert_eq!(alone.code, Some(0), "{}", alone.stderr);
    for (i, case) in cases().into_iter().enumerate() {
        let mut job = bench.job(
            "grpo",
            &format!("mesh{i}"),
            with.clone(),
            &[("model", &model)],
        );
        job.resources.ranks = case.ranks;
        job.resources.mesh = case.mesh;
        job.resources.rollout_mesh = case.rollout;
        let ranks = bench.gang(&job);
        for rank in &ranks {
            assert_eq!(rank.code, Some(0), "{i}: {}", rank.stderr);
        }
        for metric in ["train/reward", "train/grad_norm", "train/loss"] {
            let (got, want) = (ranks[0].series(metric), alone.series(metric));
            assert_eq!(got.len(), 2, "{metric}");
            for (a, b) in got.iter().zip(&want) {
                assert!(
                    (a - b).abs() <= 1e-4 * b.abs().max(1e-2),
                    "{i} {metric}: {a} is not {b}"
                );
            }
        }
    }
}
