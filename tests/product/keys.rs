//! What a key does not depend on, through the real binary: where, when, by whom and how often a stage is computed.

use product_tests::Project;
use serde_json::Value;

const RECIPE: &str = r#"[recipe]
name = "keys"
schema = 1
[source.text]
path = "in.txt"
[stage.first]
kind = "command"
in.x = "source.text"
cmd = ["sh", "-c", "sort $IN_x > $OUT_out"]
out = ["out"]
env = ["DECLARED"]
[stage.second]
kind = "command"
in.x = "first.out"
cmd = ["sh", "-c", "wc -l < $IN_x > $OUT_out"]
out = ["out"]
resources.threads = 1
timeout = "10m"
"#;

fn project() -> Project {
    let project = Project::new(RECIPE);
    project.write("in.txt", "ä\nb\na\n");
    project
}

/// The keys of both stages after a run.
#[track_caller]
fn keys(project: &Project, args: &[&str], cwd: &str, variables: &[(&str, &str)]) -> [String; 2] {
    let mut all = vec!["run"];
    all.extend(args);
    all.push("--json");
    let mut command = project.command(&all);
    command.env("DECLARED", "1").envs(variables.iter().copied());
    let out = command.current_dir(project.path(cwd)).output();
    let out = out.expect("recipe starts");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let run: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    [0, 1].map(|i| run["stages"][i]["key"].as_str().expect("a key").to_owned())
}

const PLAIN: [&str; 1] = ["recipe.toml"];

#[test]
fn keys_do_not_depend_on_where_and_how_a_stage_runs() {
    let here = project();
    let expected = keys(&here, &PLAIN, "", &[]);

    let elsewhere = project();
    let file = elsewhere.path("recipe.toml").display().to_string();
    std::fs::create_dir(elsewhere.path("below")).expect("a folder");
    let store = elsewhere.path("another/store").display().to_string();
    assert_eq!(
        keys(&elsewhere, &[&file], "below", &[]),
        expected,
        "working directory and path"
    );
    assert_eq!(
        keys(
            &elsewhere,
            &["../recipe.toml", "--store", &store],
            "below",
            &[]
        ),
        expected,
        "store"
    );
    assert_eq!(
        keys(&elsewhere, &["recipe.toml", "--force", "-j", "1"], "", &[]),
        expected,
        "attempt, -j"
    );
    for variables in [
        [("TZ", "Asia/Tokyo"), ("LC_ALL", "de_DE.UTF-8")],
        [("TZ", "America/New_York"), ("LC_ALL", "C")],
        [("HOME", "/nonexistent"), ("LANG", "tr_TR.UTF-8")],
        [("USER", "somebody"), ("UNDECLARED", "2")],
    ] {
        let fresh = project();
        assert_eq!(
            keys(&fresh, &PLAIN, "", &variables),
            expected,
            "{variables:?}"
        );
    }

    let other = project();
    other.edit("recipe.toml", "stage.first]", "stage.renamed]");
    other.edit("recipe.toml", "first.out", "renamed.out");
    other.edit(
        "recipe.toml",
        "timeout = \"10m\"",
        "timeout = \"1h\" # placement",
    );
    other.edit("recipe.toml", "name = \"keys\"", "name = \"other\"");
    std::fs::rename(other.path("in.txt"), other.path("moved.txt")).expect("a file");
    other.edit("recipe.toml", "in.txt", "moved.txt");
    assert_eq!(
        keys(&other, &PLAIN, "", &[]),
        expected,
        "names, paths, placement, comments"
    );
}

#[test]
fn keys_depend_on_what_a_stage_reads_and_says() {
    let expected = keys(&project(), &PLAIN, "", &[]);
    let changed = |change: &dyn Fn(&Project), variables: &[(&str, &str)]| {
        let other = project();
        change(&other);
        let found = keys(&other, &PLAIN, "", variables);
        [found[0] != expected[0], found[1] != expected[1]]
    };
    // the second reads what the first makes of it
    assert_eq!(
        changed(&|p| p.write("in.txt", "c\n"), &[]),
        [true, true],
        "content"
    );
    assert_eq!(
        changed(&|p| p.write("in.txt", "b\nä\na\n"), &[]),
        [true, false],
        "cut off"
    );
    assert_eq!(
        changed(&|p| p.edit("recipe.toml", "wc -l", "wc -c"), &[]),
        [false, true],
        "command"
    );
    assert_eq!(
        changed(&|_| (), &[("DECLARED", "2")]),
        [true, false],
        "declared variable"
    );
    let output = |p: &Project| {
        p.edit(
            "recipe.toml",
            "wc -l < $IN_x > $OUT_out\"]\nout = [\"out\"]",
            "wc -l < $IN_x > $OUT_n\"]\nout = [\"n\"]",
        );
    };
    assert_eq!(changed(&output, &[]), [false, true], "output name");
}
