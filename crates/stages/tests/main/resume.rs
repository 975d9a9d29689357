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

/// A stage that ends before its schedule does has the weights of that step, the whole goes on from it, and it from the
/// whole.
fn part_and_whole_are_one(bench: &Bench, job: &dyn Fn(&str, Option<u64>) -> JobSpec) {
    let from = |job: &JobSpec, other: &JobSpec| JobSpec {
        resume: bench.resumed(other).resume,
        ..job.clone()
    };
    let whole = job("whole", None);
    let weights = digest(&bench.ok(&whole));
    let part = job("part", Some(5));
    let first = digest(&bench.ok(&part));
    assert_ne!(first, weights);

    // its end is saved though no checkpoint is due then
    let rest = from(&job("rest", None), &part);
    assert_eq!(rest.resume.as_ref().map(|r| r.step), Some(5));
    let ended = bench.run(&rest);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(digest(&rest.outputs["model"]), weights);

    // from its own end there is nothing to do but to write the model
    let same = from(&job("same", Some(5)), &part);
    let ended = bench.run(&same);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(
        !ended
            .events
            .iter()
            .any(|e| matches!(e, Event::Metrics { step, .. } if *step > 0))
    );
    assert_eq!(digest(&same.outputs["model"]), first);

    // what is beyond its end is refused
    let beyond = bench.run(&from(&job("beyond", Some(3)), &part));
    assert_eq!(beyond.code, Some(5), "{}", beyond.stderr);
}

#[test]
fn parts_of_a_training_are_its_steps() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let rows = bench.rows("sums.jsonl", &sums(11));
    let pairs = bench.rows("pairs.jsonl", &preferences(11));
    let kinds = [
        (
            "sft",
            json!({ "steps": 9, "batch_size": 4, "lr": 0.01, "warmup": 2 }),
            Some(&rows),
        ),
        (
            "dpo",
            json!({ "steps": 9, "batch_size": 4, "lr": 0.01 }),
            Some(&pairs),
        ),
        (
            "grpo",
            json!({
                "environment": { "name": "addition", "digits": 1 }, "steps": 9, "batch_size": 3,
                "group_size": 4, "lr": 0.003, "max_tokens": 4, "dynamic_sampling": true, "seed": 5,
            }),
            None,
        ),
    ];
    for (kind, with, data) in kinds {
        part_and_whole_are_one(&bench, &|name, until| {
            let mut with = with.clone();
            if let Some(until) = until {
                with["until"] = until.into();
            }
            let mut inputs = vec![("model", model.as_path())];
            inputs.extend(data.map(|data| ("data", data.as_path())));
            every(bench.job(kind, &format!("{kind}-{name}"), with, &inputs), 2)
        });
    }
}

#[test]
fn checkpoints_of_the_best_steps_stay() {
    let bench = Bench::new();
    let model = bench.tiny("model", json!({}));
    let rows = bench.rows("sums.jsonl", &sums(11));
    let with = json!({ "steps": 9, "batch_size": 4, "lr": 0.01, "validate_every": 2 });
    let inputs = [
        ("model", model.as_path()),
        ("data", &rows),
        ("validation", &rows),
    ];
    let watch = |best, metric: &str| spec::BestStep {
        best,
        metric: metric.to_owned(),
    };
    let job = |name: &str| {
        let mut job = every(bench.job("sft", name, with.clone(), &inputs), 5);
        job.checkpoint.keep = 1;
        job.watch = vec![
            watch(spec::Best::Max, "validation/loss"),
            watch(spec::Best::Min, "validation/loss"),
            watch(spec::Best::Max, "never/measured"),
        ];
        job
    };
    let kept = |job: &JobSpec| -> Vec<u64> {
        let key = job.key.parse().unwrap();
        let store = bench.store();
        let until = |last| store.newest_checkpoint_until(&key, last).unwrap();
        let mut steps: Vec<u64> = (0..=9).filter_map(|s| until(s).map(|c| c.step)).collect();
        steps.dedup();
        steps
    };
    let whole = job("whole");
    let ended = bench.run(&whole);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let losses: Vec<(u64, f64)> = ended
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Metrics { step, metrics } => Some((*step, *metrics.get("validation/loss")?)),
            _ => None,
        })
        .collect();
    assert_eq!(losses.len(), 5, "{losses:?}");
    let by = |a: &&(u64, f64), b: &&(u64, f64)| a.1.total_cmp(&b.1);
    let (best, worst) = (
        losses.iter().min_by(by).unwrap().0,
        losses.iter().max_by(by).unwrap().0,
    );
    let mut expected = vec![best, worst];
    // the furthest is kept as well
    expected.extend(kept(&whole).last());
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(kept(&whole), expected);

    // what was the best before an interruption is known after it
    let killed = job("killed");
    bench.interrupt(&killed, 7, libc::SIGKILL);
    let resumed = bench.resumed(&killed);
    let ended = bench.run(&resumed);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(kept(&killed), expected);
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
