//! One stage on its way to a result: claim, compute, publish; again where a retry may help.

mod acquire;
mod begin;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use acquire::Acquired;
use cache::{Claim, Cost, Keep, Published, ResultRecord, Store};
use serde_json::{Map, Value, json};
use spec::Event;
use spec::assertion::Steps;
use spec::job::StepRange;

use crate::cancel::{Cancel, Stop};
use crate::curves;
use crate::emitted::{Emitted, Telling};
use crate::error::{AttemptError, Class, Error};
use crate::events::Events;
use crate::fault::{self, Ask};
use crate::gang::{self, Ending, Limits};
use crate::going_on::{GoesOn, Kin};
use crate::guard::Guard;
use crate::job::{self, Inputs, Layout};
use crate::launch::{Gang, LAUNCHERS};
use crate::machine;
use crate::meter::Meter;
use crate::options::Resume;
use crate::outcome::ChosenCell;
use crate::report::Report;
use crate::scratch::Scratch;
use crate::session::Keyed;
use crate::source::Access;
use crate::space;
use crate::tail::tail;
use crate::traces;

/// What all attempts of a run share.
pub struct Shared {
    pub store: Store,
    pub run: String,
    pub recipe: String,
    /// The run record's directory on this machine.
    pub run_dir: PathBuf,
    pub cancel: Cancel,
    pub grace: Duration,
    pub resume: Resume,
    /// Kill each stage's processes once, after its first checkpoint.
    pub interrupt: bool,
    /// Steps of which training stages write a trace.
    pub profile: Option<StepRange>,
    pub access: Access,
    pub worker: Option<PathBuf>,
    /// Program and arguments that become the guard.
    pub guard: (PathBuf, Vec<String>),
    /// Started with the first attempt; ends with the run.
    pub guarding: Mutex<Option<Arc<Guard>>>,
    pub scratch: Mutex<Option<Arc<Scratch>>>,
    pub meter: Meter,
}

impl Shared {
    fn guard(&self) -> Result<Arc<Guard>, Error> {
        let mut slot = self.guarding.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(guard) = &*slot {
            return Ok(guard.clone());
        }
        let guard = Arc::new(Guard::start(
            &self.guard.0,
            &self.guard.1,
            &self.run_dir.join("guard.log"),
        )?);
        Ok(slot.insert(guard).clone())
    }

    fn scratch(&self) -> Result<Arc<Scratch>, Error> {
        let mut slot = self.scratch.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(scratch) = &*slot {
            return Ok(scratch.clone());
        }
        Ok(slot
            .insert(Arc::new(Scratch::open(&self.store, &self.run)?))
            .clone())
    }
}

/// Why the stage is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    First,
    Forced,
    /// The artifacts of this attempt's result cannot be served.
    Repair(u32),
}

/// A stage to compute.
pub struct Job {
    pub index: usize,
    pub stage: Arc<spec::Stage>,
    pub keyed: Keyed,
    pub start: Start,
    /// Stages of the same training, whose checkpoints it may go on from.
    pub kin: Vec<Kin>,
    pub inputs: Inputs,
    /// The cells that inputs which choose among cells were taken from.
    pub chosen: Vec<ChosenCell>,
    pub device: &'static str,
    pub gpus: Vec<String>,
}

/// What an attempt thread tells the main loop.
pub enum Note {
    Report(Report),
    Ended {
        index: usize,
        attempt: Option<u32>,
        /// What its attempts took, also those that failed.
        spent: Cost,
        end: End,
    },
}

/// How a stage ended.
pub enum End {
    Ran(Box<ResultRecord>),
    /// Another runner published it first.
    Adopted(Box<ResultRecord>),
    Failed(AttemptError),
    Stopped {
        checkpoint: bool,
    },
}

