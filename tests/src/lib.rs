//! A scratch project that the real `recipe` binary is driven in.

pub mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A folder with a recipe, its data and its store, gone when dropped.
pub struct Project {
    dir: tempfile::TempDir,
}

/// How one command ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// This, if the exit code is `code`.
    ///
    /// # Panics
    /// With all that was printed, if not.
    #[track_caller]
    pub fn expect(self, code: i32) -> Ended {
        assert_eq!(
            self.code, code,
            "exit code\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout, self.stderr
        );
        self
    }
}

/// The folder that cargo put the binaries in.
pub fn bin(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the test binary has a path");
    let release = exe
        .ancestors()
        .nth(2)
        .expect("tests run from target/release/deps");
    let path = release.join(name);
    assert!(
        path.exists(),
        "{} is not built: run `cargo xtask build`",
        path.display()
    );
    path
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_owned()
}

impl Project {
    /// An empty project. A `recipe.lock` in it makes it a project root of its own.
    pub fn empty() -> Project {
        Project {
            dir: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// A project with `recipe.toml`.
    pub fn new(recipe: &str) -> Project {
        let project = Project::empty();
        project.write("recipe.toml", recipe);
        project
    }

    /// A project with a copy of `recipes/ci/<name>.toml` as `recipe.toml`, and its data.
    pub fn of(name: &str) -> Project {
        let project = Project::empty();
        let ci = root().join("recipes/ci");
        let text = fs::read_to_string(ci.join(format!("{name}.toml"))).expect("a shipped recipe");
        project.write("recipe.toml", &text);
        for entry in fs::read_dir(ci).expect("recipes/ci").flatten() {
            if entry
                .path()
                .extension()
                .is_some_and(|e| e != "toml" && e != "lock")
            {
                let to = project.path(&entry.file_name().to_string_lossy());
                fs::copy(entry.path(), to).expect("a copy of the recipe's data");
            }
        }
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the project")).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("a file of the project")
    }

    /// Replaces `from`, which must stand in the file, by `to`.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = self.read(name);
        assert!(text.contains(from), "'{from}' stands in {name}");
        self.write(name, &text.replace(from, to));
    }

    /// `recipe ARGS` in the project, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(bin("recipe"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs `recipe ARGS` to the end.
    pub fn recipe(&self, args: &[&str]) -> Ended {
        let out = self.command(args).output().expect("recipe starts");
        Ended {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }

    /// Starts `recipe ARGS`; what it prints is lost.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("recipe starts")
    }

    /// Runs `recipe ARGS --json` to the end and parses what it printed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let out = self.recipe(&all).expect(0);
        serde_json::from_str(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", out.stdout))
    }

    /// The metrics lines of a stage in the last run.
    #[track_caller]
    pub fn metrics(&self, stage: &str) -> Vec<Value> {
        let out = self.recipe(&["show", "last", "--metrics", stage]).expect(0);
        out.stdout
            .lines()
            .map(|l| serde_json::from_str(l).expect("a JSON line"))
            .collect()
    }
}

/// Waits until `ready` gives something, at most a minute.
#[track_caller]
pub fn wait_for<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no {what} within a minute"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose environment or command line mentions `needle`.
pub fn processes(needle: &str) -> Vec<i32> {
    let mentions = |pid: &str| {
        ["cmdline", "environ"].iter().any(|file| {
            fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|b| String::from_utf8_lossy(&b).contains(needle))
        })
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|b| b.is_ascii_digit()) && mentions(pid))
        .filter_map(|pid| pid.parse().ok())
        .filter(|&pid| pid != std::process::id() as i32)
        .collect()
}

/// Sends SIGKILL.
pub fn kill(pid: i32) {
    // SAFETY: plain kill(2).
    unsafe { libc::kill(pid, libc::SIGKILL) };
}
