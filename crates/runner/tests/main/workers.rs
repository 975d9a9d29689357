//! Stages that run a worker: the contract of JobSpec and Event, checkpoints, retries, ranks, identity.

use crate::project::{Project, Ran, collect, lives, ran, signal, wait};

const TRAIN: &str = r#"
[recipe]
name = "train"
schema = 1
[source.base]
path = "base"
[source.chat]
path = "chat.jsonl"
[stage.sft]
kind = "sft"
in = { model = "source.base", data = "source.chat" }
with = { steps = 30, lr = 1e-3 }
checkpoint = { every = 5, keep = 2 }
retry = { max = 2, on = ["infra"] }
[[stage.sft.assert]]
metric = "train/loss"
max = 0.5
[stage.tail]
kind = "command"
in.x = "sft.model"
cmd = ["sh", "-c", "cp $IN_x/weights $OUT_out"]
out = ["out"]
"#;

fn scripted(p: &Project, args: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut command = p.command(args);
    command.envs(env.iter().copied());
    ran(command)
}

/// The weights of an uninterrupted run in a store of its own.
fn reference(p: &Project) -> serde_json::Value {
    let ran = ran(p.command_in("reference", &[]));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    ran.stage("sft")["outputs"].clone()
}

#[test]
fn events_reach_reports_records_and_results() {
    let p = Project::training(TRAIN);
    let ran = p.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(
        ran.stage("sft")["metrics"]["train/loss"].as_f64().unwrap(),
        1.0 / 30.0
    );
    assert_eq!(ran.all("metrics").len(), 30);
    assert_eq!(ran.all("checkpoint").len(), 5);
    assert!(
        ran.all("progress")
            .iter()
            .skip(1)
            .all(|e| e["eta_seconds"].is_number() && e["total"] == 30)
    );
    let store = p.store();
    let run = store.list_runs().unwrap().pop().unwrap();
    let metrics =
        String::from_utf8(store.get_run(&run, "metrics.jsonl").unwrap().unwrap()).unwrap();
    let first: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
    assert_eq!(
        first,
        serde_json::json!({"stage": "sft", "attempt": 1, "step": 1, "metrics": {"train/loss": 1.0}})
    );
    let log = store.get_run(&run, "logs/sft-1.log").unwrap().unwrap();
    assert!(String::from_utf8(log).unwrap().contains("rank 0 of 1"));
    let key = ran.stage("sft")["key"].as_str().unwrap().parse().unwrap();
    let (_, record) = store.current(&key).unwrap().unwrap();
    assert_eq!(record.numerics[0]["device"], "cpu");
    assert_eq!(record.numerics[0]["ranks"], 1);
    assert_eq!(record.provenance["stage"], "sft");
}

#[test]
fn a_killed_worker_or_runner_goes_on_from_its_checkpoint() {
    let p = Project::training(TRAIN);
    let whole = reference(&p);

    // The worker is killed once: the retry continues.
    let marker = p.path("once").display().to_string();
    let retried = scripted(&p, &[], &[("SCRIPT_FAIL", &format!("17:9:{marker}"))]);
    assert_eq!(
        (retried.code, retried.status("sft")),
        (0, "ran"),
        "{}",
        retried.stderr
    );
    assert_eq!(retried.all("attempt_failed")[0]["error"]["class"], "infra");
    assert_eq!(retried.all("resumed")[0]["step"], 15);
    assert_eq!(retried.stage("sft")["outputs"], whole);
    assert_eq!(retried.stage("sft")["attempt"], 2);

    // The runner is killed: the next run continues.
    let p = Project::training(TRAIN);
    let mut command = p.command(&[]);
    command
        .env("SCRIPT_STEP_MS", "30")
        .env("SCRIPT_COUNT", p.path("count"));
    let mut child = command.spawn().unwrap();
    let key_dir = p.path("store/checkpoints");
    wait(|| walk(&key_dir) >= 2, "second checkpoint");
    signal(child.id(), libc::SIGKILL);
    child.wait().unwrap();
    let resumed = scripted(
        &p,
        &[],
        &[("SCRIPT_COUNT", p.path("count").to_str().unwrap())],
    );
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.all("resumed")[0]["step"].as_u64().unwrap() >= 10);
    assert_eq!(resumed.stage("sft")["outputs"], whole);
    assert_eq!(p.lines("count"), ["sft 1", "sft 2"]);
}

