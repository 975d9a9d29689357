//! Bad inputs, each with the one clear error it must give: folders of `tests/golden/errors`.
//!
//! | file | what |
//! |---|---|
//! | `recipe.toml` and others | copied to an empty folder, in which the command runs |
//! | `cmd` | arguments of `recipe`, `check recipe.toml` when absent; words apart by spaces |
//! | `expected.txt` | stderr from its first `error` on, with `DIR` for the folder, `RUN` for the run's id |
//! | `code` | the exit code |
//!
//! `UPDATE_GOLDEN=1` writes `expected.txt` and `code`; read what it wrote.

use crate::project;
use regex::Regex;
use std::path::{Path, PathBuf};

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if ["cmd", "expected.txt", "code"].iter().any(|n| name == *n) {
            continue;
        }
        let target = to.join(&name);
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Standard error and exit code of a case.
fn run(case: &Path) -> (String, String) {
    let dir = tempfile::tempdir().unwrap();
    copy(case, dir.path());
    let cmd = std::fs::read_to_string(case.join("cmd"))
        .unwrap_or_else(|_| "check recipe.toml".to_owned());
    let ran = project::run(dir.path(), &cmd.split_whitespace().collect::<Vec<_>>());
    let run_id = Regex::new(r"\d{8}-\d{6}-\d{3}-[0-9a-f]{6}").unwrap();
    let text = ran.err.replace(&dir.path().display().to_string(), "DIR");
    let text = run_id.replace_all(&text, "RUN");
    // progress comes before it, with times in it
    let first = text.find("error[").unwrap_or(0);
    let text = text[first..].to_owned();
    (text, ran.code.to_string())
}

#[test]
fn every_bad_input_gives_its_one_clear_error() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/errors");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    cases.sort();
    assert!(cases.len() >= 25);
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy();
        let (text, code) = run(case);
        if update {
            std::fs::write(case.join("expected.txt"), &text).unwrap();
            std::fs::write(case.join("code"), format!("{code}\n")).unwrap();
        }
        let expected = std::fs::read_to_string(case.join("expected.txt")).unwrap_or_default();
        let wanted = std::fs::read_to_string(case.join("code")).unwrap_or_default();
        if text != expected || code != wanted.trim() {
            wrong.push(format!(
                "{name}: exit {code}, wanted {}\n{text}--- wanted\n{expected}",
                wanted.trim()
            ));
        }
        // what holds for every error, whatever its text
        assert!(text.starts_with("error[R"), "{name}: {text}");
        assert!(!text.contains("panicked"), "{name}: {text}");
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}
