//! Replicas that are judged together, and what is below them.

use crate::project::Project;
use serde_json::Value;

/// Replicas of a stage, whose metric is read from a line of `values` by seed.
#[test]
fn replicas_are_compared_with_a_pinned_run_within_their_noise() {
    let project = Project::new("");
    let recipe = r#"
[recipe]
name = "replicated"
schema = 1
[stage.eval]
kind = "command"
cmd = ["sh", "-c", "grep '^${matrix.seed} ' DIR/values | cut -d' ' -f2- > $METRICS; touch $OUT_out"]
out = ["out"]
replicas.seeds = [1, 2, 3]
[[stage.eval.assert]]
metric = "accuracy"
baseline = "pin:nightly"
max_drop = 0.0
"#;
    let dir = project.path("").display().to_string();
    project.write(
        "recipe.toml",
        &recipe.replace("DIR", dir.trim_end_matches('/')),
    );
    let run = |values: [f64; 3], args: &str, code: i32| -> Vec<Value> {
        let line = |(i, x): (usize, &f64)| format!("{} {{\"accuracy\": {x}}}\n", i + 1);
        let lines: String = values.iter().enumerate().map(line).collect();
        project.write("values", &lines);
        let ran = project
            .recipe(&format!("run recipe.toml --json {args}"))
            .code(code);
        let stages = ran.json()["stages"].as_array().cloned().unwrap();
        let verdicts = stages
            .iter()
            .filter_map(|s| s["verdicts"].as_array().cloned());
        verdicts.flatten().collect()
    };
    let pinned = [0.80, 0.82, 0.78];
    let first = run(pinned, "", 3);
    assert_eq!(
        (first.len(), &first[0]["verdict"]),
        (1, &"missing".into()),
        "judged once"
    );
    project
        .recipe("baseline accept last --as nightly --why first")
        .code(0);
    let same = run(pinned, "", 0);
    assert_eq!((same.len(), &same[0]["count"]), (1, &3.into()));
    // a mean that is a little lower is within the noise of three, one that is much lower is not
    let lower = run([0.79, 0.81, 0.77], "--force", 0);
    let noise = 0.8 - lower[0]["min"].as_f64().unwrap();
    assert!(
        (noise - 2.131_847 * 0.02 * (2.0f64 / 3.0).sqrt()).abs() < 1e-6,
        "{noise}"
    );
    let worse = run([0.75, 0.77, 0.73], "--force", 3);
    assert_eq!(worse[0]["verdict"], "failed");
    // replicas that are not selected are left out of the comparison
    let one = run([0.75, 0.77, 0.73], "eval[seed=2]", 0);
    assert_eq!((one.len(), &one[0]["value"]), (1, &0.77.into()));
}

/// What needs the assertions of one replica needs those of all: they are judged with the last that ends.
#[test]
fn below_any_replica_the_verdict_on_all_counts() {
    let project = Project::new("");
    let recipe = r#"
[recipe]
name = "gated"
schema = 1
[stage.eval]
kind = "command"
cmd = ["sh", "-c", "test ! -e DIR/broken-${matrix.seed} && cp DIR/metrics $METRICS && touch $OUT_out"]
out = ["out"]
replicas.seeds = [1, 2, 3]
[[stage.eval.assert]]
metric = "accuracy"
baseline = "pin:nightly"
max_drop = 0.1
[stage.pack]
kind = "command"
in.x = "eval[seed=1].out"
cmd = ["sh", "-c", "cp $IN_x $OUT_out"]
out = ["out"]
[stage.ship]
kind = "command"
needs_assert = true
in.x = "pack.out"
cmd = ["sh", "-c", "echo shipped > $OUT_out"]
out = ["out"]
"#;
    let dir = project.path("").display().to_string();
    let recipe = recipe.replace("DIR", dir.trim_end_matches('/'));
    project.write("recipe.toml", &recipe);
    // one at a time, so that the longest way goes first: `ship` could run before the last replica
    let run = |args: &str, code: i32| -> Value {
        let ran = project.recipe(&format!("run recipe.toml --json -j 1 {args}"));
        ran.code(code).json()
    };
    let stage = |outcome: &Value, name: &str| -> Value {
        let all = outcome["stages"].as_array().unwrap().iter();
        all.clone().find(|s| s["stage"] == name).unwrap().clone()
    };
    let held = |outcome: &Value| {
        let (ship, pack) = (stage(outcome, "ship"), stage(outcome, "pack"));
        assert_eq!(ship["status"], "skipped", "{ship}");
        assert_eq!(
            ship["why"],
            "needs the assertions of 'eval[seed=1]' to hold"
        );
        assert!(
            pack["status"] == "ran" || pack["status"] == "reused",
            "{pack}"
        );
    };
    project.write("metrics", r#"{"accuracy": 0.8}"#);
    held(&run("", 3));
    project
        .recipe("baseline accept last --as nightly --why first")
        .code(0);
    let good = run("", 0);
    assert_eq!(stage(&good, "ship")["status"], "ran");

    project.write("metrics", r#"{"accuracy": 0.5}"#);
    let worse = run("--force", 3);
    held(&worse);
    let first = stage(&worse, "eval[seed=1]");
    assert!(first["verdicts"].is_null(), "judged with the last: {first}");
    // reused results are judged alike
    held(&run("", 3));
    // a replica that has no result leaves the others unjudged
    project.write("metrics", r#"{"accuracy": 0.8}"#);
    project.write("broken-3", "");
    held(&run("--force", 1));
    std::fs::remove_file(project.path("broken-3")).unwrap();
    let again = run("--force=eval", 0);
    assert_eq!(stage(&again, "ship")["status"], "reused");
}
