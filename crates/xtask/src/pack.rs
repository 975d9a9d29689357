//! `cargo xtask pack DIR`: what `ci/gpu.sh` runs on a machine without Rust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::Value;

use crate::libtorch;
use crate::process::{Result, cargo, check, output};

/// What cargo calls the binaries, examples and test programs, and what they are called in the directory.
const BINARIES: [(&str, &str); 8] = [
    ("recipe", "recipe"),
    ("recipe-worker", "recipe-worker"),
    ("bench", "bench"),
    ("collectives", "collectives"),
    ("mesh", "mesh"),
    ("cuda", "kernel-tests"),
    ("rates", "kernel-rates"),
    ("gpu", "gpu"),
];

/// Builds the binaries and puts them into a directory, without symbols.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let [dir] = args else {
        return Err("usage: cargo xtask pack DIR".into());
    };
    let dir = Path::new(dir);
    fs::create_dir_all(dir).map_err(|e| format!("failed to create {}: {e}", dir.display()))?;
    let torch = libtorch::ensure(false)?;
    let built = output(
        cargo()
            .args(["build", "--release", "--workspace", "--bins"])
            .args(["--example", "bench", "--example", "collectives"])
            .args(["--example", "rates", "--example", "gpu"])
            .args([
                "--test",
                "mesh",
                "--test",
                "cuda",
                "--message-format",
                "json-render-diagnostics",
            ])
            .envs(torch.environment()),
    )?;
    for (target, name) in BINARIES {
        let from = executable(&built, target).ok_or(format!("cargo built no {target}"))?;
        let to = dir.join(name);
        fs::copy(&from, &to).map_err(|e| format!("failed to write {}: {e}", to.display()))?;
        check(Command::new("strip").arg(&to))?;
    }
    println!("{}", dir.display());
    Ok(ExitCode::SUCCESS)
}

/// Where cargo's messages say that this program is.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let mut messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages.find_map(|message| match message["target"]["name"] == name {
        true => message["executable"].as_str().map(PathBuf::from),
        false => None,
    })
}
