//! Matrices, driven as a user drives them.

use crate::project::Project;
use serde_json::Value;

/// 3 x 4 cells that write down that they ran, of which one fails until `fixed` is there; a stage that follows them, and
/// one that gathers.
const GRID: &str = r#"
[recipe]
name = "grid"
schema = 1

[source.log]
path = "where"

[stage.train]
kind = "command"
in.log = "source.log"
cmd = ["sh", "-c", "cd $(cat $IN_log); echo ${matrix.a}-${matrix.b} >> ran; test ${matrix.a}-${matrix.b} != 2-y -o -e fixed && echo ${matrix.a} ${matrix.b} > $OUT_model"]
out = ["model"]
[stage.train.matrix]
a = [1, 2, 3]
b = ["w", "x", "y", "z"]

[stage.eval]
kind = "command"
foreach = "train"
in.model = "train.model"
cmd = ["sh", "-c", "test \"$(cat $IN_model)\" = \"${matrix.a} ${matrix.b}\" && cp $(dirname $IN_model)/mod* $OUT_report"]
out = ["report"]

[stage.table]
kind = "command"
in.reports = "eval[*].report"
cmd = ["sh", "-c", "cat $IN_reports | sort > $OUT_table"]
out = ["table"]
"#;

fn project() -> Project {
    let project = Project::new(GRID);
    project.write("where", &project.path("").display().to_string());
    project
}

fn with_status(outcome: &Value, status: &str) -> Vec<String> {
    let stages = outcome["stages"].as_array().unwrap().iter();
    let found = stages.filter(|s| s["status"] == status);
    found
        .map(|s| s["stage"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn one_failed_cell_does_not_lose_the_rest() {
    let project = project();
    let first = project.recipe("run recipe.toml --json -j 1").code(1);
    let outcome = first.json();
    assert_eq!(with_status(&outcome, "failed"), ["train[a=2,b=y]"]);
    assert_eq!(with_status(&outcome, "skipped"), ["eval[a=2,b=y]", "table"]);
    let ran = with_status(&outcome, "ran");
    assert_eq!(ran.iter().filter(|s| s.starts_with("train[")).count(), 11);
    assert_eq!(ran.iter().filter(|s| s.starts_with("eval[")).count(), 11);
    assert_eq!(project.read("ran").lines().count(), 12);
    let cell = outcome["stages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|s| s["stage"] == "eval[a=3,b=z]");
    assert_eq!(
        cell.unwrap()["cell"],
        serde_json::json!({ "of": "eval", "values": { "a": 3, "b": "z" } })
    );

    // again: only the one that failed is tried
    let plan = project.recipe("plan recipe.toml --json").code(0).json();
    let state = |wanted: &str| {
        let stages = plan["stages"].as_array().unwrap().iter();
        stages.filter(|s| s["state"] == wanted).count()
    };
    assert_eq!(
        (state("run"), state("undecided"), state("reuse")),
        (1, 2, 22)
    );
    project.recipe("run recipe.toml -j 1").code(1);
    assert_eq!(project.read("ran").lines().last(), Some("2-y"));
    assert_eq!(project.read("ran").lines().count(), 13);

    project.write("fixed", "");
    let last = project.recipe("run recipe.toml --json").code(0).json();
    assert_eq!(
        with_status(&last, "ran"),
        ["train[a=2,b=y]", "eval[a=2,b=y]", "table"]
    );
    assert_eq!(project.read("ran").lines().count(), 14);
    project
        .recipe("get recipe.toml table.table --to got")
        .code(0);
    assert_eq!(project.read("got/data").lines().count(), 12);
}

#[test]
fn cells_are_named_everywhere() {
    let project = project();
    project.write("fixed", "");
    let only = project
        .recipe("run recipe.toml --only train[a=1] --json")
        .code(0)
        .json();
    assert_eq!(with_status(&only, "ran").len(), 4);
    let all = project
        .recipe("run recipe.toml --only train --json")
        .code(0)
        .json();
    assert_eq!(
        (
            with_status(&all, "ran").len(),
            with_status(&all, "reused").len()
        ),
        (8, 4)
    );
    let force = project
        .recipe("run recipe.toml train --force=train[b=w] --json")
        .code(0)
        .json();
    assert_eq!(with_status(&force, "ran").len(), 3);

    project
        .recipe("get recipe.toml train[b=y,a=2].model --to one")
        .code(0);
    assert_eq!(project.read("one/data"), "2 y\n");
    let many = project
        .recipe("get recipe.toml train[a=2].model --to two")
        .code(2);
    assert!(many.err.contains("names 4 cells"), "{}", many.err);
    let log = project.recipe("logs last train[a=1,b=w]").code(0);
    assert_eq!(log.out, "");
    let why = project.recipe("why recipe.toml train[a=3]").code(0);
    assert_eq!(why.out.matches("nothing differs").count(), 4, "{}", why.out);
    let why = project
        .recipe("why recipe.toml train[a=3,b=z] --json")
        .code(0);
    assert_eq!(why.json()["state"], "reuse");
    let graph = project
        .recipe("graph recipe.toml --format json")
        .code(0)
        .json();
    let edges = graph["edges"].as_array().unwrap().iter();
    assert_eq!(edges.filter(|e| e["to"] == "table").count(), 12);
    let check = project.recipe("check recipe.toml").code(0);
    assert!(
        check
            .out
            .contains("25 stages (12 cells of train, 12 of eval)"),
        "{}",
        check.out
    );
}
