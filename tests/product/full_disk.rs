//! A full disk: one clear error and exit code 4, nothing is lost, and with room again the next run succeeds.
//!
//! The store lies on a tmpfs of a few MB in a mount namespace of the test's own (any user may make one), where only so
//! much is left free. The texts are golden files (`tests/golden/failures`); `UPDATE_GOLDEN=1` writes them anew.

use std::process::Command;

use product_tests::{Project, bin};

use crate::golden;

/// `$1` is the stage to run beforehand or empty, `$2` the KiB left free, `$3` the output that is looked at in the end.
const SCRIPT: &str = r#"
set -u
try() { name=$1; shift; "$RECIPE" "$@" > $name.out 2> $name.err; echo $? > $name.code; }
mkdir -p .recipe
mount -t tmpfs -o size=8m none .recipe || exit 1
[ -z "$1" ] || try before run recipe.toml "$1"
room=$(df --output=avail -k .recipe | tail -1)
head -c $((room - $2))k /dev/zero > .recipe/filler || exit 1
try full run recipe.toml
rm .recipe/filler
try verify cache verify --paranoid
try again run recipe.toml
try last cache verify --paranoid
try get get recipe.toml "$3" --to got
"#;

/// Four stages: what the first writes is large, what the last writes is looked at.
const COMMANDS: &str = r#"[recipe]
name = "full"
schema = 1
[stage.large]
kind = "command"
cmd = ["sh", "-c", "head -c 1500000 /dev/zero > $OUT_out"]
out = ["out"]
[stage.count]
kind = "command"
in.x = "large.out"
cmd = ["sh", "-c", "wc -c < $IN_x > $OUT_out"]
out = ["out"]
[stage.add]
kind = "command"
in.x = "count.out"
cmd = ["sh", "-c", "expr $(cat $IN_x) + 1 > $OUT_out"]
out = ["out"]
"#;

/// A model of 3 MB, and a copy of it.
const MODEL: &str = r#"[recipe]
name = "full"
schema = 1
[stage.base]
kind = "init"
with.family = "qwen3"
with.hidden_size = 128
with.intermediate_size = 512
with.layers = 3
with.heads = 2
with.kv_heads = 1
with.head_dim = 16
with.tokenizer = "char"
with.alphabet = "0123456789+="
with.max_positions = 64
with.seed = 1
[stage.convert]
kind = "convert"
in.model = "base.model"
"#;

/// Runs the script; the first run's exit code and its report. The rest must be right.
fn fill(project: &Project, before: &str, free: usize, output: &str) -> (i32, String) {
    let at = format!("{free} KiB free");
    project.write("script.sh", SCRIPT);
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "script.sh"])
        .args([before, &free.to_string(), output])
        .current_dir(project.path(""))
        .env("RECIPE", bin("recipe"))
        .env("NO_COLOR", "1")
        .status()
        .expect("unshare (util-linux) starts");
    assert!(
        status.success(),
        "{at}: a mount namespace with a tmpfs; the kernel must allow user namespaces"
    );
    let code = |name: &str| project.read(&format!("{name}.code")).trim().to_owned();
    let said =
        |name: &str| project.read(&format!("{name}.out")) + &project.read(&format!("{name}.err"));
    for name in ["verify", "again", "last", "get"] {
        assert_eq!(
            code(name),
            "0",
            "{at}: {name}: {}\nfirst run: {}",
            said(name),
            said("full")
        );
    }
    let report = project.read("full.err");
    (code("full").parse().expect("an exit code"), report)
}

#[test]
fn wherever_the_disk_fills_up_nothing_is_lost() {
    let mut failed = 0;
    // from nothing, through each page that the run's own files take, to where the outputs fit
    let points = (0..=64)
        .step_by(8)
        .chain([500, 1464, 1480, 1500, 1540, 2900, 2990, 7000]);
    for free in points {
        let project = Project::new(COMMANDS);
        let (code, report) = fill(&project, "", free, "add.out");
        assert_eq!(project.read("got/data").trim(), "1500001");
        if code == 0 {
            continue;
        }
        failed += 1;
        assert_eq!(code, 4, "{free} KiB free: {report}");
        assert_eq!(
            report.matches("error[").count(),
            1,
            "{free} KiB free: {report}"
        );
        assert!(
            report.contains("free some space"),
            "{free} KiB free: {report}"
        );
    }
    assert!(failed > 10, "{failed} of the points are too small");
}

#[test]
fn a_full_disk_gives_one_clear_error() {
    let mut wrong = Vec::new();
    for (name, recipe, before, free) in [
        ("disk-full-at-the-start", COMMANDS, "", 0),
        ("disk-full-while-a-command-writes", COMMANDS, "", 1000),
        ("disk-full-while-a-model-is-written", MODEL, "", 1000),
        ("disk-full-while-inputs-are-laid-out", MODEL, "base", 1000),
    ] {
        let project = Project::new(recipe);
        let output = if recipe == MODEL {
            "convert.model"
        } else {
            "add.out"
        };
        let (code, report) = fill(&project, before, free, output);
        assert_eq!(code, 4, "{name}: {report}");
        wrong.extend(golden::differs(name, &golden::normal(&report, &project)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
