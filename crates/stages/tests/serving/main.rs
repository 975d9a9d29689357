//! Stages on meshes: what one rank generates and scores, several do, however they hold the weights.

#[allow(dead_code, reason = "shared with the other tests of stages")]
#[path = "../main/bench.rs"]
mod bench;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use spec::JobSpec;
use spec::placement::{Mesh, RolloutMesh};

use bench::{Bench, Ended, read_rows};

/// Ranks of a mesh and how they hold the weights: in training, and generating if that is said.
struct Case {
    ranks: u32,
    mesh: Mesh,
    rollout: Option<RolloutMesh>,
}

const ONE: Mesh = Mesh {
    dp_replicate: 1,
    dp_shard: 1,
    tp: 1,
    cp: 1,
    pp: 1,
    pp_chunks: 1,
    ep: 1,
    sp: true,
};

fn case(ranks: u32, mesh: Mesh, rollout: Option<[u32; 3]>) -> Case {
    Case {
        ranks,
        mesh,
        rollout: rollout.map(|[dp, tp, ep]| RolloutMesh { dp, tp, ep }),
    }
}

fn cases() -> Vec<Case> {
    let shards = Mesh { dp_shard: 2, ..ONE };
    vec![
        // resharded to parts of the matrices
        case(2, shards, None),
        // the same parts as in training
        case(2, Mesh { tp: 2, ..ONE }, None),
        case(2, Mesh { pp: 2, ..ONE }, None),
        // whole on every rank, as told
        case(2, shards, Some([2, 1, 1])),
        case(4, Mesh { cp: 2, ..shards }, Some([2, 2, 1])),
    ]
}