#[test]
fn a_result_costs_what_all_runs_spent_on_it() {
    let p = Project::training(TRAIN);
    let interrupted = |number: i32| {
        let begun = walk(&p.path("store/checkpoints"));
        let mut command = p.command(&[]);
        command.env("SCRIPT_STEP_MS", "30");
        let child = command.spawn().unwrap();
        wait(|| walk(&p.path("store/checkpoints")) > begun, "checkpoint");
        signal(child.id(), number);
        collect(child)
    };
    // one run is stopped and tells what it spent, one is killed and cannot, a third fails and retries
    let stopped = interrupted(libc::SIGTERM);
    assert_eq!(stopped.status("sft"), "stopped", "{}", stopped.stderr);
    interrupted(libc::SIGKILL);
    let marker = p.path("once").display().to_string();
    let env = [
        ("SCRIPT_FAIL", &*format!("28:9:{marker}")),
        ("SCRIPT_STEP_MS", "30"),
    ];
    let last = scripted(&p, &[], &env);
    assert_eq!(last.code, 0, "{}", last.stderr);
    assert_eq!(last.all("resumed").len(), 2, "{}", last.stderr);

    let killed = p.store().list_runs().unwrap()[1].clone();
    let events = p.store().get_run(&killed, "events.jsonl").unwrap().unwrap();
    let told: Vec<f64> = (events.split(|b| *b == b'\n'))
        .filter_map(runner::event)
        .filter(|(_, report)| match report {
            runner::Report::AttemptStarted { stage, .. } => stage == "sft",
            runner::Report::Progress { .. } | runner::Report::Metrics { .. } => true,
            runner::Report::Checkpoint { .. } => true,
            _ => false,
        })
        .map(|(at, _)| at)
        .collect();
    let killed = told.last().unwrap() - told[0];
    assert!(killed > 0.0, "it took a step at least: {told:?}");

    let spent = |ran: &Ran, part: &str| ran.stage("sft")["spent"][part].as_f64().unwrap();
    let cost = |part: &str| last.stage("sft")["cost"][part].as_f64().unwrap();
    let cpu = spent(&stopped, "cpu_seconds") + spent(&last, "cpu_seconds");
    assert!((cost("cpu_seconds") - cpu).abs() < 1e-9, "{cpu}");
    // the cost is told before the result is published, what was spent after
    let (before, most) = (spent(&stopped, "seconds") + killed, spent(&last, "seconds"));
    assert!(cost("seconds") <= before + most, "{before} + {most}");
    assert!(cost("seconds") > before + most / 2.0, "{before} + {most}");
}

fn walk(dir: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|e| {
            if e.path().is_dir() {
                walk(&e.path())
            } else {
                1
            }
        })
        .sum()
}

#[test]
fn stopping_checkpoints_and_resumes() {
    let p = Project::training(TRAIN);
    let whole = reference(&p);
    let mut command = p.command(&[]);
    command.env("SCRIPT_STEP_MS", "50");
    let child = command.spawn().unwrap();
    wait(|| walk(&p.path("store/checkpoints")) >= 1, "checkpoint");
    signal(child.id(), libc::SIGTERM);
    let stopped = collect(child);
    assert_eq!(
        (stopped.code, stopped.status("sft")),
        (75, "stopped"),
        "{}",
        stopped.stderr
    );

    // --resume never starts over, with the same bits.
    let fresh = scripted(&p, &["--resume-never"], &[]);
    assert!(fresh.all("resumed").is_empty());
    assert_eq!((fresh.code, &fresh.stage("sft")["outputs"]), (0, &whole));
}

#[test]
fn a_second_signal_kills() {
    let p = Project::training(TRAIN);
    let mut command = p.command(&[]);
    command
        .env("SCRIPT_STEP_MS", "200")
        .env("SCRIPT_IGNORE_TERM", "1")
        .env("SCRIPT_COUNT", p.path("count"));
    let child = command.spawn().unwrap();
    p.wait_for("count");
    signal(child.id(), libc::SIGTERM);
    std::thread::sleep(std::time::Duration::from_millis(400));
    assert!(
        lives(&child.id().to_string()),
        "the first signal waits for the checkpoint"
    );
    signal(child.id(), libc::SIGTERM);
    let ran = collect(child);
    assert_eq!(
        (ran.code, ran.status("sft")),
        (143, "killed"),
        "{}",
        ran.stderr
    );
}