/// Brings a stage to its end and tells the main loop. Runs on a thread of its own.
pub fn run(job: Job, shared: &Shared, tell: &Sender<Note>) {
    let start = Instant::now();
    let mut attempt = None;
    let mut spent = Cost::default();
    let end = Runner {
        job: &job,
        shared,
        tell,
        start,
        attempt: &mut attempt,
        spent: &mut spent,
        forced_from: None,
        tried: Vec::new(),
        before: Cost::default(),
        continued: None,
        interrupt: shared.interrupt,
    }
    .run();
    let end = end.unwrap_or_else(End::Failed);
    spent.seconds = start.elapsed().as_secs_f64();
    let _ = tell.send(Note::Ended {
        index: job.index,
        attempt,
        spent,
        end,
    });
}

struct Runner<'a> {
    job: &'a Job,
    shared: &'a Shared,
    tell: &'a Sender<Note>,
    start: Instant,
    /// The last attempt that was claimed.
    attempt: &'a mut Option<u32>,
    /// What its attempts took so far, but for wall-clock time.
    spent: &'a mut Cost,
    /// A forced stage takes no checkpoint from before it was forced.
    forced_from: Option<u32>,
    /// Metrics of the steps of this stage's attempts in this run that came to no result.
    tried: Vec<(u32, Steps)>,
    /// What the stage took in other runs, which the last attempt went on from.
    before: Cost,
    /// The other stage's or run's checkpoint that the last attempt went on from.
    continued: Option<GoesOn>,
    /// The processes are to be killed after the next checkpoint.
    interrupt: bool,
}

/// What one attempt came to.
enum Tried {
    /// With its outputs in the store, safe from collection until it is published.
    Result(Box<ResultRecord>, Keep),
    Failed(AttemptError),
    Stopped {
        checkpoint: bool,
    },
    Fenced,
    /// Killed on purpose.
    Interrupted,
}

