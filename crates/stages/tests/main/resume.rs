//! Killed at any moment and gone on from a checkpoint, a stage gives the bits of an uninterrupted
//! one.

use serde_json::{Value, json};
use spec::placement::Mesh;
use spec::{Event, JobSpec};

use crate::bench::{Bench, digest, preferences, sums};

/// Runs `job` twice from its start: once whole, once interrupted twice. The outputs must be equal.
fn survives(bench: &Bench, job: &JobSpec, whole: &JobSpec) {
    let uninterrupted = digest(&bench.ok(whole));

    let killed = bench.interrupt(job, 4, libc::SIGKILL);
    assert_eq!(killed.code, None, "{}", killed.stderr);
    let resumed = bench.resumed(job);
    assert!(
        resumed.resume.as_ref().is_some_and(|r| r.step >= 3),
        "{:?}",
        resumed.resume
    );

    let stopped = bench.interrupt(&resumed, 6, libc::SIGTERM);
    assert_eq!(stopped.code, Some(75), "{}", stopped.stderr);
    let Some(Event::Stopped { step }) = stopped.events.last() else {
        panic!("{:?}", stopped.events)
    };
    let resumed = bench.resumed(&resumed);
    assert_eq!(resumed.resume.as_ref().map(|r| r.step), Some(*step));

    let ended = bench.run(&resumed);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        ended
            .events
            .iter()
            .any(|e| matches!(e, Event::Resumed { step: s } if s == step))
    );
    assert_eq!(digest(&resumed.outputs["model"]), uninterrupted);
}

fn every(mut job: JobSpec, steps: u64) -> JobSpec {
    job.checkpoint.every = steps;
    job
}

#[test]
fn sft_goes_on_as_if_nothing_had_happened() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("sums.jsonl", &sums(11));
    let with =
        json!({ "steps": 12, "batch_size": 4, "lr": 0.01, "warmup": 2, "weight_decay": 0.1 });
    let job = |name| {
        bench.job(
            "sft",
            name,
            with.clone(),
            &[("model", &model), ("data", &data)],
        )
    };
    survives(&bench, &every(job("sft"), 3), &job("whole"));
}

/// Ranks killed together and started again end in the bits of ranks that ran through, however they
/// share the work.
#[test]
fn ranks_of_any_mesh_go_on_as_if_nothing_had_happened() {
    let bench = Bench::new();
    let dense = bench.tiny("dense", json!({}));
    let experts = json!({
        "family": "qwen3_moe", "experts": 4, "experts_per_token": 2, "expert_size": 24,
    });
    let experts = bench.tiny("experts", experts);
    let data = bench.rows("sums.jsonl", &sums(11));
    let one = Mesh {
        dp_replicate: 1,
        ..Mesh::default()
    };
    let meshes = [
        ("dp_shard2", Mesh { dp_shard: 2, ..one }, "bf16"),
        ("tp2", Mesh { tp: 2, ..one }, "fp32"),
        ("cp2", Mesh { cp: 2, ..one }, "fp32"),
        ("pp2", Mesh { pp: 2, ..one }, "bf16"),
        ("ep2", Mesh { ep: 2, ..one }, "fp32"),
    ];
    for (name, mesh, dtype) in meshes {
        let model = if mesh.ep > 1 { &experts } else { &dense };
        let with = json!({ "steps": 14, "batch_size": 4, "lr": 0.01, "dtype": dtype });
        let job = |run: &str| {
            let inputs = [("model", model.as_path()), ("data", data.as_path())];
            let mut job = bench.job("sft", &format!("{name}-{run}"), with.clone(), &inputs);
            job.resources.ranks = 2;
            job.resources.mesh = mesh;
            every(job, 2)
        };
        let ended = |job: &JobSpec| {
            for rank in bench.gang(job) {
                assert_eq!(rank.code, Some(0), "{name}: {}", rank.stderr);
            }
            digest(&job.outputs["model"])
        };
        let whole = ended(&job("whole"));
        let killed = job("killed");
        bench.kill_gang(&killed, 5);
        let resumed = bench.resumed(&killed);
        let step = resumed.resume.as_ref().map_or(0, |r| r.step);
        assert!(
            (4..14).contains(&step),
            "{name}: goes on from step {step}, which leaves nothing to lose or to do"
        );
        assert_eq!(ended(&resumed), whole, "{name}");
    }
}

#[test]
fn bf16_keeps_its_masters() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("sums.jsonl", &sums(11));
    let with = json!({ "steps": 12, "batch_size": 4, "lr": 0.01, "dtype": "bf16" });
    let job = |name| {
        bench.job(
            "sft",
            name,
            with.clone(),
            &[("model", &model), ("data", &data)],
        )
    };
    survives(&bench, &every(job("sft"), 3), &job("whole"));
}

#[test]
fn dpo_goes_on_with_the_same_reference() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let data = bench.rows("pairs.jsonl", &preferences(11));
    let with = json!({ "steps": 12, "batch_size": 4, "lr": 0.01 });
    let job = |name| {
        bench.job(
            "dpo",
            name,
            with.clone(),
            &[("model", &model), ("data", &data)],
        )
    };
    survives(&bench, &every(job("dpo"), 3), &job("whole"));
}

#[test]
fn grpo_goes_on_with_its_surplus() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let with = json!({
        "environment": { "name": "addition", "digits": 1 }, "steps": 10, "batch_size": 3,
        "group_size": 4, "lr": 0.003, "max_tokens": 4, "dynamic_sampling": true, "updates": 2,
        "kl_beta": 0.01, "seed": 5,
    });
    let job = |name| bench.job("grpo", name, Value::clone(&with), &[("model", &model)]);
    survives(&bench, &every(job("grpo"), 3), &job("whole"));
}