#[test]
fn failures_carry_what_the_worker_said() {
    let p = Project::training(TRAIN);
    let failed = scripted(&p, &[], &[("SCRIPT_FAIL", "3:1")]);
    let error = &failed.stage("sft")["error"];
    assert_eq!(
        (failed.code, error["message"].as_str().unwrap()),
        (1, "loss is nan at step 3")
    );
    assert_eq!(
        (error["code"].as_str(), error["help"].as_str()),
        (Some("T0001"), Some("lower the learning rate"))
    );
    assert!(
        failed.all("attempt_failed")[0]["tail"]
            .as_array()
            .unwrap()
            .iter()
            .any(|l| l == "about to fail at step 3")
    );
    for (exit, code) in [("2", 2), ("4", 4), ("5", 5)] {
        let ran = scripted(&p, &[], &[("SCRIPT_FAIL", &format!("3:{exit}"))]);
        assert_eq!(ran.code, code);
        let attempts = ran.all("attempt_started").len();
        assert_eq!(
            attempts,
            if exit == "4" { 3 } else { 1 },
            "exit {exit}: only infrastructure is retried"
        );
    }
}

#[test]
fn one_ranks_death_ends_the_gang() {
    let two = TRAIN
        .replace(
            "checkpoint =",
            "resources = { ranks = 2, threads = 1 }\ncheckpoint =",
        )
        .replace("max = 2", "max = 0");
    let p = Project::training(&two);
    let start = std::time::Instant::now();
    let env = [
        ("SCRIPT_FAIL", "2:1"),
        ("SCRIPT_FAIL_RANK", "1"),
        ("SCRIPT_STEP_MS", "2000"),
    ];
    let ran = scripted(&p, &[], &env);
    assert_eq!(
        (
            ran.code,
            ran.stage("sft")["error"]["message"].as_str().unwrap()
        ),
        (1, "loss is nan at step 2")
    );
    assert!(
        start.elapsed().as_secs() < 30,
        "rank 0 would have gone on for a minute"
    );
    let good = p.run(&[]);
    assert_eq!(good.code, 0);
    let run = p.store().list_runs().unwrap().pop().unwrap();
    let log = p
        .store()
        .get_run(&run, "logs/sft-2.rank1.log")
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8(log).unwrap(), "rank 1 of 2 threads 1\n");
}

#[test]
fn a_failed_assertion_keeps_the_result_and_holds_back_who_needs_it() {
    let failing = TRAIN.replace("max = 0.5", "max = 0.01");
    let held = failing.replace("[stage.tail]\n", "[stage.tail]\nneeds_assert = true\n");
    let below = "[stage.last]\nkind = \"command\"\nin.x = \"tail.out\"\nneeds_assert = true\n\
                 cmd = [\"cp\", \"-r\", \"in/x\", \"out\"]\nout = [\"out\"]\n";
    let p = Project::training(&held);
    for _ in ["computed", "reused"] {
        let ran = p.run(&[]);
        assert_eq!(
            (ran.code, ran.status("sft"), ran.status("tail")),
            (3, "assertion_failed", "skipped")
        );
        let error = ran.stage("sft")["error"]["message"].as_str().unwrap();
        assert!(
            error.contains("train/loss <= 0.01 does not hold: it is 0.0333333, margin -0.0233333"),
            "{error}"
        );
        let verdict = &ran.stage("sft")["verdicts"][0];
        assert_eq!(
            (verdict["verdict"].as_str(), verdict["max"].as_f64()),
            (Some("failed"), Some(0.01))
        );
        assert!(
            !ran.stage("sft")["outputs"].as_object().unwrap().is_empty(),
            "the artifact is kept"
        );
        let why = ran.stage("tail")["why"].as_str().unwrap();
        assert_eq!(why, "needs the assertions of 'sft' to hold");
    }
    // who does not need it goes on; whoever does is held back however far below
    p.write("r.toml", &format!("{failing}{below}"));
    let ran = p.run(&[]);
    assert_eq!(
        (ran.code, ran.status("tail"), ran.status("last")),
        (3, "ran", "skipped")
    );
    p.write("r.toml", &held.replace("0.01", "0.5"));
    let ok = p.run(&[]);
    assert_eq!(
        (ok.code, ok.status("sft"), ok.status("tail")),
        (0, "reused", "reused")
    );
    assert_eq!(ok.stage("sft")["verdicts"][0]["verdict"], "passed");
}

