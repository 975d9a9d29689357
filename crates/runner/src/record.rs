//! The run record, one subscriber of the run's events.
//!
//! | below `runs/<id>/` | what |
//! |---|---|
//! | `record.json` | what ran, how it was asked for, each stage's outcome; replaced as stages end, so a crash leaves the last state |
//! | `recipe.json` | the recipe's files and `-S` settings as they were read, and its sources with their digests |
//! | `events.jsonl` | every [`Report`] with its time, appended as it happens |
//! | `metrics.jsonl` | `{"stage", "attempt", "step", "metrics"}` per step |
//! | `logs/<stage>-<attempt>.log` | what the attempt's processes printed, rank 0; other ranks beside it |
//! | `trace/<stage>-<attempt>.rank<r>.json` | what a rank was seen to do in the steps of `--profile-steps` |
//! | `sources/<digest>.json` | what a source held when a stage read it: files, and hashes of rows (content.rs) |
//! | `guard.log` | what the guard had to kill, if anything |
//!
//! In a local store these files are written in place. For a remote store they are written to a directory of this
//! machine and sent now and then, and at the end.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cache::{Cost, Store};
use serde::Serialize;
use serde_json::{Map, json};
use spec::Plan;

use crate::clock;
use crate::error::Error;
use crate::meter::{Energy, Meter};
use crate::options::Options;
use crate::outcome::{self, StageOutcome};
use crate::report::{Report, Reporter};
use crate::source::{Sources, write_atomic};
use crate::traces;

const VERSION: u32 = 1;
/// At most this often `record.json` is replaced, and files are sent to a remote store.
const EVERY: Duration = Duration::from_secs(2);
const SEND_EVERY: Duration = Duration::from_secs(30);

#[derive(Serialize)]
struct Record<'a> {
    version: u32,
    id: &'a str,
    recipe: &'a str,
    file: String,
    command: &'a [String],
    store: &'a str,
    owner: String,
    started: &'a str,
    /// `running` until the run ends; a record that stays so belongs to a run that was killed.
    state: &'a str,
    finished: Option<String>,
    exit_code: Option<u8>,
    seconds: f64,
    spent: Cost,
    energy: Energy,
    stages: &'a [StageOutcome],
}

pub struct Recorder<'a> {
    pub id: String,
    plan: &'a Plan,
    options: &'a Options,
    store: Store,
    dir: PathBuf,
    /// Holds `dir` when the store is remote.
    remote: Option<tempfile::TempDir>,
    events: BufWriter<File>,
    stamps: clock::Stamps,
    metrics: Option<BufWriter<File>>,
    pub started: String,
    /// When the run began.
    clock: Instant,
    written: Option<Instant>,
    sent: Instant,
    /// Size and time of traces as they were sent: they are large, and written once.
    traces: HashMap<PathBuf, (u64, SystemTime)>,
    /// The first failure to write, told once at the end.
    failure: Option<Error>,
}