impl Runner<'_> {
    fn run(&mut self) -> Result<End, AttemptError> {
        let retry = &self.job.stage.placement.retry;
        let mut retries = 0;
        loop {
            let claim = match self.acquire()? {
                Acquired::Claim(claim) => claim,
                Acquired::Done { attempt, record } => {
                    *self.attempt = Some(attempt);
                    return Ok(End::Adopted(record));
                }
                Acquired::Stopped => return Ok(End::Stopped { checkpoint: true }),
            };
            *self.attempt = Some(claim.attempt);
            fault::at("claimed");
            let attempt = claim.attempt;
            let log = self.log(attempt)?;
            self.report(Report::AttemptStarted {
                stage: self.name(),
                attempt,
                key: claim.key.hex(),
                reason: claim.reason.as_str().into(),
                log: log.display().to_string(),
            });
            let tried = self
                .attempt(&claim, &log)
                .unwrap_or_else(|e| Tried::Failed(e.into()));
            match tried {
                Tried::Result(record, _keep) => match self.shared.store.publish(&claim, &record)? {
                    Published::Published => {
                        fault::at("published");
                        return Ok(End::Ran(record));
                    }
                    Published::Other { record } => return Ok(End::Adopted(record)),
                    Published::Sealed { why } => {
                        self.warn(format!("attempt {attempt} was taken over ({why})"))
                    }
                },
                Tried::Interrupted => {
                    self.shared.store.abandon(claim, "killed on purpose")?;
                }
                Tried::Fenced => self.warn(format!(
                    "attempt {attempt} was taken over by another runner"
                )),
                Tried::Stopped { checkpoint } => {
                    self.shared.store.abandon(claim, "stopped on request")?;
                    return Ok(End::Stopped { checkpoint });
                }
                Tried::Failed(error) => {
                    self.shared.store.abandon(claim, &error.message)?;
                    let may = error
                        .class
                        .retried_as()
                        .is_some_and(|c| retry.on.contains(&c));
                    let again =
                        may && retries < retry.max && self.shared.cancel.level() == Stop::No;
                    self.report(Report::AttemptFailed {
                        stage: self.name(),
                        attempt,
                        tail: tail(&log),
                        log: log.display().to_string(),
                        retry: again,
                        error: error.clone(),
                    });
                    if !again {
                        return Ok(End::Failed(error));
                    }
                    retries += 1;
                    self.pause(Duration::from_millis(500 << retries.min(6)));
                }
            }
        }
    }

    /// Computes the stage once under a claim.
    fn attempt(&mut self, claim: &Claim, log: &Path) -> Result<Tried, Error> {
        let (job, shared) = (self.job, self.shared);
        let (stage, store) = (&*job.stage, &shared.store);
        let heart = store.heart(claim);
        let guard = shared.guard()?;
        let begun = crate::clock::now();
        let scratch = shared.scratch()?.attempt(&stage.name, claim.attempt)?;
        let layout = Layout {
            root: &scratch.path,
        };
        let paths = job::provide(&job.inputs, &layout, store, shared.access)?;
        self.keep_contents(&paths);
        fault::at("provided");
        let (mut numerics, mut steps) = (Vec::new(), Steps::default());
        let gang_name = format!("{}-{}-{}", shared.run, stage.name, claim.attempt);
        let spec = if stage.kind.trainer {
            let program = shared
                .worker
                .as_deref()
                .unwrap_or(Path::new("recipe-worker"));
            let mut resources = stage.placement.resources.clone();
            if resources.threads == 0 {
                resources.threads = machine::threads_per_rank(resources.ranks as usize) as u32;
            }
            let resume = self.resume(claim, &layout, &mut numerics, &mut steps)?;
            let worker = job::Worker {
                program,
                stage,
                key: claim.key.hex(),
                attempt: claim.attempt,
                resources,
                device: job.device,
                gpus: &job.gpus,
                resume,
                profile: shared.profile.filter(|_| stage.kind.checkpoints),
                store,
                recipe: &shared.recipe,
                run: &shared.run,
            };
            job::worker_gang(
                worker,
                &job.inputs,
                paths,
                &layout,
                gang_name,
                log.to_owned(),
            )?
        } else {
            job::command_gang(stage, &paths, &layout, gang_name, log.to_owned())?
        };
        let limits = Limits {
            cancel: shared.cancel.clone(),
            deadline: stage.placement.timeout.map(|t| Instant::now() + t),
            grace: shared.grace,
            fenced: heart.flag(),
            checkpoints: stage.kind.checkpoints,
            events: spec.events,
        };
        let ranks = spec.ranks;
        let (name, launcher) = LAUNCHERS[0];
        let calibration = self.calibrate();
        let mut emitted = Emitted::new(&scratch.path);
        let energy = shared.meter.read(&job.gpus);
        let launched = Instant::now();
        let mut gang: Box<dyn Gang + '_> = launcher(guard).launch(spec)?;
        if !stage.kind.trainer {
            gang = Box::new(Telling::new(gang, &mut emitted));
        }
        let mut events = Events::new(stage, self.tell, claim.attempt, numerics, steps, name);
        if fault::at("launched") == Ask::KillGang {
            gang.signal(libc::SIGKILL);
        }
        let mut interrupted = false;
        let end = gang::drive(gang.as_mut(), ranks, &limits, &mut |rank, event| {
            let checkpoint = matches!(event, Event::Checkpoint { .. });
            if checkpoint && std::mem::take(&mut self.interrupt) {
                interrupted = true;
                events.take(rank, event);
                return Ask::KillGang;
            }
            let ask = match &event {
                Event::Started { .. } => fault::at("worker-started"),
                Event::Metrics { .. } => fault::at("worker-step"),
                Event::Checkpoint { .. } => fault::at("worker-checkpoint"),
                Event::Finished { .. } => fault::at("worker-finished"),
                _ => Ask::Nothing,
            };
            events.take(rank, event);
            ask
        });
        fault::at("ended");
        drop(gang);
        if let Err(e) = traces::keep(&layout, &shared.run_dir, &stage.name, claim.attempt) {
            self.warn(format!("its trace is lost: {e}"));
        }
        let told = emitted.rest();
        if let Ok((rest, summary)) = &told {
            for event in rest {
                events.take(0, event.clone());
            }
            if !stage.kind.trainer {
                events.take(
                    0,
                    Event::Finished {
                        metrics: summary.clone(),
                    },
                );
            }
        }
        let cpu_seconds = end.cpu_seconds;
        let (cpu_joules, gpu_joules) = shared.meter.since(&energy, &job.gpus, cpu_seconds);
        *self.spent += Cost {
            seconds: 0.0,
            gpu_seconds: launched.elapsed().as_secs_f64() * job.gpus.len() as f64,
            cpu_seconds,
            cpu_joules,
            gpu_joules,
        };
        let Events {
            numerics,
            metrics,
            steps,
            ..
        } = events;
        if !matches!(end.ending, Ending::Done) {
            self.tried.push((claim.attempt, steps.clone()));
        }
        if end.swept > 0 {
            self.warn(format!(
                "{} process(es) that outlived the stage were killed",
                end.swept
            ));
        }
        match end.ending {
            Ending::Done => {}
            Ending::Fenced => return Ok(Tried::Fenced),
            Ending::Failed(_) if interrupted => return Ok(Tried::Interrupted),
            Ending::Failed(error) => {
                return Ok(Tried::Failed(space::blame(error, &scratch.path)));
            }
            Ending::Stopped { checkpoint } => return Ok(Tried::Stopped { checkpoint }),
        }
        if let Err(error) = told {
            return Ok(Tried::Failed(error));
        }
        for (name, source) in job
            .inputs
            .values()
            .flatten()
            .filter_map(|i| i.source.as_ref())
        {
            source.still(name, store)?;
        }
        let keep = store.keep_blobs()?;
        let outputs = match job::ingest(stage, &layout, store) {
            Ok(outputs) => outputs,
            Err(error) => return Ok(Tried::Failed(error)),
        };
        let steps = curves::put(&steps, &scratch.path, store)?;
        fault::at("ingested");
        let mut provenance = json!({
            "recipe": shared.recipe,
            "stage": stage.name,
            "run": shared.run,
            "log": log.file_name().map(|n| n.to_string_lossy()),
            "max_rss": end.max_rss,
            "device": job.device,
            "calibration": calibration,
            "started": begun,
            "finished": crate::clock::now(),
        });
        if !job.chosen.is_empty() {
            provenance["chosen"] = json!(job.chosen);
        }
        if let Some(continued) = &self.continued {
            provenance["continued"] = json!(continued);
        }
        let mut cost = Cost {
            seconds: self.start.elapsed().as_secs_f64(),
            ..*self.spent
        };
        cost += self.before;
        let record = ResultRecord {
            preimage: job.keyed.text.clone(),
            outputs,
            metrics,
            cost,
            numerics: Value::Array(numerics),
            provenance: into_map(provenance),
            steps,
        };
        Ok(Tried::Result(Box::new(record), keep))
    }

    fn log(&self, attempt: u32) -> Result<PathBuf, Error> {
        let dir = self.shared.run_dir.join("logs");
        std::fs::create_dir_all(&dir).map_err(|source| Error::Io {
            what: "cannot create",
            path: dir.clone(),
            source,
        })?;
        Ok(dir.join(format!("{}-{attempt}.log", self.job.stage.name)))
    }

    fn name(&self) -> String {
        self.job.stage.name.clone()
    }

    fn report(&self, report: Report) {
        // The main loop outlives its attempts; should it not, nobody is left to tell.
        let _ = self.tell.send(Note::Report(report));
    }

    fn warn(&self, text: String) {
        self.report(Report::Message {
            stage: Some(self.name()),
            level: "warning".into(),
            text,
        });
    }

    fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until && self.shared.cancel.level() == Stop::No {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn into_map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The failure that an assertion is.
pub fn assertion_failure(text: String) -> AttemptError {
    AttemptError {
        help: Some("the artifact is kept: look at it with `recipe get`, then change the recipe or the bound".into()),
        ..AttemptError::new(Class::Assertion, text)
    }
}
