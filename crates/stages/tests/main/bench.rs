//! A scratch place with a store, and jobs run in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use cache::{Digest, Key, Link, Store};
use serde_json::{Value, json};
use spec::job::Provenance;
use spec::{ArtifactKind, Event, InputSpec, JobSpec, Resources, ResumeSpec};
use tempfile::TempDir;

pub const WORKER: &str = env!("CARGO_BIN_EXE_recipe-worker");

/// A scratch directory, removed at the end.
pub struct Bench {
    pub dir: TempDir,
}

/// How a worker ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub events: Vec<Event>,
    pub stderr: String,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn store(&self) -> Store {
        Store::open(self.path("store").to_str().unwrap()).unwrap()
    }

    /// JSON lines in a file.
    pub fn rows(&self, name: &str, rows: &[Value]) -> PathBuf {
        let path = self.path(name);
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(&path, lines).unwrap();
        path
    }

    /// A job of this kind, named `name`, with empty output directories.
    pub fn job(&self, kind: &str, name: &str, with: Value, inputs: &[(&str, &Path)]) -> JobSpec {
        let outputs = spec::kind(kind).unwrap().outputs.iter().map(|port| {
            let dir = self.path(&format!("{name}.{}", port.name));
            fs::create_dir_all(&dir).unwrap();
            (port.name.to_string(), dir)
        });
        let mut given: BTreeMap<String, Vec<InputSpec>> = BTreeMap::new();
        for (input, path) in inputs {
            given
                .entry((*input).to_string())
                .or_default()
                .push(InputSpec {
                    path: path.to_path_buf(),
                    digest: Digest::of(input.as_bytes()).to_string(),
                    artifact: ArtifactKind::Files,
                    source: format!("source.{input}"),
                });
        }
        let scratch = self.path(&format!("{name}.scratch"));
        fs::create_dir_all(&scratch).unwrap();
        JobSpec {
            version: spec::job::VERSION,
            kind: kind.into(),
            stage: name.into(),
            key: Digest::of(name.as_bytes()).to_string(),
            attempt: 1,
            with,
            inputs: given,
            outputs: outputs.collect(),
            resources: Resources {
                threads: 1,
                microbatch_tokens: 512,
                ..Resources::default()
            },
            checkpoint: spec::Checkpoint {
                every: 0,
                ..Default::default()
            },
            watch: Vec::new(),
            resume: None,
            store: self.path("store").to_str().unwrap().into(),
            device: "cpu".into(),
            scratch,
            profile: None,
            provenance: Provenance::default(),
        }
    }

    fn command(&self, job: &JobSpec) -> Command {
        let file = job.scratch.join("job.json");
        fs::write(&file, serde_json::to_vec(job).unwrap()).unwrap();
        let mut command = Command::new(WORKER);
        command.arg("run").arg("--job").arg(file);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a job of one rank to its end.
    pub fn run(&self, job: &JobSpec) -> Ended {
        let output = self.command(job).output().unwrap();
        Ended {
            code: output.status.code(),
            events: events(&String::from_utf8(output.stdout).unwrap()),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs a job that must succeed; returns the directory of its only (or first) output.
    pub fn ok(&self, job: &JobSpec) -> PathBuf {
        let ended = self.run(job);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(
            matches!(ended.events.last(), Some(Event::Finished { .. })),
            "{:?}",
            ended.events
        );
        job.outputs.values().next_back().unwrap().clone()
    }

    /// Starts a job on `job.resources.ranks` ranks.
    fn start(&self, job: &JobSpec) -> Vec<Child> {
        let port = parallel::free_port().unwrap();
        let size = job.resources.ranks;
        (0..size)
            .map(|rank| {
                let mut command = self.command(job);
                command
                    .env("RANK", rank.to_string())
                    .env("LOCAL_RANK", rank.to_string());
                command
                    .env("WORLD_SIZE", size.to_string())
                    .env("MASTER_ADDR", "127.0.0.1");
                command
                    .env("MASTER_PORT", port.to_string())
                    .spawn()
                    .unwrap()
            })
            .collect()
    }

    /// Runs a job on `job.resources.ranks` ranks; the ends in rank order.
    pub fn gang(&self, job: &JobSpec) -> Vec<Ended> {
        self.start(job)
            .into_iter()
            .map(|rank| {
                let output = rank.wait_with_output().unwrap();
                Ended {
                    code: output.status.code(),
                    events: events(&String::from_utf8(output.stdout).unwrap()),
                    stderr: String::from_utf8(output.stderr).unwrap(),
                }
            })
            .collect()
    }

    /// Starts a job on its ranks and kills all of them once the first has reported metrics of
    /// `step`.
    pub fn kill_gang(&self, job: &JobSpec, step: u64) {
        let mut ranks = self.start(job);
        let lines = BufReader::new(ranks[0].stdout.take().unwrap()).lines();
        for line in lines {
            let event: Event = serde_json::from_str(&line.unwrap()).unwrap();
            if matches!(&event, Event::Metrics { step: s, .. } if *s >= step) {
                break;
            }
        }
        for rank in &mut ranks {
            rank.kill().unwrap();
        }
        for rank in &mut ranks {
            rank.wait().unwrap();
        }
    }

    /// Starts a job and sends `signal` once it has reported metrics of `step`.
    pub fn interrupt(&self, job: &JobSpec, step: u64, signal: i32) -> Ended {
        let mut child = self.command(job).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = Vec::new();
        for line in lines.by_ref() {
            let event: Event = serde_json::from_str(&line.unwrap()).unwrap();
            let reached = matches!(&event, Event::Metrics { step: s, .. } if *s >= step);
            seen.push(event);
            if reached {
                // SAFETY: signals a child that was not waited for yet
                unsafe { libc::kill(child.id() as i32, signal) };
                break;
            }
        }
        seen.extend(lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()));
        let output = child.wait_with_output().unwrap();
        Ended {
            code: output.status.code(),
            events: seen,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The job, going on from its newest checkpoint as the runner would have it, with fresh outputs.
    pub fn resumed(&self, job: &JobSpec) -> JobSpec {
        let store = self.store();
        let key: Key = job.key.parse().unwrap();
        let newest = store
            .newest_checkpoint(&key)
            .unwrap()
            .expect("a checkpoint");
        let path = self.path(&format!("{}.resume{}", job.stage, newest.step));
        let _ = fs::remove_dir_all(&path);
        store
            .materialize(&newest.manifest, &path, Link::Reflink)
            .unwrap();
        for dir in job.outputs.values() {
            fs::remove_dir_all(dir).unwrap();
            fs::create_dir_all(dir).unwrap();
        }
        JobSpec {
            attempt: job.attempt + 1,
            resume: Some(ResumeSpec {
                step: newest.step,
                path,
            }),
            ..job.clone()
        }
    }

    /// A tiny model that knows `=+*-?` and digits, or whatever `with` asks for.
    pub fn tiny(&self, name: &str, changes: Value) -> PathBuf {
        let mut with = json!({
            "family": "qwen3", "hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1,
            "intermediate_size": 64, "tokenizer": "char", "alphabet": "0123456789+-*=? ",
            "max_positions": 64, "seed": 3,
        });
        for (field, value) in changes.as_object().unwrap() {
            with[field] = value.clone();
        }
        self.ok(&self.job("init", name, with, &[]))
    }
}

impl Ended {
    /// Metrics of the last step that has any.
    pub fn last(&self) -> &BTreeMap<String, f64> {
        let mut metrics = self.events.iter().filter_map(|event| match event {
            Event::Metrics { metrics, .. } => Some(metrics),
            _ => None,
        });
        metrics.next_back().expect("metrics")
    }

    /// One metric by step; step 0 (before training) left out.
    pub fn series(&self, name: &str) -> Vec<f64> {
        let values = self.events.iter().filter_map(|event| match event {
            Event::Metrics { step, metrics } if *step > 0 => metrics.get(name).copied(),
            _ => None,
        });
        values.collect()
    }

    /// The metrics that the stage finished with.
    pub fn finished(&self) -> &BTreeMap<String, f64> {
        match self.events.last() {
            Some(Event::Finished { metrics }) => metrics,
            other => panic!("not finished: {other:?}\n{}", self.stderr),
        }
    }
}

fn events(text: &str) -> Vec<Event> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// The digest of a directory, as the store would have it.
pub fn digest(dir: &Path) -> String {
    let store = tempfile::tempdir().unwrap();
    let store = Store::open(store.path().to_str().unwrap()).unwrap();
    store.hash_tree(dir).unwrap().0.to_string()
}

/// The rows of a JSON lines file.
pub fn read_rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Sums to train on: `a+b=` and the answer.
pub fn sums(count: u64) -> Vec<Value> {
    (0..count)
        .map(|i| {
            let (a, b) = (i % 10, i / 10 % 10);
            json!({
                "messages": [
                    { "role": "user", "content": format!("{a}+{b}=") },
                    { "role": "assistant", "content": (a + b).to_string() },
                ]
            })
        })
        .collect()
}

/// Pairs that prefer the right sum.
pub fn preferences(count: u64) -> Vec<Value> {
    (0..count)
        .map(|i| {
            let (a, b) = (i * 7 % 10, i * 3 % 10);
            json!({
                "prompt": [{ "role": "user", "content": format!("{a}+{b}=") }],
                "chosen": [{ "role": "assistant", "content": (a + b).to_string() }],
                "rejected": [{ "role": "assistant", "content": format!("{}??", a * b) }],
            })
        })
        .collect()
}
