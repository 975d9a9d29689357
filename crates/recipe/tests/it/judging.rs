//! Assertions, baselines and `verify` through the binary, on commands that report metrics.

use crate::project::{Project, Ran};
use serde_json::Value;

/// The command's text never changes, so that the key does not: what it reports and writes is read from the project.
const RECIPE: &str = r#"
[recipe]
name = "judged"
schema = 1
[stage.train]
kind = "command"
cmd = ["sh", "-c", "cat DIR/metrics > $METRICS; mkdir $OUT_out; cp DIR/made/* $OUT_out"]
out = ["out"]
ASSERT
[stage.next]
kind = "command"
in.x = "train.out"
cmd = ["sh", "-c", "ls $IN_x > $OUT_out"]
out = ["out"]
"#;

struct Judged(Project);

impl Judged {
    fn new(assertions: &str, metrics: &str) -> Judged {
        let judged = Judged(Project::new(""));
        std::fs::create_dir(judged.0.path("made")).unwrap();
        judged.0.write("made/a.txt", "a\n");
        judged.0.write("metrics", metrics);
        judged.asserting(assertions);
        judged
    }

    fn asserting(&self, assertions: &str) {
        let dir = self.0.path("").display().to_string();
        let text = RECIPE.replace("DIR", dir.trim_end_matches('/'));
        self.0
            .write("recipe.toml", &text.replace("ASSERT", assertions));
    }

    /// Runs and gives the verdicts of `train` with their reasons.
    #[track_caller]
    fn run(&self, args: &str, code: i32) -> (Ran, Vec<(String, String)>) {
        let ran = self
            .0
            .recipe(&format!("run recipe.toml --json {args}"))
            .code(code);
        let train = ran.json()["stages"][0].clone();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let verdicts = train["verdicts"].as_array().cloned().unwrap_or_default();
        let verdicts = verdicts
            .iter()
            .map(|v| (text(&v["verdict"]), text(&v["why"])));
        let verdicts = verdicts.collect();
        (ran, verdicts)
    }
}

fn steps(n: u64) -> String {
    let line = |s: u64| format!("{{\"step\": {s}, \"loss\": {}}}\n", 1.0 / s as f64);
    (1..=n)
        .map(line)
        .chain(["{\"accuracy\": 0.9}\n".to_owned()])
        .collect()
}

const BOUNDS: &str = r#"
[[stage.train.assert]]
metric = "accuracy"
min = 0.8
[[stage.train.assert]]
metric = "loss"
over = "median"
steps = [11, 20]
max = 0.07
[[stage.train.assert]]
metric = "loss"
trend = "falls"
[[stage.train.assert]]
metric = "loss"
at_step = 4
equals = 0.25
rel_tolerance = 1e-6
"#;

#[test]
fn bounds_windows_and_trends_are_judged_and_judged_again() {
    let project = Judged::new(BOUNDS, &steps(20));
    let (ran, verdicts) = project.run("", 0);
    assert!(verdicts.iter().all(|v| v.0 == "passed"), "{verdicts:?}");
    let first = &ran.json()["stages"][0]["verdicts"][1];
    assert_eq!(
        (
            &first["metric"],
            &first["steps"],
            &first["count"],
            &first["max"]
        ),
        (
            &"loss".into(),
            &serde_json::json!([11, 20]),
            &10.into(),
            &0.07.into()
        )
    );
    assert_eq!(first["asked"], "median of loss over steps 11 to 20 <= 0.07");
    // the verdicts are in the record as well
    let record = project.0.recipe("show last --json").code(0).json();
    assert_eq!(record["stages"][0]["verdicts"][1], *first);
    let shown = project.0.recipe("show last").code(0).out;
    let said = "median of loss over steps 11 to 20 <= 0.07  passed";
    assert!(shown.contains(said), "{shown}");
    // a reused result is judged by the bounds of today; the stage below goes on
    project.asserting(&BOUNDS.replace("0.07", "0.06"));
    let ran = project.0.recipe("run recipe.toml").code(3);
    let said = "stage 'train': median of loss over steps 11 to 20 <= 0.06 does not hold: it is \
                0.0645833, margin -0.00458333, 10 values of steps 11 to 20";
    assert!(ran.err.contains(said), "{}", ran.err);
    let (ran, _) = project.run("", 3);
    let stages = ran.json()["stages"].clone();
    assert_eq!(stages[0]["status"], "assertion_failed");
    assert_eq!(stages[1]["status"], "reused");
    let metrics = project.0.recipe("show last --metrics train").code(0);
    assert_eq!(metrics.out.lines().count(), 20);
}

