//! A scratch project with its own store.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub struct Project {
    pub dir: tempfile::TempDir,
}

/// What a run printed and came to.
pub struct Ran {
    pub code: i32,
    pub events: Vec<Value>,
    pub stderr: String,
}

impl Project {
    pub fn new(recipe: &str) -> Project {
        let project = Project {
            dir: tempfile::tempdir().unwrap(),
        };
        project.write("r.toml", recipe);
        project
    }

    /// With what `source.base` and `source.chat` of a recipe that trains are made of.
    pub fn training(recipe: &str) -> Project {
        let project = Project::new(recipe);
        std::fs::create_dir(project.path("base")).unwrap();
        project.write("base/config.json", "{}");
        project.write("chat.jsonl", "{\"messages\": []}\n");
        project
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Lines of a file that commands append to.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let mut lines: Vec<String> = self.read(name).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// The runner on this project, not yet started.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_in("store", args)
    }

    pub fn command_in(&self, store: &str, args: &[&str]) -> Command {
        let mut command = Command::new(example("drive"));
        command
            .arg("r.toml")
            .arg(self.path(store))
            .args(args)
            .current_dir(self.dir.path());
        command
            .env("DIR", self.dir.path())
            .env("RECIPE_WORKER", example("scripted_worker"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.command(args))
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    pub fn store(&self) -> cache::Store {
        cache::Store::open(self.path("store").to_str().unwrap()).unwrap()
    }

    /// The one file of a stage's output, as a run told its digest.
    pub fn output(&self, ran: &Ran, stage: &str, output: &str) -> String {
        let digest = ran.stage(stage)["outputs"][output]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        let manifest = self.store().manifest(&digest).unwrap();
        let bytes = self.store().get_bytes(&manifest.files[0].blob).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Waits until a file holds something.
    pub fn wait_for(&self, name: &str) {
        wait(|| !self.read(name).is_empty(), &format!("file '{name}'"));
    }
}

pub fn ran(mut command: Command) -> Ran {
    collect(command.spawn().unwrap())
}

pub fn collect(child: Child) -> Ran {
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let events = text
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect();
    Ran {
        code: out.status.code().unwrap_or(-1),
        events,
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

impl Ran {
    /// The outcome of a stage.
    pub fn stage(&self, name: &str) -> &Value {
        let outcome = self
            .events
            .last()
            .unwrap_or_else(|| panic!("no outcome; stderr: {}", self.stderr));
        outcome["stages"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["stage"] == name)
            .unwrap()
    }

    pub fn status(&self, name: &str) -> &str {
        self.stage(name)["status"].as_str().unwrap()
    }

    pub fn has(&self, event: &str) -> bool {
        self.events.iter().any(|e| e["event"] == event)
    }

    pub fn all(&self, event: &str) -> Vec<&Value> {
        self.events.iter().filter(|e| e["event"] == event).collect()
    }
}

/// Programs under examples/ are built with the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent()
        .and_then(Path::parent)
        .unwrap()
        .join("examples")
        .join(name)
}

pub fn wait(what: impl Fn() -> bool, name: &str) {
    let start = Instant::now();
    while !what() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "no {name} after a minute"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// True while a process lives (a zombie does not).
pub fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

pub fn signal(pid: u32, signal: i32) {
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
}
