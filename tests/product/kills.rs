//! Interrupted runs end in the same bits as uninterrupted ones, and leave no process behind.

use std::fs;
use std::process::Child;

use product_tests::{Project, kill, processes, wait_for};

const STAGES: [&str; 3] = ["sft", "dpo", "grpo"];

/// Long enough that a kill lands in the middle.
const LONG: [&str; 2] = ["-S", "steps=400"];

fn run_long(project: &Project) -> product_tests::Ended {
    project.recipe(&["run", "recipe.toml", LONG[0], LONG[1]])
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
    let args = [
        "run",
        "recipe.toml",
        LONG[0],
        LONG[1],
        "--events",
        "events.jsonl",
        stage,
    ];
    let mut child = project.start(&args);
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

/// Steps of a stage's metrics in the order they were recorded, over all runs of the project.
fn resumed_from(project: &Project, stage: &str) -> Option<u64> {
    let text = fs::read_to_string(project.path("events.jsonl")).expect("events");
    text.lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .find(|e| e["event"] == "resumed" && e["stage"] == stage)
        .and_then(|e| e["step"].as_u64())
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
    let expected = digests(&whole);

    let broken = Project::of("pipeline");
    for stage in STAGES {
        let mut child = start_until_checkpoint(&broken, stage);
        kill(child.id() as i32);
        child.wait().expect("the child ends");
        no_process_left(&broken);
        broken
            .recipe(&[
                "run",
                "recipe.toml",
                LONG[0],
                LONG[1],
                "--events",
                "events.jsonl",
                stage,
            ])
            .expect(0);
        let step = resumed_from(&broken, stage).expect("it went on from a checkpoint");
        assert!(step >= 2, "{stage} resumed at {step}");
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