#[test]
fn what_is_missing_or_early_or_no_number_is_told_and_fails() {
    // a run that stopped early, and a lenient one
    let project = Judged::new(BOUNDS, &steps(14));
    let (_, verdicts) = project.run("", 3);
    let words: Vec<&str> = verdicts.iter().map(|v| v.0.as_str()).collect();
    assert_eq!(words, ["passed", "missing", "passed", "passed"]);
    assert_eq!(verdicts[1].1, "the run ended at step 14");
    let (_, again) = project.run("", 3);
    assert_eq!(again, verdicts, "judged alike when it is reused");
    project.asserting(&BOUNDS.replace("max = 0.07", "max = 0.07\nmissing = \"pass\""));
    let (_, lenient) = project.run("", 0);
    assert_eq!(lenient[1].0, "missing");
    // no such metric
    let project = Judged::new(&BOUNDS.replace("\"accuracy\"", "\"acuracy\""), &steps(20));
    let (_, verdicts) = project.run("", 3);
    assert!(verdicts[0].1.contains("no such metric"), "{verdicts:?}");
    // NaN as Python writes it, in the summary and in a step
    for (metrics, at) in [
        (steps(20).replace("0.9", "NaN"), 0),
        (
            steps(20).replace(
                "{\"step\": 15, \"loss\": ",
                "{\"step\": 15, \"loss\": NaN, \"x\": ",
            ),
            1,
        ),
    ] {
        let project = Judged::new(&BOUNDS.replace("[[", "\n[["), &metrics);
        for _ in ["computed", "reused"] {
            let (_, verdicts) = project.run("", 3);
            assert_eq!(verdicts[at].0, "failed", "{verdicts:?}");
            assert!(verdicts[at].1.contains("not a finite number"));
        }
    }
}

#[test]
fn metrics_that_are_none_fail_the_stage() {
    let project = Judged::new("", "{\"step\": 1, \"loss\": 0.5}\nloss 0.4\n");
    let ran = project.0.recipe("run recipe.toml").code(1);
    assert!(
        ran.err
            .contains("what it wrote to $METRICS is wrong in line 2"),
        "{}",
        ran.err
    );
}

#[test]
fn only_who_needs_assertions_waits_for_them() {
    let project = Judged::new(&BOUNDS.replace("0.8", "0.95"), &steps(20));
    let (ran, _) = project.run("", 3);
    assert_eq!(ran.json()["stages"][1]["status"], "ran");
    let text = project.0.read("recipe.toml");
    let needs = text.replace("[stage.next]", "[stage.next]\nneeds_assert = true");
    project.0.write("recipe.toml", &needs);
    let (ran, _) = project.run("", 3);
    let next = ran.json()["stages"][1].clone();
    assert_eq!(
        (&next["status"], &next["why"]),
        (
            &"skipped".into(),
            &"needs the assertions of 'train' to hold".into()
        )
    );
    // a window says what it comes to
    let no_over = text.replace("trend = \"falls\"", "max = 1.0\nlast = 3");
    project.0.write("recipe.toml", &no_over);
    let refused = project.0.recipe("check recipe.toml").code(2);
    assert!(refused.err.contains("'over' is missing"), "{}", refused.err);
}

const BASELINE: &str = r#"
[[stage.train.assert]]
metric = "accuracy"
baseline = "pin:nightly"
max_drop = 0.02
"#;

