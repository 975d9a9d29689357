//! Golden fixtures, made anew by `ci/fixtures/*.py` in an environment that pins the oracles.

use std::process::{Command, ExitCode};

use crate::process::{Result, check, root};

/// The oracles' versions. A change here is a change of what we are checked against.
const ORACLES: [&str; 7] = [
    "torch==2.11.0",
    "transformers==5.23.0",
    "trl==1.16.0",
    "tokenizers==0.23.3",
    "safetensors==0.8.0",
    "pyarrow==26.0.1",
    "numpy==2.4.6",
];

/// Runs the named scripts, or all; the environment lies in `target/oracle` and is reused.
pub fn run(names: &[String]) -> Result<ExitCode> {
    let venv = root().join("target/oracle");
    let python = venv.join("bin/python");
    if !python.exists() {
        check(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    check(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet"])
            .args(ORACLES),
    )?;
    let scripts = root().join("ci/fixtures");
    let mut known: Vec<String> = std::fs::read_dir(&scripts)
        .map_err(|e| format!("failed to list {}: {e}", scripts.display()))?
        .filter_map(|e| {
            e.ok()?
                .file_name()
                .into_string()
                .ok()?
                .strip_suffix(".py")
                .map(Into::into)
        })
        .collect();
    known.sort();
    if let Some(unknown) = names.iter().find(|n| !known.contains(n)) {
        return Err(format!(
            "no fixture script '{unknown}'; there are {}",
            known.join(", ")
        ));
    }
    for name in known
        .iter()
        .filter(|k| names.is_empty() || names.contains(k))
    {
        eprintln!("making fixtures: {name}");
        check(
            Command::new(&python)
                .arg(scripts.join(format!("{name}.py")))
                .current_dir(root()),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
