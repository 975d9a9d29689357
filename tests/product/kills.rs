//! Interrupted runs end in the same bits as uninterrupted ones, and leave no process behind.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;

use product_tests::{Project, kill, processes, wait_for};

const STAGES: [&str; 3] = ["sft", "dpo", "grpo"];

/// Long enough that a kill lands in the middle.
const LONG: [&str; 2] = ["-S", "steps=400"];

const LONG_RUN: [&str; 6] = [
    "run",
    "recipe.toml",
    LONG[0],
    LONG[1],
    "--events",
    "events.jsonl",
];

fn run_long(project: &Project) -> product_tests::Ended {
    let _ = fs::remove_file(project.path("events.jsonl"));
    project.recipe(&LONG_RUN)
}

/// The artifact digests of the stages, by `run --json` of what is all reused.
fn digests(project: &Project) -> Vec<(String, String)> {
    let run = project.json(&["run", "recipe.toml", LONG[0], LONG[1]]);
    let stages = run["stages"].as_array().expect("stages");
    stages
        .iter()
        .map(|s| {
            (
                s["stage"].as_str().expect("a name").to_owned(),
                s["outputs"].to_string(),
            )
        })
        .collect()
}

/// Starts the run and returns once `stage` has committed a checkpoint.
fn start_until_checkpoint(project: &Project, stage: &str) -> Child {
    let events = project.path("events.jsonl");
    let _ = fs::remove_file(&events);
    let mut child = project.start(&[LONG_RUN.as_slice(), &[stage]].concat());
    wait_for(&format!("checkpoint of {stage}"), || {
        if let Some(status) = child.try_wait().expect("a child") {
            let log = project.recipe(&["logs", "last", stage]).stdout;
            panic!("the run ended ({status}) before a checkpoint of {stage} was seen\n{log}");
        }
        let text = fs::read_to_string(&events).unwrap_or_default();
        text.lines()
            .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
            .any(|e| e["event"] == "checkpoint" && e["stage"] == stage)
            .then_some(())
    });
    child
}

/// The events of a stage in the last run that wrote them.
fn events(project: &Project, stage: &str) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(project.path("events.jsonl")).expect("events");
    text.lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|e| e["stage"] == stage)
        .collect()
}

/// The step whose checkpoint a stage went on from.
fn resumed_from(project: &Project, stage: &str) -> Option<u64> {
    let events = events(project, stage);
    let resumed = events.iter().find(|e| e["event"] == "resumed")?;
    resumed["step"].as_u64()
}

/// What each step computed: its metrics without times. Prompts taken, losses and rewards are
/// equal only if a step saw the same data.
fn steps(project: &Project, stage: &str) -> BTreeMap<u64, BTreeMap<String, f64>> {
    let mut steps = BTreeMap::new();
    for event in events(project, stage) {
        let (Some(step), Some(metrics)) = (event["step"].as_u64(), event["metrics"].as_object())
        else {
            continue;
        };
        // step 0 is what an attempt says before its first step
        if step == 0 {
            continue;
        }
        let machine = ["timing/", "performance/", "memory/"];
        let timed = |name: &str| machine.iter().any(|group| name.starts_with(group));
        let values = metrics
            .iter()
            .filter(|(name, _)| !timed(name))
            .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
            .collect();
        assert!(
            steps.insert(step, values).is_none(),
            "{stage} records step {step} once"
        );
    }
    steps
}

fn no_process_left(project: &Project) {
    let needle = project.path("").display().to_string();
    wait_for("end of all processes", || {
        processes(needle.trim_end_matches('/'))
            .is_empty()
            .then_some(())
    });
}

#[test]
fn a_killed_runner_or_worker_changes_no_bit() {
    let whole = Project::of("pipeline");
    run_long(&whole).expect(0);
    let expected_steps = STAGES.map(|stage| steps(&whole, stage));
    let expected = digests(&whole);

    let broken = Project::of("pipeline");
    for (stage, expected_steps) in STAGES.into_iter().zip(expected_steps) {
        let mut child = start_until_checkpoint(&broken, stage);
        kill(child.id() as i32);
        child.wait().expect("the child ends");
        no_process_left(&broken);
        let before = steps(&broken, stage);
        fs::remove_file(broken.path("events.jsonl")).expect("events");
        broken
            .recipe(&[LONG_RUN.as_slice(), &[stage]].concat())
            .expect(0);
        let step = resumed_from(&broken, stage).expect("it went on from a checkpoint");
        assert!(step >= 2, "{stage} resumed at {step}");
        // No prompt or example is skipped or repeated: the steps before the checkpoint and those
        // after it are the uninterrupted run's, each once.
        let after = steps(&broken, stage);
        assert!(after.keys().all(|&s| s > step), "{stage} repeats steps");
        let mut joined = before;
        joined.retain(|&s, _| s <= step);
        joined.extend(after);
        assert_eq!(joined, expected_steps, "{stage}");
    }
    run_long(&broken).expect(0);
    assert_eq!(digests(&broken), expected);
    broken.recipe(&["cache", "verify", "--paranoid"]).expect(0);

    // A killed worker fails its attempt; the next run goes on from its checkpoint.
    let orphaned = Project::of("pipeline");
    let mut child = start_until_checkpoint(&orphaned, "sft");
    let needle = orphaned.path("").display().to_string();
    let worker = wait_for("worker", || {
        processes(needle.trim_end_matches('/'))
            .into_iter()
            .find(|pid| {
                fs::read_to_string(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|c| c.contains("recipe-worker"))
            })
    });
    kill(worker);
    let status = child.wait().expect("the run ends");
    assert_eq!(
        status.code(),
        Some(4),
        "a killed worker is an infrastructure failure"
    );
    run_long(&orphaned).expect(0);
    assert_eq!(digests(&orphaned), expected);
}

#[test]
fn a_stopped_run_is_resumable_and_says_so() {
    let project = Project::of("pipeline");
    let mut child = start_until_checkpoint(&project, "sft");
    // SAFETY: plain kill(2).
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    assert_eq!(child.wait().expect("the run ends").code(), Some(75));
    no_process_left(&project);
    project
        .recipe(&["run", "recipe.toml", LONG[0], LONG[1], "sft"])
        .expect(0);
}
