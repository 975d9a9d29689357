//! Assertions on what a worker reports by step: whole runs, early ends, resumed ones, reuse, pins.

use std::collections::BTreeMap;

use crate::project::{Project, Ran, ran, signal, wait};

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
"#;

fn project(assertions: &str) -> Project {
    Project::training(&format!("{TRAIN}{assertions}"))
}

fn scripted(p: &Project, args: &[&str], env: &[(&str, &str)]) -> Ran {
    let mut command = p.command(args);
    command.envs(env.iter().copied());
    ran(command)
}

fn verdicts(ran: &Ran) -> Vec<(String, String)> {
    let all = ran.stage("sft")["verdicts"].as_array().cloned();
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let both = |v: &serde_json::Value| (text(&v["verdict"]), text(&v["why"]));
    all.unwrap_or_default().iter().map(both).collect()
}

/// The stored steps and values of a run's result.
fn curve(p: &Project, ran: &Ran) -> BTreeMap<u64, f64> {
    let key = ran.stage("sft")["key"].as_str().unwrap().parse().unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    let steps = runner::steps_of(&record, &p.store()).unwrap().unwrap();
    assert_eq!(steps.planned, Some(30));
    let one = |(step, metrics): (u64, BTreeMap<String, f64>)| (step, metrics["train/loss"]);
    steps.rows.into_iter().map(one).collect()
}

const WINDOW: &str = r#"
[[stage.sft.assert]]
metric = "train/loss"
over = "mean"
steps = [1, 30]
max = 0.2
[[stage.sft.assert]]
metric = "train/loss"
trend = "falls"
"#;

#[test]
fn steps_before_an_interruption_are_judged_with_those_after() {
    let whole: BTreeMap<u64, f64> = (1..=30).map(|s| (s, 1.0 / s as f64)).collect();
    let p = project(WINDOW);
    // killed on purpose, as `recipe verify --resume` does
    let first = p.run(&["--interrupt"]);
    assert_eq!(
        (first.code, first.all("resumed").len()),
        (0, 1),
        "{}",
        first.stderr
    );
    assert_eq!(curve(&p, &first), whole);
    assert_eq!(verdicts(&first).len(), 2);
    let plain = ran(p.command_in("other", &[]));
    assert_eq!(plain.stage("sft")["outputs"], first.stage("sft")["outputs"]);

    // the runner killed twice, each time after another checkpoint; the records of its runs tell of the steps before
    let p = project(WINDOW);
    for checkpoints in [1, 3] {
        let mut command = p.command(&[]);
        let mut child = command.env("SCRIPT_STEP_MS", "30").spawn().unwrap();
        let folder = p.path("store/checkpoints");
        let newest = || {
            let found = walkdir::WalkDir::new(&folder).into_iter().flatten();
            let step = |e: walkdir::DirEntry| e.file_name().to_str()?.parse::<u64>().ok();
            found
                .filter(|e| e.file_type().is_file())
                .filter_map(step)
                .max()
                .unwrap_or(0)
        };
        wait(|| newest() >= 5 * checkpoints, "checkpoint");
        signal(child.id(), libc::SIGKILL);
        child.wait().unwrap();
    }
    let resumed = p.run(&[]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.all("metrics").len() < 20, "it went on");
    assert_eq!(curve(&p, &resumed), whole);
}