#[test]
fn the_trainer_is_part_of_the_key() {
    let p = Project::training(TRAIN);
    p.run(&[]);
    // Another build of the worker: another file, which says that its sources differ.
    let other = p.path("other-worker");
    let script = format!(
        "#!/bin/sh\nSCRIPT_SOURCES=s2 exec {} \"$@\"\n",
        crate::project::example("scripted_worker").display()
    );
    std::fs::write(&other, script).unwrap();
    std::fs::set_permissions(&other, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let worker = [("RECIPE_WORKER", other.to_str().unwrap())];
    let accepted = scripted(&p, &["--accept-trainer"], &worker);
    assert_eq!(
        (accepted.status("sft"), accepted.status("tail")),
        ("reused", "reused")
    );
    assert!(
        accepted.stage("sft")["why"]
            .as_str()
            .unwrap()
            .contains("another trainer")
    );
    let ran = scripted(&p, &[], &worker);
    assert_eq!(
        (ran.status("sft"), ran.status("tail")),
        ("ran", "reused"),
        "same weights: cut off"
    );
    assert!(
        ran.stage("sft")["why"]
            .as_str()
            .unwrap()
            .contains("trainer.sources")
    );
    let missing = scripted(&p, &[], &[("RECIPE_WORKER", "/nonexistent/worker")]);
    assert!(
        missing.code == 2 && missing.stderr.contains("no such file"),
        "{}",
        missing.stderr
    );
}

#[test]
fn placement_changes_nothing() {
    let p = Project::training(TRAIN);
    p.run(&[]);
    let moved = TRAIN
        .replace("every = 5", "every = 7")
        .replace("max = 2, on", "max = 1, on")
        .replace("[stage.sft]", "# note\n[stage.sft]\ntimeout = \"1h\"");
    p.write("r.toml", &moved);
    let ran = p.run(&[]);
    assert_eq!(
        (ran.status("sft"), ran.status("tail")),
        ("reused", "reused")
    );
    p.write("r.toml", &TRAIN.replace("lr = 1e-3", "lr = 2e-3"));
    let changed = p.run(&[]);
    assert_eq!(changed.status("sft"), "ran");
    assert!(
        changed.stage("sft")["why"]
            .as_str()
            .unwrap()
            .starts_with("with.lr 0.001 -> 0.002")
    );
}

#[test]
fn more_steps_go_on_from_the_shorter_run() {
    let recipe = |steps: u32, more: &str| {
        TRAIN
            .replace(
                "steps = 30, lr = 1e-3",
                &format!("steps = {steps}, lr = 1e-3, schedule = \"constant\""),
            )
            .replace("keep = 2", &format!("keep = 2{more}"))
    };
    let on = ", continue = true";
    let p = Project::training(&recipe(30, on));
    assert_eq!(p.run(&[]).code, 0);
    p.write("r.toml", &recipe(50, on));
    let longer = p.run(&[]);
    assert_eq!(longer.code, 0, "{}", longer.stderr);
    let resumed = longer.all("resumed");
    assert_eq!(
        (resumed.len(), &resumed[0]["step"]),
        (1, &serde_json::json!(25))
    );
    assert_eq!(
        longer.stage("sft")["outputs"],
        reference(&p),
        "the same bits as from the start"
    );
    let key = longer.stage("sft")["key"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    assert_eq!(record.provenance["continued"]["step"], 25);
    let from: Vec<_> = record
        .numerics
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n["from"].as_u64())
        .collect();
    assert_eq!(from, [Some(0), Some(25)]);

    // another configuration, or one that does not ask for it, begins at the start
    p.write("r.toml", &recipe(60, ""));
    assert!(!p.run(&[]).has("resumed"));
    p.write("r.toml", &recipe(70, on).replace("1e-3", "2e-3"));
    assert!(!p.run(&[]).has("resumed"));
    // the schedule must not know how long it is
    p.write(
        "r.toml",
        &recipe(70, on).replace("\"constant\"", "\"cosine\""),
    );
    let refused = p.run(&[]);
    assert!(
        refused.code == 2 && refused.stderr.contains("cannot go on from a shorter one"),
        "{}",
        refused.stderr
    );
}
