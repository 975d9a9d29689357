//! `cargo xtask bench`: the benchmark binary of the worker's side, built and run.

use std::process::{Command, ExitCode};

use crate::process::{Result, cargo, check};
use crate::{binaries, libtorch};

/// Passes `args` on; the benchmarks print JSON lines on standard output.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let torch = libtorch::ensure(false)?;
    binaries::build()?;
    check(
        cargo()
            .args([
                "build",
                "--release",
                "--quiet",
                "--workspace",
                "--example",
                "bench",
            ])
            .envs(torch.environment()),
    )?;
    let status = Command::new(binaries::target_dir().join("examples/bench"))
        .args(args)
        .envs(torch.environment())
        .status()
        .map_err(|e| format!("failed to start the benchmarks: {e}"))?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}