#[test]
fn what_a_result_was_judged_by_travels_with_it() {
    let p = project("");
    assert_eq!(p.run(&[]).code, 0);
    // neither the run's record nor the assertions were there when it is judged
    std::fs::remove_dir_all(p.path("store/runs")).unwrap();
    p.write("r.toml", &format!("{TRAIN}{WINDOW}"));
    let reused = p.run(&[]);
    assert_eq!((reused.code, reused.status("sft")), (0, "reused"));
    p.write("r.toml", &format!("{TRAIN}{WINDOW}").replace("0.2", "0.1"));
    let failed = p.run(&[]);
    assert_eq!((failed.code, failed.status("sft")), (3, "assertion_failed"));
    let error = failed.stage("sft")["error"]["message"].as_str().unwrap();
    assert_eq!(
        error,
        "mean of train/loss over steps 1 to 30 <= 0.1 does not hold: it is 0.133166, margin -0.0331662, 30 values of steps 1 to 30"
    );
    // lost metrics are missing ones
    let key = failed.stage("sft")["key"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    let blob = p.store().manifest(&record.steps.unwrap()).unwrap().files[0]
        .blob
        .hex();
    std::fs::remove_file(p.path(&format!("store/blobs/{}/{blob}", &blob[..2]))).unwrap();
    let lost = p.run(&[]);
    assert_eq!((lost.code, lost.status("sft")), (3, "assertion_failed"));
    assert_eq!(verdicts(&lost)[0].0, "missing");
}

#[test]
fn an_early_end_and_a_nan_never_pass() {
    let bound = "[[stage.sft.assert]]\nmetric = \"train/loss\"\nmax = 9.0\nmissing = \"fail\"\n";
    for (variable, value, verdict, why) in [
        ("SCRIPT_SHORT", "20", "missing", "ended at step 20 of 30"),
        ("SCRIPT_NAN", "30", "failed", "not a finite number"),
    ] {
        let p = project(bound);
        let first = scripted(&p, &[], &[(variable, value)]);
        // the same verdict when the result is reused
        for ran in [first, p.run(&[])] {
            assert_eq!(ran.code, 3, "{variable}: {}", ran.stderr);
            let found = verdicts(&ran).remove(0);
            assert!(found.0 == verdict && found.1.contains(why), "{found:?}");
        }
    }
    // a NaN in the middle of a window, with `missing = "pass"`
    let p = project(&WINDOW.replace("max = 0.2", "max = 9.0\nmissing = \"pass\""));
    let nan = scripted(&p, &[], &[("SCRIPT_NAN", "7")]);
    assert_eq!(nan.code, 3);
    assert!(curve(&p, &nan)[&7].is_nan());
    let found = verdicts(&nan);
    assert!(found.iter().all(|v| v.0 == "failed"), "{found:?}");
    // an early end passes where the recipe says so, and says that it is missing
    let p = project(&bound.replace("\"fail\"", "\"pass\""));
    let early = scripted(&p, &[], &[("SCRIPT_SHORT", "20")]);
    assert_eq!((early.code, verdicts(&early)[0].0.as_str()), (0, "missing"));
}

#[test]
fn bits_are_held_to_a_pinned_run_within_equal_numerics() {
    let digest = "[[stage.sft.assert]]\ndigest = \"pin:good\"\noutput = \"model\"\n";
    let p = project(digest);
    let first = p.run(&[]);
    assert_eq!((first.code, verdicts(&first)[0].0.as_str()), (3, "missing"));
    let run = p.store().list_runs().unwrap().pop().unwrap();
    let moved = runner::baseline::accept(&p.store(), &run, "good", "me", "the first").unwrap();
    assert_eq!((moved.number, moved.run.as_str()), (1, run.as_str()));
    assert_eq!(p.run(&[]).code, 0);
    // other bits, under the same numerics and resumed on the way: a failure
    let salt = [("SCRIPT_SALT", "x")];
    let other = scripted(&p, &["--force", "all", "--interrupt"], &salt);
    assert_eq!(other.code, 3);
    let found = verdicts(&other).remove(0);
    assert!(
        found.0 == "failed" && found.1.contains("output 'model' was"),
        "{found:?}"
    );
    // under others: not comparable, which `missing` says how to take
    let threads = format!("{TRAIN}resources = {{ threads = 7 }}\n{digest}");
    p.write("r.toml", &threads);
    let elsewhere = scripted(&p, &["--force", "all"], &salt);
    assert_eq!(elsewhere.code, 3);
    let found = verdicts(&elsewhere).remove(0);
    assert!(
        found.0 == "not_comparable" && found.1.contains("[0].threads") && found.1.ends_with("-> 7"),
        "{found:?}"
    );
    p.write("r.toml", &format!("{threads}missing = \"pass\"\n"));
    assert_eq!(p.run(&[]).code, 0);
}

#[test]
fn speed_is_judged_by_a_calibration_of_its_own_run() {
    let per = "[[stage.sft.assert]]\nmetric = \"train/loss\"\nper = \"calibration\"\nmin = 1e-9\n";
    let p = project(per);
    let ran = p.run(&[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let key = ran.stage("sft")["key"].as_str().unwrap().parse().unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    let gflops = record.provenance["calibration"].as_f64().unwrap();
    let value = ran.stage("sft")["verdicts"][0]["value"].as_f64().unwrap();
    assert!((value - 1.0 / 30.0 / gflops).abs() < 1e-12 && gflops > 0.1);
}