#[test]
fn a_baseline_moves_when_somebody_accepts_it_and_only_then() {
    let project = Judged::new(BASELINE, &steps(20));
    let accuracy = |x: f64| {
        project
            .0
            .write("metrics", &format!("{{\"accuracy\": {x}}}\n"))
    };
    let (_, verdicts) = project.run("", 3);
    assert!(
        verdicts[0]
            .1
            .contains("recipe baseline accept RUN --as nightly")
    );
    let accept = |why: &str| {
        let args = [
            "baseline", "accept", "last", "--as", "nightly", "--by", "ann", "--why", why,
        ];
        crate::project::run(&project.0.path(""), &args)
    };
    accept("the first").code(0);
    let (_, verdicts) = project.run("", 0);
    assert_eq!(verdicts[0].0, "passed");
    // better is no new baseline: what was accepted stays
    accuracy(0.99);
    project.run("--force", 0);
    accuracy(0.885);
    project.run("--force", 0);
    accuracy(0.87);
    let ran = project.0.recipe("run recipe.toml --force").code(3);
    assert!(
        ran.err.contains(
            "accuracy at most 0.02 below pin:nightly does not hold: it is 0.87, margin -0.01"
        ),
        "{}",
        ran.err
    );
    accept("a smaller model").code(0);
    let (ran, _) = project.run("", 0);
    let verdict = ran.json()["stages"][0]["verdicts"][0].clone();
    assert_eq!(
        (&verdict["baseline"], &verdict["min"]),
        (&0.87.into(), &0.85.into())
    );
    let shown = project.0.recipe("baseline show nightly").code(0).out;
    for said in ["the first", "a smaller model", "ann", "accuracy", "0.87"] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    let list = project.0.recipe("baseline list --json").code(0).json();
    assert_eq!(
        (&list["pins"][0]["number"], &list["pins"][0]["why"]),
        (&2.into(), &"a smaller model".into())
    );
    // what it needs outlives a collection, and its history cannot be taken away by accident
    project.0.recipe("cache gc --older-than 0s").code(0);
    project.0.recipe("cache verify").code(0);
    project.run("", 0);
    let refused = project.0.recipe("cache unpin nightly").code(2);
    assert!(refused.err.contains("baseline"), "{}", refused.err);
    // a run that failed is no baseline
    project.0.write("metrics", "nonsense");
    project.0.recipe("run recipe.toml --force").code(1);
    let refused = accept("by mistake").code(2);
    assert!(refused.err.contains("exit code 1"), "{}", refused.err);
    project.0.recipe("baseline show weekly").code(2);
}

#[test]
fn sigma_comes_from_the_history_of_a_pin() {
    let project = Judged::new(&BASELINE.replace("max_drop = 0.02", "sigma = 3.0"), "");
    let accuracy = |x: f64| {
        project
            .0
            .write("metrics", &format!("{{\"accuracy\": {x}}}\n"))
    };
    for (i, x) in [0.80, 0.82, 0.78, 0.81, 0.79].into_iter().enumerate() {
        accuracy(x);
        let code = if i < 3 { 3 } else { 0 };
        project.run("--force", code);
        project
            .0
            .recipe("baseline accept last --as nightly --why nightly")
            .code(0);
    }
    accuracy(0.77);
    project.run("--force", 0);
    accuracy(0.70);
    let (_, verdicts) = project.run("--force", 3);
    assert_eq!(verdicts[0].0, "failed");
}

