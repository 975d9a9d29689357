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

    /// Runs `recipe` with these arguments, split at spaces, in the project's folder.
    pub fn recipe(&self, args: &str) -> Ran {
        run(self.0.path(), &args.split_whitespace().collect::<Vec<_>>())
    }
}

pub fn run(dir: &Path, args: &[&str]) -> Ran {
    let out = Command::new(env!("CARGO_BIN_EXE_recipe"))
        .args(args)
        .current_dir(dir)
        .env_remove("RUST_BACKTRACE")
        .env_remove("RECIPE_WORKER")
        .output()
        .unwrap();
    Ran {
        code: out.status.code().unwrap_or(-1),
        out: String::from_utf8(out.stdout).unwrap(),
        err: String::from_utf8(out.stderr).unwrap(),
    }
}
