//! Random graphs and edits: what recipe runs beside what a model says (`ci/differential.py` says how).

use std::process::Command;

use product_tests::{bin, root};

#[test]
fn what_runs_is_what_the_model_says() {
    let out = Command::new("python3")
        .arg(root().join("ci/differential.py"))
        .args(["--cases", "20", "--seed", "1000", "--recipe"])
        .arg(bin("recipe"))
        .output()
        .expect("python3 starts");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    let text = String::from_utf8_lossy(&out.stdout);
    let tally: serde_json::Value = serde_json::from_str(text.trim()).expect("a JSON line");
    assert_eq!(tally["mismatches"], 0);
    let executed = tally["executed"].as_u64().expect("a number");
    assert!(executed > 100, "the cases run stages: {text}");
}
