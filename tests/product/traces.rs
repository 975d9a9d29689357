//! `recipe run --profile-steps`: what every rank did in some steps, as a trace.

use std::collections::BTreeSet;
use std::path::PathBuf;

use product_tests::Project;
use product_tests::trace::Trace;
use serde_json::Value;

/// Where a run's traces lie, from what it printed.
fn traces(outcome: &Value) -> Vec<PathBuf> {
    let list = outcome["profile"]["traces"].as_array().expect("a list");
    list.iter()
        .map(|path| path.as_str().expect("a path").into())
        .collect()
}

/// The trace of a rank of a stage's first attempt.
#[track_caller]
fn of(outcome: &Value, stage: &str, rank: u64) -> Trace {
    let name = format!("{stage}-1.rank{rank}.json");
    let found = traces(outcome)
        .into_iter()
        .find(|path| path.ends_with(&name));
    Trace::read(
        &found.unwrap_or_else(|| panic!("no {name} in {outcome}")),
        rank,
    )
}

fn digests(outcome: &Value) -> Vec<&Value> {
    let stages = outcome["stages"].as_array().expect("stages");
    stages.iter().map(|stage| &stage["outputs"]).collect()
}

#[track_caller]
fn has(trace: &Trace, category: &str, names: &[&str]) {
    let found = trace.names(category);
    let missing: Vec<_> = names.iter().filter(|name| !found.contains(*name)).collect();
    assert!(
        missing.is_empty(),
        "{missing:?} of {category}s; there are {found:?}"
    );
}

#[test]
fn every_rank_of_every_training_stage_shows_what_it_did() {
    let two = |p: &Project| {
        let at = "resources = { threads = 1 }";
        p.edit(
            "recipe.toml",
            at,
            "resources = { threads = 1, ranks = 2, mesh = { dp_shard = 2 } }",
        );
    };
    let (plain, profiled) = (Project::of("pipeline"), Project::of("pipeline"));
    two(&plain);
    two(&profiled);
    let args = ["run", "recipe.toml", "dpo", "grpo"];
    let without = plain.json(&args);
    let with = profiled.json(&[&args[..], &["--profile-steps", "2..3"]].concat());
    assert_eq!(digests(&with), digests(&without), "a look changes nothing");
    assert!(without.get("profile").is_none());
    assert_eq!(traces(&with).len(), 6, "two ranks of three stages: {with}");

    for stage in ["sft", "dpo", "grpo"] {
        for rank in 0..2 {
            let trace = of(&with, stage, rank);
            let about = &trace.whole["otherData"];
            assert_eq!(
                (&about["stage"], &about["steps"]),
                (&stage.into(), &"2..3".into())
            );
            assert_eq!(trace.names("step"), BTreeSet::from(["step 2", "step 3"]));
            has(
                &trace,
                "phase",
                &[
                    "train",
                    "forward",
                    "attention layer",
                    "mlp layer",
                    "head",
                    "backward",
                ],
            );
            has(
                &trace,
                "phase",
                &[
                    "attention layer backward",
                    "reduce",
                    "optimizer",
                    "checkpoint",
                ],
            );
            has(
                &trace,
                "collective",
                &["all_gather", "reduce_scatter", "all_reduce_sum", "wait"],
            );
            has(&trace, "kernel", &["rms_norm", "swiglu_backward", "rope"]);
            assert!(trace.threads.values().any(|name| name == "main"));
            assert!(trace.threads.values().any(|name| name == "collectives"));

            let steps = [trace.named("step 2")[0], trace.named("step 3")[0]];
            let main = trace.slices.iter().filter(|s| s.thread == steps[0].thread);
            for slice in main.filter(|s| s.category != "step") {
                let inside = steps.iter().filter(|step| slice.within(step)).count();
                assert_eq!(inside, 1, "{slice:?}");
            }
            let train = trace.named("train");
            assert_eq!(train.len(), 2);
            for phase in ["forward", "head", "backward", "reduce", "optimizer"] {
                for slice in trace.named(phase) {
                    assert!(train.iter().any(|train| slice.within(train)), "{slice:?}");
                }
            }
            // checkpoints are taken every second step
            assert_eq!(trace.named("checkpoint").len(), 1);
            assert!(trace.named("checkpoint")[0].within(steps[0]));
            let gathers = trace.named("all_gather").into_iter();
            let gathers: Vec<_> = gathers
                .filter(|s| s.args["for"] == "parameter gather")
                .collect();
            assert!(!gathers.is_empty());
            for gather in gathers {
                let args = &gather.args;
                assert_eq!(
                    (&args["axis"], &args["ranks"]),
                    (&"shard".into(), &2.into()),
                    "{gather:?}"
                );
                assert!(args["bytes"].as_u64() > Some(0), "{gather:?}");
            }
            assert!(trace.named("forward")[0].args["tokens"].as_u64() > Some(0));
        }
    }
    let grpo = of(&with, "grpo", 0);
    has(
        &grpo,
        "phase",
        &[
            "rollout",
            "prefill",
            "decode",
            "sample",
            "environment",
            "reward",
        ],
    );
    has(&grpo, "kernel", &["paged_attention", "linear"]);
    for decode in grpo.named("decode") {
        let rollouts = grpo.named("rollout");
        assert!(rollouts.iter().any(|rollout| decode.within(rollout)));
        assert_eq!(decode.args["tokens"], decode.args["sequences"]);
    }
    has(&of(&with, "dpo", 1), "phase", &["data", "loss"]);

    // and where that is, is said again
    let shown = profiled.recipe(&["show", "last"]).expect(0).stdout;
    for path in traces(&with) {
        assert!(shown.contains(&path.display().to_string()), "{shown}");
    }
    // what is reused is not computed, so there is nothing to see
    let again = profiled
        .recipe(&[&args[..], &["--profile-steps", "2..3"]].concat())
        .expect(0);
    assert!(
        again
            .stdout
            .contains("not profiled, as their results were there: sft, dpo, grpo"),
        "{}",
        again.stdout
    );
    assert!(
        !profiled
            .recipe(&["show", "last"])
            .expect(0)
            .stdout
            .contains("traces")
    );
}

