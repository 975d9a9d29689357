//! Running other programs.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An error is a sentence for the person at the terminal.
pub type Result<T> = std::result::Result<T, String>;

/// The root of the checkout that this was built from.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask lies two levels below the root")
        .to_owned()
}

/// Cargo, as the one that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // Set by the outer `cargo run`; they would reach build scripts and change fingerprints.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    command
}

/// Runs to the end; an error says what was run and how it ended.
pub fn check(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    let status = command
        .status()
        .map_err(|e| format!("failed to start `{shown}`: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("`{shown}` ended with {status}"))
    }
}

/// Runs to the end and returns what it wrote to standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let out = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| format!("failed to start `{shown}`: {e}"))?;
    if !out.status.success() {
        return Err(format!("`{shown}` ended with {}", out.status));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args().take(8) {
        text.push(' ');
        text.push_str(arg.to_string_lossy().lines().next().unwrap_or(""));
    }
    text
}