/// For models with experts.
fn expert_cases() -> Vec<Case> {
    let experts = Mesh { ep: 2, ..ONE };
    vec![
        // experts as in training
        case(2, experts, None),
        // gathered to whole ones, and dealt out where training had parts of each
        case(2, experts, Some([2, 1, 1])),
        case(2, Mesh { dp_shard: 2, ..ONE }, Some([1, 1, 2])),
        // parts of the matrices, of every expert's too
        case(2, Mesh { tp: 2, ..ONE }, None),
        // two groups of two
        case(
            4,
            Mesh {
                dp_shard: 2,
                ..experts
            },
            Some([2, 1, 2]),
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

/// Runs a job on a case's ranks, or on one.
fn run(bench: &Bench, job: &mut JobSpec, case: Option<&Case>) -> Ended {
    if let Some(case) = case {
        job.resources.ranks = case.ranks;
        job.resources.mesh = case.mesh;
        job.resources.rollout_mesh = case.rollout;
        let mut ranks = bench.gang(job);
        for rank in &ranks {
            assert_eq!(rank.code, Some(0), "{}: {}", job.stage, rank.stderr);
        }
        return ranks.swap_remove(0);
    }
    let ended = bench.run(job);
    assert_eq!(ended.code, Some(0), "{}: {}", job.stage, ended.stderr);
    ended
}

/// Tied embeddings and three key and value heads; three heads of each; experts in some layers; in all.
#[test]
fn any_mesh_generates_and_scores_what_one_rank_does() {
    let bench = Bench::new();
    let models = [
        ("qwen3-tied", cases()),
        ("llama-linear", cases()),
        ("qwen3-moe-sparse-step", expert_cases()),
        ("mixtral", expert_cases()),
    ];
    for (model, cases) in models {
        let dir = golden(model);
        let prompts: Vec<Value> = (0..5u32)
            .map(|i| json!({ "tokens": (0..3 + 2 * i).map(|t| (t * 7 + i) % 50 + 3).collect::<Vec<_>>() }))
            .collect();
        let rows = bench.rows(&format!("{model}.jsonl"), &prompts);
        let rows = |kind: &str, port: &str, with: &Value, name: &str, case: Option<&Case>| {
            let inputs: [(&str, &Path); 2] = [("model", &dir), (port, &rows)];
            let mut job = bench.job(kind, name, with.clone(), &inputs);
            run(&bench, &mut job, case);
            let out = job.outputs.values().next_back().unwrap();
            let file = std::fs::read_dir(out).unwrap().next().unwrap().unwrap();
            read_rows(&file.path())
        };
        let greedy = json!({ "temperature": 0.0, "max_tokens": 12, "ignore_eos": true });
        let alone = rows(
            "generate",
            "prompts",
            &greedy,
            &format!("{model} alone"),
            None,
        );
        let score = json!({});
        let scored = rows("score", "data", &score, &format!("{model} score"), None);
        for (i, case) in cases.iter().enumerate() {
            let name = format!("{model} {i}");
            let got = rows("generate", "prompts", &greedy, &name, Some(case));
            assert_eq!(got.len(), alone.len());
            for (a, b) in got.iter().zip(&alone) {
                assert_eq!(a["tokens"], b["tokens"], "{name}");
                close(&a["logprobs"], &b["logprobs"], &name);
            }
            if case.rollout.is_none() {
                let name = format!("{model} score {i}");
                let got = rows("score", "data", &score, &name, Some(case));
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
    let experts = json!({
        "family": "qwen3_moe", "experts": 4, "experts_per_token": 2, "expert_size": 24,
    });
    let with = json!({
        "environment": { "name": "addition", "digits": 1 }, "steps": 2, "batch_size": 3,
        "group_size": 4, "max_tokens": 4, "lr": 0.05, "optimizer": "sgd", "grad_clip": 0.0,
    });
    for (kind, sizes, cases) in [
        ("dense", json!({}), cases()),
        ("experts", experts, expert_cases()),
    ] {
        let model = bench.tiny(kind, sizes);
        let job = |name: &str| {
            let inputs = [("model", model.as_path())];
            bench.job("grpo", &format!("{kind} {name}"), with.clone(), &inputs)
        };
        let alone = run(&bench, &mut job("alone"), None);
        for (i, case) in cases.iter().enumerate() {
            let got = run(&bench, &mut job(&i.to_string()), Some(case));
            for metric in ["train/reward", "train/grad_norm", "train/loss"] {
                let (got, want) = (got.series(metric), alone.series(metric));
                assert_eq!(got.len(), 2, "{metric}");
                for (a, b) in got.iter().zip(&want) {
                    assert!(
                        (a - b).abs() <= 1e-4 * b.abs().max(1e-2),
                        "{kind} {i} {metric}: {a} is not {b}"
                    );
                }
            }
        }
    }
}

/// Tasks played and rows scored: every metric, and every completion.
#[test]
fn any_mesh_evaluates_what_one_rank_does() {
    let bench = Bench::new();
    let experts = json!({
        "family": "qwen3_moe", "experts": 4, "experts_per_token": 2, "expert_size": 24,
    });
    let data = bench.rows("sums.jsonl", &bench::sums(9));
    let tasks = json!({
        "environment": { "name": "addition", "digits": 1 }, "examples": 11, "samples": 2,
        "k": [1, 2], "temperature": 1.0, "max_tokens": 4,
    });
    for (kind, sizes, cases) in [
        ("dense", json!({}), cases()),
        ("experts", experts, expert_cases()),
    ] {
        let model = bench.tiny(kind, sizes);
        for (what, with) in [("tasks", tasks.clone()), ("rows", json!({}))] {
            let mut inputs = vec![("model", model.as_path())];
            if what == "rows" {
                inputs.push(("data", data.as_path()));
            }
            let evaluated = |name: String, case: Option<&Case>| {
                let mut job = bench.job("evaluate", &name, with.clone(), &inputs);
                let metrics = run(&bench, &mut job, case).finished().clone();
                let completions = job.outputs["completions"].join("completions.jsonl");
                (metrics, read_rows(&completions))
            };
            let (alone, completions) = evaluated(format!("{kind} {what}"), None);
            let own = cases.iter().filter(|case| case.rollout.is_none());
            for (i, case) in own.enumerate() {
                let name = format!("{kind} {what} {i}");
                let (metrics, played) = evaluated(name.clone(), Some(case));
                assert_eq!(played, completions, "{name}");
                assert!(metrics.keys().eq(alone.keys()), "{name}: {metrics:?}");
                for (metric, want) in &alone {
                    let got = metrics[metric];
                    assert!(
                        (got - want).abs() <= 1e-5 * want.abs(),
                        "{name} {metric}: {got} is not {want}"
                    );
                }
            }
        }
    }
}

/// NCCL is for GPUs: asked for on CPUs it is refused by every rank, before anything is computed.
#[test]
fn nccl_on_cpus_is_refused() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("sums.jsonl", &bench::sums(4));
    let inputs = [("model", model.as_path()), ("data", data.as_path())];
    let mut job = bench.job("sft", "sft", json!({ "steps": 1 }), &inputs);
    job.resources.ranks = 2;
    job.resources.collectives = spec::placement::Collectives::Nccl;
    for rank in bench.gang(&job) {
        assert_eq!(rank.code, Some(2), "{}", rank.stderr);
        assert!(rank.stderr.contains("on the CPU"), "{}", rank.stderr);
    }
}