/// A safetensors file of one tensor of two numbers.
fn tensors(values: [f32; 2]) -> Vec<u8> {
    let header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

#[test]
fn digests_are_held_to_a_pinned_run() {
    let project = Judged::new("[[stage.train.assert]]\ndigest = \"pin:good\"\n", &steps(3));
    project.run("", 3);
    project
        .0
        .recipe("baseline accept last --as good --why bits")
        .code(0);
    project.run("", 0);
    project.0.write("made/a.txt", "b\n");
    let (ran, verdicts) = project.run("--force=train", 3);
    assert_eq!(verdicts[0].0, "failed");
    assert!(
        verdicts[0].1.starts_with("output 'out' was "),
        "{verdicts:?}"
    );
    assert_eq!(ran.json()["stages"][0]["verdicts"][0]["metric"], "digest");
}

#[test]
fn verify_names_the_tensor_and_the_step() {
    let project = Judged::new("", &steps(20));
    std::fs::write(project.0.path("made/w.safetensors"), tensors([1.0, 2.0])).unwrap();
    let refused = project.0.recipe("verify recipe.toml train").code(2);
    assert!(refused.err.contains("--rerun"), "{}", refused.err);
    // nothing to compare with in the store: it runs twice
    let twice = project.0.recipe("verify recipe.toml train --rerun").code(0);
    assert!(
        twice
            .out
            .contains("the same bits as another run on this machine"),
        "{}",
        twice.out
    );
    project.run("", 0);
    let same = project
        .0
        .recipe("verify recipe.toml train --rerun --json")
        .code(0)
        .json();
    assert_eq!(
        (&same["checks"][0]["same"], &same["checks"][0]["reference"]),
        (&true.into(), &"the result in the store".into())
    );
    // what a stage reads must be there, and is taken from the store
    project.0.recipe("verify recipe.toml next --rerun").code(0);
    // an input that nobody declared: other bits, and other metrics from step 13 on
    std::fs::write(project.0.path("made/w.safetensors"), tensors([1.0, 2.5])).unwrap();
    let other = steps(20).replace("{\"step\": 13, \"loss\": ", "{\"step\": 13, \"loss\": 9");
    project.0.write("metrics", &other);
    let apart = project.0.recipe("verify recipe.toml train --rerun").code(3);
    for said in [
        "NOT the bits of the result in the store",
        "w.safetensors differs, first in tensor w (F32 [2]): 1 elements, by at most 0.5",
        "metrics first differ at step 13: loss",
    ] {
        assert!(apart.out.contains(said), "{said}: {}", apart.out);
    }
    // the store is as it was
    let (ran, _) = project.run("", 0);
    assert_eq!(ran.json()["stages"][0]["status"], "reused");
    let resume = project
        .0
        .recipe("verify recipe.toml train --resume")
        .code(2);
    assert!(
        resume.err.contains("takes no checkpoints"),
        "{}",
        resume.err
    );
}

/// The script that runs a recipe over seeds: false alarms, their chance, and what is caught.
#[test]
fn false_alarms_and_what_is_caught_are_counted_over_seeds() {
    let recipe = r#"
[recipe]
name = "noisy"
schema = 1
[params]
seed = 0
[stage.eval]
kind = "command"
cmd = ["sh", "-c", "echo '{\"accuracy\": 0.8${params.seed}}' > $METRICS; touch $OUT_out"]
out = ["out"]
[[stage.eval.assert]]
metric = "accuracy"
min = 0.82
"#;
    let project = Project::new(recipe);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let script = |seeds: &str| {
        let out = std::process::Command::new("python3")
            .arg(root.join("ci/false-alarms.py"))
            .args([
                "recipe.toml",
                "--seeds",
                seeds,
                "--first",
                "3",
                "--json",
                "out.json",
            ])
            .args(["--recipe", env!("CARGO_BIN_EXE_recipe")])
            .current_dir(project.path(""))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        let report: Value = serde_json::from_str(&project.read("out.json")).expect(&told);
        (out.status.code(), report)
    };
    // 0.83 to 0.87: m = 0.85, s = 0.0158114, e = s sqrt(1.2), t(0.95, 4) = 2.131847
    let (code, report) = script("5");
    let row = &report["assertions"][0];
    assert_eq!(
        (code, &row["failed"], &row["runs"]),
        (Some(0), &0.into(), &5.into())
    );
    let caught = row["caught"]["drop"].as_f64().unwrap();
    assert!(
        (caught - (0.03 + 2.131_847 * 0.015_811_388 * 1.2f64.sqrt())).abs() < 1e-6,
        "{caught}"
    );
    let chance = row["chance"].as_f64().unwrap();
    assert!((chance - 0.079).abs() < 0.001, "{chance}");
    project.write("recipe.toml", &recipe.replace("0.82", "0.835"));
    let (code, report) = script("5");
    assert_eq!((code, &report["failed"]), (Some(3), &1.into()));
}
