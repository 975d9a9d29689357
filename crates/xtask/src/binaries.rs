//! Building the two binaries and handing over to `recipe`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::libtorch;
use crate::process::{Result, cargo, check, root};

/// Fetches libtorch if needed, builds both binaries, and returns their directory.
pub fn build() -> Result<PathBuf> {
    let torch = libtorch::ensure(false)?;
    let mut command = cargo();
    command.args(["build", "--release", "--workspace", "--bins", "--quiet"]);
    let target = target_dir();
    if !target.join("recipe-worker").exists() {
        eprintln!("building recipe and recipe-worker; the first build takes some minutes");
    }
    check(command.envs(torch.environment()))?;
    Ok(target)
}

/// `cargo recipe ARGS..`: in the caller's folder, with the caller's terminal, and its exit code.
pub fn recipe(args: &[String]) -> Result<ExitCode> {
    let binary = build()?.join("recipe");
    let mut command = Command::new(&binary);
    // Variables of the outer `cargo run` are no part of the user's environment.
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CARGO_") && key != "CARGO_HOME" {
            command.env_remove(&key);
        }
    }
    let error = command.args(args).exec();
    Err(format!("failed to start {}: {error}", binary.display()))
}

/// Where cargo puts release binaries.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |dir| root().join(dir))
        .join("release")
}
