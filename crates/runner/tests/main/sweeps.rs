//! Choices among cells: decided by metrics when they are known, recorded, and keyed by what was chosen.

use crate::project::Project;

/// The scripted worker's loss is 1 / steps.
const SWEEP: &str = r#"
[recipe]
name = "sweep"
schema = 1
[source.base]
path = "base"
[source.chat]
path = "chat.jsonl"
[stage.sft]
kind = "sft"
in = { model = "source.base", data = "source.chat" }
with = { steps = "${matrix.steps}", seed = "${matrix.seed}" }
matrix = { steps = [2, 5, 3] }
replicas.seeds = [1]
[stage.best]
kind = "command"
in.x = { of = "sft.model", select = { min = "sft.train/loss" } }
cmd = ["sh", "-c", "echo best >> $DIR/ran; cp $IN_x/weights $OUT_out"]
env = ["DIR"]
out = ["out"]
"#;

fn project(recipe: &str) -> Project {
    let p = Project::new(recipe);
    std::fs::create_dir(p.path("base")).unwrap();
    p.write("base/config.json", "{}");
    p.write("chat.jsonl", "{\"messages\": []}\n");
    p
}

#[test]
fn the_best_cell_is_chosen_when_metrics_are_known() {
    let p = project(SWEEP);
    let plan = p.command(&["--plan"]).output().unwrap();
    let plan = String::from_utf8(plan.stdout).unwrap();
    let best = plan.lines().find(|l| l.starts_with("best")).unwrap();
    assert!(
        best.contains("Undecided([\"sft.model with the min of sft.train/loss\"])"),
        "{best}"
    );
    let first = p.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let best = first.stage("best");
    let chosen = &best["chosen"][0];
    assert_eq!(chosen["stage"], "sft[steps=5,seed=1]");
    assert_eq!(
        (chosen["input"].as_str(), chosen["value"].as_f64()),
        (Some("x"), Some(0.2))
    );
    let sft = first.stage("sft[steps=5,seed=1]");
    assert_eq!(sft["cell"]["replica_of"], "sft[steps=5]");
    let key = best["key"].as_str().unwrap().parse().unwrap();
    let (_, record) = p.store().current(&key).unwrap().unwrap();
    assert_eq!(
        record.provenance["chosen"][0]["stage"],
        "sft[steps=5,seed=1]"
    );

    // a further cell that is no better leaves the key below alone; one that is better changes it
    p.write("r.toml", &SWEEP.replace("[2, 5, 3]", "[2, 5, 4]"));
    let same = p.run(&[]);
    assert_eq!(
        (same.status("best"), same.status("sft[steps=4,seed=1]")),
        ("reused", "ran")
    );
    assert_eq!(
        same.stage("best")["chosen"][0]["stage"],
        "sft[steps=5,seed=1]"
    );
    p.write("r.toml", &SWEEP.replace("[2, 5, 3]", "[2, 5, 9]"));
    let better = p.run(&[]);
    assert_eq!(
        better.stage("best")["chosen"][0]["stage"],
        "sft[steps=9,seed=1]"
    );
    assert_eq!((better.status("best"), p.lines("ran").len()), ("ran", 2));
}

#[test]
fn a_choice_needs_every_cell() {
    let p = project(SWEEP);
    let mut command = p.command(&["-j", "1"]);
    command.env("SCRIPT_FAIL", "4:1");
    let ran = crate::project::ran(command);
    assert_eq!(ran.code, 1);
    assert_eq!(
        (ran.status("sft[steps=5,seed=1]"), ran.status("best")),
        ("failed", "skipped")
    );
    assert_eq!(
        (
            ran.status("sft[steps=2,seed=1]"),
            ran.status("sft[steps=3,seed=1]")
        ),
        ("ran", "ran")
    );
}

#[test]
fn a_metric_that_no_cell_has_is_named() {
    let p = project(&SWEEP.replace("sft.train/loss", "sft.train/lost"));
    let ran = p.run(&[]);
    assert_eq!(ran.code, 2);
    let error = &ran.stage("best")["error"];
    let (message, help) = (
        error["message"].as_str().unwrap(),
        error["help"].as_str().unwrap(),
    );
    assert!(
        message.contains("none of the 3 cells of 'sft' has the metric 'train/lost'"),
        "{message}"
    );
    assert!(message.contains("r.toml:17"), "{message}");
    assert!(help.contains("did you mean 'train/loss'?"), "{help}");
}

#[test]
fn losers_of_a_sweep_may_go() {
    let p = project(SWEEP);
    let first = p.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    // the artifact of a cell that was not chosen is lost: only its record is needed
    let loser = first.stage("sft[steps=2,seed=1]")["outputs"]["model"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let store = p.store();
    let blob = store.manifest(&loser).unwrap().files[0].blob.hex();
    std::fs::remove_file(p.path(&format!("store/blobs/{}/{blob}", &blob[..2]))).unwrap();
    p.write("r.toml", &SWEEP.replace("echo best", "echo again"));
    let again = p.run(&[]);
    assert_eq!(
        (again.status("best"), again.status("sft[steps=2,seed=1]")),
        ("ran", "reused")
    );
}