#[test]
fn an_attempt_that_goes_on_shows_the_steps_that_it_takes() {
    let project = Project::of("pipeline");
    project.recipe(&["run", "recipe.toml", "convert"]).expect(0);
    // killed after the checkpoint of step 2, on purpose; the next attempt begins with step 3
    let run = ["run", "recipe.toml", "sft", "--profile-steps", "2..4"];
    let mut command = project.command(&run);
    command.env("RECIPE_FAULT", "worker-checkpoint:1:gang");
    command.arg("--json").args(["-S", "stage.sft.retry.max=1"]);
    let out = command.output().expect("recipe starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let outcome: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text} {}", String::from_utf8_lossy(&out.stderr)));
    let paths = traces(&outcome);
    let second = paths.iter().find(|path| path.ends_with("sft-2.rank0.json"));
    let trace = Trace::read(second.unwrap_or_else(|| panic!("{outcome}")), 0);
    assert_eq!(trace.names("step"), BTreeSet::from(["step 3", "step 4"]));
    assert_eq!(trace.whole["otherData"]["steps"], "3..4");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        said.contains(
            "--profile-steps 2..4: only 3..4 was recorded: this attempt began with step 3"
        ),
        "{said}"
    );
}

#[test]
fn steps_that_cannot_be_seen_are_refused_or_told() {
    let project = Project::of("pipeline");
    let refused = |args: &[&str], parts: &[&str]| {
        let ended = project
            .recipe(&[&["run", "recipe.toml"], args].concat())
            .expect(2);
        for part in parts {
            assert!(ended.stderr.contains(part), "'{part}' in {}", ended.stderr);
        }
    };
    refused(
        &["--profile-steps", "5"],
        &["--profile-steps", "as in 10..12"],
    );
    refused(&["--profile-steps", "x..5"], &["'x' is no step"]);
    refused(&["--profile-steps", "0..5"], &["steps are counted from 1"]);
    refused(&["--profile-steps", "5..2"], &["did you mean 2..5?"]);
    refused(
        &["base", "--profile-steps", "1..2"],
        &["none of the stages to run has steps", "sft, dpo and grpo"],
    );
    refused(
        &["dpo", "--profile-steps", "7..8"],
        &["no stage has so many steps", "'sft' has 6, 'dpo' has 6"],
    );
    assert!(!project.path(".recipe/results").exists(), "nothing ran");

    // epochs are as many steps as the data makes them, which is known when the stage has ended
    project.edit(
        "recipe.toml",
        "with = { steps = \"${params.steps}\", batch_size = \"${params.batch}\", lr = 3e-3,",
        "with = { epochs = 0.1, batch_size = 8, lr = 3e-3,",
    );
    let ended = project
        .recipe(&["run", "recipe.toml", "sft", "--profile-steps", "500..501"])
        .expect(0);
    assert!(
        ended.stderr.contains(
            "--profile-steps 500..501: no step of them was recorded: the stage ended before"
        ),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stdout.contains("nothing was profiled"),
        "{}",
        ended.stdout
    );
}
