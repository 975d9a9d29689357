//! `cargo xtask test`: all that must hold before a change lands, cheapest first.

use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::process::{Result, cargo, check, root};
use crate::{arrows, binaries, libtorch, nvrtc};

pub fn run(filters: &[String]) -> Result<ExitCode> {
    let torch = libtorch::ensure(false)?;
    let environment = nvrtc::environment(&torch)?;
    if !filters.is_empty() {
        step("build", || binaries::build().map(drop))?;
        step("tests", || {
            let mut command = cargo();
            command.args(["test", "--release", "--workspace", "--no-fail-fast", "--"]);
            check(command.args(filters).envs(environment.clone()))
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    step("fmt", || check(cargo().args(["fmt", "--all", "--check"])))?;
    step("arrows", arrows::check)?;
    // Builds the binaries too, with the features that the tests are built with: `cargo build`
    // first would compile half of the dependencies twice.
    step("build", || {
        let mut command = cargo();
        command.args(["test", "--release", "--workspace", "--no-run", "--quiet"]);
        check(command.envs(environment.clone()))
    })?;
    step("recipe links no libtorch", recipe_links_no_libtorch)?;
    step("tests", || {
        let mut command = cargo();
        command.args(["test", "--release", "--workspace", "--no-fail-fast"]);
        check(command.envs(environment.clone()))
    })?;
    step("clippy", || {
        let mut command = cargo();
        command.args([
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--quiet",
        ]);
        check(
            command
                .args(["--", "-D", "warnings"])
                .envs(environment.clone()),
        )
    })?;
    step("planted defects apply", || {
        let mut command = Command::new("ci/defects.py");
        check(command.arg("--check").current_dir(root()))
    })?;
    step("the regression recipe", || {
        recipe("run", "recipes/ci/regression.toml", &[])?;
        recipe("verify", "recipes/ci/regression.toml", &["sft", "--resume"])
    })?;
    step("the README's recipe", || {
        recipe("run", "recipes/sft-then-grpo.toml", &[])
    })?;
    Ok(ExitCode::SUCCESS)
}

/// A verb of the built binary on a recipe. What a run leaves in the store is for the verbs after it.
fn recipe(verb: &str, file: &str, more: &[&str]) -> Result<()> {
    let store = root().join("target/recipes-store");
    if verb == "run" {
        let _ = std::fs::remove_dir_all(&store);
    }
    let mut command = Command::new(binaries::target_dir().join("recipe"));
    command
        .args([verb, file])
        .args(more)
        .arg("--store")
        .arg(store);
    check(command.current_dir(root()))
}

fn step(name: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("== {name}");
    let start = Instant::now();
    body().map_err(|e| format!("{name}: {e}"))?;
    eprintln!("== {name}: ok, {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The dynamic section of `recipe` names no libtorch: the runner works where none is installed.
fn recipe_links_no_libtorch() -> Result<()> {
    let binary = binaries::target_dir().join("recipe");
    let bytes =
        std::fs::read(&binary).map_err(|e| format!("failed to read {}: {e}", binary.display()))?;
    for needle in ["libtorch_cpu.so", "libc10.so"] {
        if bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
            return Err(format!("{} refers to {needle}", binary.display()));
        }
    }
    Ok(())
}
