//! A scratch project and the binary in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What a command came to.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    /// Asserts the exit code; the message has everything that was printed.
    pub fn code(self, wanted: i32) -> Self {
        assert_eq!(
            self.code, wanted,
            "stdout:\n{}\nstderr:\n{}",
            self.out, self.err
        );
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {}", self.out))
    }
}

pub struct Project(TempDir);

impl Project {
    pub fn new(recipe: &str) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        project.write("recipe.toml", recipe);
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// `recipe` with these arguments, split at spaces, in the project's folder; not started.
    pub fn command(&self, args: &str) -> Command {
        command(self.0.path(), &args.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs `recipe` with these arguments, split at spaces, in the project's folder.
    pub fn recipe(&self, args: &str) -> Ran {
        run(self.0.path(), &args.split_whitespace().collect::<Vec<_>>())
    }
}

pub fn run(dir: &Path, args: &[&str]) -> Ran {
    ran(command(dir, args))
}

/// The same with a say in the command.
pub fn run_with(dir: &Path, args: &[&str], prepare: impl FnOnce(&mut Command)) -> Ran {
    let mut command = command(dir, args);
    prepare(&mut command);
    ran(command)
}

/// `recipe` with these arguments, not started. A script `worker` in the folder is its worker.
pub fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recipe"));
    command
        .args(args)
        .current_dir(dir)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RECIPE_WORKER");
    let worker = dir.join("worker");
    if worker.exists() {
        command.env("RECIPE_WORKER", worker);
    }
    command
}

/// Runs a command to its end.
pub fn ran(mut command: Command) -> Ran {
    let out = command.output().unwrap();
    Ran {
        code: out.status.code().unwrap_or(-1),
        out: String::from_utf8(out.stdout).unwrap(),
        err: String::from_utf8(out.stderr).unwrap(),
    }
}