impl<'a> Recorder<'a> {
    pub fn start(
        plan: &'a Plan,
        options: &'a Options,
        store: &Store,
        clock: Instant,
    ) -> Result<Recorder<'a>, Error> {
        let id = clock::run_id();
        let (dir, remote) = match store.run_path(&id, "events.jsonl")? {
            Some(path) => (path.parent().map(Path::to_owned).unwrap_or_default(), None),
            None => {
                let dir = tempfile::tempdir().map_err(|source| Error::System {
                    what: "cannot make a temporary directory",
                    source,
                })?;
                (dir.path().to_owned(), Some(dir))
            }
        };
        let events = append(&dir.join("events.jsonl"))?;
        Ok(Recorder {
            id,
            plan,
            options,
            store: store.clone(),
            dir,
            remote,
            events,
            stamps: clock::Stamps::default(),
            metrics: None,
            started: clock::now(),
            clock,
            written: None,
            sent: Instant::now(),
            traces: HashMap::new(),
            failure: None,
        })
    }

    /// The run's directory on this machine.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn seconds(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }

    /// Writes what the run was asked: the recipe's text, and what its sources were found to be.
    pub fn asked(&mut self, sources: &Sources) {
        let recipe = &self.plan.recipe;
        let files = recipe.texts();
        let files = files.map(|(name, text)| json!({ "name": name, "text": text }));
        let sources = sources.known().map(|(name, known)| {
            let from = recipe.sources[name].from.told();
            let digest = known.digest.hex();
            (name.to_owned(), json!({ "from": from, "digest": digest }))
        });
        let asked = json!({
            "version": VERSION,
            "files": files.collect::<Vec<_>>(),
            "settings": recipe.settings().collect::<Vec<_>>(),
            "sources": sources.collect::<Map<_, _>>(),
        });
        if let Err(e) = write_atomic(&self.dir.join("recipe.json"), asked.to_string().as_bytes()) {
            self.failure.get_or_insert(e);
        }
    }

    /// Replaces `record.json` if it is time to.
    pub fn update(&mut self, stages: &[StageOutcome], meter: &Meter) {
        if self.written.is_none_or(|at| at.elapsed() > EVERY) {
            self.write(stages, meter, None);
        }
        if self.remote.is_some() && self.sent.elapsed() > SEND_EVERY {
            self.sent = Instant::now();
            self.send();
        }
    }

    /// Writes the final record of a run that took `seconds`. Tells what of the record could not be written.
    pub fn finish(
        mut self,
        stages: &[StageOutcome],
        meter: &Meter,
        exit_code: u8,
        seconds: f64,
    ) -> Result<(), Error> {
        self.write(stages, meter, Some((exit_code, seconds)));
        let flushed = self
            .events
            .flush()
            .and_then(|()| self.metrics.as_mut().map_or(Ok(()), |m| m.flush()));
        self.note(flushed, "events.jsonl");
        self.send();
        if let Err(e) = self.store.seal_run(&self.id, &self.dir) {
            self.failure.get_or_insert(e.into());
        }
        self.failure.map_or(Ok(()), Err)
    }

    /// `ended`: exit code and seconds of a run that has.
    fn write(&mut self, stages: &[StageOutcome], meter: &Meter, ended: Option<(u8, f64)>) {
        self.written = Some(Instant::now());
        let record = Record {
            version: VERSION,
            id: &self.id,
            recipe: &self.plan.recipe.name,
            file: self.plan.recipe.file.display().to_string(),
            command: &self.options.command_line,
            store: self.store.url(),
            owner: crate::machine::owner(&self.id),
            started: &self.started,
            state: if ended.is_some() {
                "finished"
            } else {
                "running"
            },
            finished: ended.map(|_| clock::now()),
            exit_code: ended.map(|(code, _)| code),
            seconds: ended.map_or_else(|| self.seconds(), |(_, seconds)| seconds),
            spent: outcome::spent(stages),
            energy: meter.energy(),
            stages,
        };
        let bytes = serde_json::to_vec(&record).unwrap_or_default();
        if let Err(e) = write_atomic(&self.dir.join("record.json"), &bytes) {
            self.failure.get_or_insert(e);
        }
    }

    /// Copies the record's files to a remote store.
    fn send(&mut self) {
        if self.remote.is_none() {
            return;
        }
        let flushed = self.events.flush();
        self.note(flushed, "events.jsonl");
        for entry in walkdir::WalkDir::new(&self.dir)
            .into_iter()
            .flatten()
            .filter(|e| e.file_type().is_file())
        {
            let Ok(name) = entry.path().strip_prefix(&self.dir) else {
                continue;
            };
            let stamp = || {
                let meta = entry.metadata().ok()?;
                Some((meta.len(), meta.modified().ok()?))
            };
            let stamp = stamp().filter(|_| name.starts_with(traces::FOLDER));
            if stamp.is_some() && self.traces.get(name) == stamp.as_ref() {
                continue;
            }
            let sent = match std::fs::read(entry.path()) {
                Ok(bytes) => self
                    .store
                    .put_run(&self.id, &name.to_string_lossy(), &bytes)
                    .map_err(Error::from),
                Err(source) => Err(Error::Io {
                    what: "cannot read",
                    path: entry.path().to_owned(),
                    source,
                }),
            };
            match (sent, stamp) {
                (Ok(()), Some(stamp)) => {
                    self.traces.insert(name.to_owned(), stamp);
                }
                (Ok(()), None) => {}
                (Err(e), _) => {
                    self.failure.get_or_insert(e);
                }
            }
        }
    }

    fn note(&mut self, result: std::io::Result<()>, name: &str) {
        if let Err(source) = result {
            let path = self.dir.join(name);
            self.failure.get_or_insert(Error::Io {
                what: "cannot write",
                path,
                source,
            });
        }
    }
}

#[derive(Serialize)]
struct Timed<'a> {
    time: &'a str,
    #[serde(flatten)]
    report: &'a Report,
}

/// What a line of `events.jsonl` says, and when (seconds since 1970); none where the line was cut
/// short or is another version's.
pub fn event(line: &[u8]) -> Option<(f64, Report)> {
    #[derive(serde::Deserialize)]
    struct Line {
        time: String,
        #[serde(flatten)]
        report: Report,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    Some((clock::seconds(&line.time)?, line.report))
}

#[derive(Serialize)]
struct Step<'a> {
    stage: &'a str,
    attempt: u32,
    step: u64,
    metrics: &'a std::collections::BTreeMap<String, f64>,
}

impl Reporter for Recorder<'_> {
    fn report(&mut self, report: &Report) {
        let time = self.stamps.now();
        let mut written = serde_json::to_writer(&mut self.events, &Timed { time, report })
            .map_err(std::io::Error::from)
            .and_then(|()| self.events.write_all(b"\n"));
        // Reused stages come in thousands at once; everything else is rare, and wanted on disk should the run be killed.
        let quiet = matches!(
            report,
            Report::StageFinished {
                status: crate::Status::Reused,
                ..
            }
        );
        if !quiet && written.is_ok() {
            written = self.events.flush();
        }
        self.note(written, "events.jsonl");
        // Another machine that goes on from a checkpoint finds the metrics of the steps before it here.
        if matches!(report, Report::Checkpoint { .. }) && self.remote.is_some() {
            self.sent = Instant::now();
            self.send();
        }
        if let Report::Metrics {
            stage,
            attempt,
            step,
            metrics,
        } = report
        {
            if self.metrics.is_none() {
                match append(&self.dir.join("metrics.jsonl")) {
                    Ok(file) => self.metrics = Some(file),
                    Err(e) => {
                        self.failure.get_or_insert(e);
                    }
                }
            }
            if let Some(file) = &mut self.metrics {
                let mut line = serde_json::to_vec(&Step {
                    stage,
                    attempt: *attempt,
                    step: *step,
                    metrics,
                })
                .unwrap_or_default();
                line.push(b'\n');
                let written = file.write_all(&line).and_then(|()| file.flush());
                self.note(written, "metrics.jsonl");
            }
        }
    }
}

fn append(path: &Path) -> Result<BufWriter<File>, Error> {
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|source| Error::Io {
            what: "cannot open",
            path: path.to_owned(),
            source,
        })?;
    // thousands of reused stages are told at once
    Ok(BufWriter::with_capacity(1 << 16, file))
}
