//! `cargo xtask mesh`: the table of meshes against one process.

use std::process::ExitCode;

use crate::libtorch;
use crate::process::{Result, cargo, check};

/// Trains on the meshes whose names contain one of `names` (none: on all) and prints the table.
pub fn run(names: &[String]) -> Result<ExitCode> {
    let torch = libtorch::ensure(false)?;
    check(
        cargo()
            .args([
                "test",
                "--release",
                "--quiet",
                "--workspace",
                "--test",
                "mesh",
                "--",
            ])
            .args(names)
            .env("RECIPE_MESH_TABLE", "1")
            .envs(torch.environment()),
    )?;
    Ok(ExitCode::SUCCESS)
}
