//! Trackers: a run's metrics for other programs to show. They are never in the run's way: each has
//! a thread and a bounded queue of its own, what does not fit is dropped and counted, and what went
//! wrong is told once, at the end.
//!
//! A tracker is a file here and a line in [`TRACKERS`]; its settings are in `spec::track`.

mod http;
mod jsonl;
mod mlflow;
mod proto;
mod queue;
mod tensorboard;
mod wandb;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use spec::{Plan, track::Track};

use crate::outcome::Status;
use crate::report::Report;
use queue::Queue;

/// Name in the recipe, and how it begins: none where the recipe does not ask for it, an error where
/// it cannot begin.
type Start = fn(&Track, &Arc<About>) -> Option<Result<Box<dyn Tracker>, String>>;

const TRACKERS: &[(&str, Start)] = &[
    ("jsonl", jsonl::start),
    ("tensorboard", tensorboard::start),
    ("wandb", wandb::start),
    ("mlflow", mlflow::start),
];

/// What a tracker knows of the run beforehand.
pub struct About {
    pub run: String,
    pub recipe: String,
    /// What relative paths start from.
    pub folder: PathBuf,
    /// Kind and configuration of stages.
    stages: HashMap<String, (String, Value)>,
    /// When it began.
    pub time: f64,
}

/// What a tracker is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Seconds since 1970 (UTC).
    pub time: f64,
    pub stage: String,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// A stage begins to be computed in this run.
    Started { key: String },
    /// Steps only ever rise: what a resumed attempt repeats is not told again.
    Step {
        step: u64,
        metrics: BTreeMap<String, f64>,
    },
    /// A stage has ended, with the metrics of its result; `step` is the last.
    Finished {
        status: Status,
        step: u64,
        metrics: BTreeMap<String, f64>,
    },
    /// The run has ended; no stage.
    RunFinished { exit_code: u8 },
}

/// Why records could not be sent.
#[derive(Debug)]
pub enum Failure {
    /// Worth another try.
    Later(String),
    /// They will never be taken.
    Never(String),
}

/// Sends records somewhere. Called from one thread; may take its time.
pub trait Tracker: Send {
    fn send(&mut self, records: &[Arc<Record>]) -> Result<(), Failure>;
}

/// All trackers of a run.
pub struct Trackers {
    queues: Vec<Queue>,
    /// Trackers that could not begin, and why.
    absent: Vec<String>,
    /// Last step of each stage that is computed in this run.
    steps: HashMap<String, u64>,
}

impl Trackers {
    pub fn start(plan: &Plan, run: &str) -> Trackers {
        let mut trackers = Trackers {
            queues: Vec::new(),
            absent: Vec::new(),
            steps: HashMap::new(),
        };
        if plan.recipe.track == Track::default() {
            return trackers;
        }
        let stage = |s: &spec::Stage| {
            let about = (s.kind.name.to_owned(), s.with.clone());
            (s.name.clone(), about)
        };
        let about = Arc::new(About {
            run: run.to_owned(),
            recipe: plan.recipe.name.clone(),
            folder: plan.recipe.folder.clone(),
            stages: plan.order.iter().map(|s| stage(&s.stage)).collect(),
            time: now(),
        });
        for (name, start) in TRACKERS {
            match start(&plan.recipe.track, &about) {
                None => {}
                Some(Err(why)) => trackers
                    .absent
                    .push(format!("{name}: nothing was tracked: {why}")),
                Some(Ok(tracker)) => match Queue::start(name, tracker) {
                    Ok(queue) => trackers.queues.push(queue),
                    Err(e) => trackers
                        .absent
                        .push(format!("{name}: nothing was tracked: {e}")),
                },
            }
        }
        trackers
    }

    /// No tracker at all.
    pub fn none() -> Trackers {
        Trackers {
            queues: Vec::new(),
            absent: Vec::new(),
            steps: HashMap::new(),
        }
    }

    /// Passes on what trackers want to know; never waits.
    pub fn report(&mut self, report: &Report) {
        if self.queues.is_empty() {
            return;
        }
        let (stage, what) = match report {
            Report::AttemptStarted { stage, key, .. } => {
                if self.steps.contains_key(stage) {
                    return;
                }
                self.steps.insert(stage.clone(), 0);
                (stage, What::Started { key: key.clone() })
            }
            Report::Metrics {
                stage,
                step,
                metrics,
                ..
            } => match self.steps.get_mut(stage) {
                Some(last) if *step > *last => {
                    *last = *step;
                    let (step, metrics) = (*step, metrics.clone());
                    (stage, What::Step { step, metrics })
                }
                _ => return,
            },
            Report::StageFinished {
                stage,
                status,
                metrics,
                ..
            } => {
                let Some(step) = self.steps.get(stage) else {
                    return;
                };
                let what = What::Finished {
                    status: *status,
                    step: *step,
                    metrics: metrics.clone(),
                };
                (stage, what)
            }
            _ => return,
        };
        self.push(stage.clone(), what);
    }

    fn push(&mut self, stage: String, what: What) {
        let record = Arc::new(Record {
            time: now(),
            stage,
            what,
        });
        for queue in &mut self.queues {
            queue.push(&record);
        }
    }

    /// Says that the run has ended, and waits for trackers that get on. What was not tracked, in words.
    pub fn finish(&mut self, exit_code: u8) -> Vec<String> {
        self.push(String::new(), What::RunFinished { exit_code });
        for queue in &mut self.queues {
            queue.close();
        }
        let mut told = std::mem::take(&mut self.absent);
        told.extend(self.queues.drain(..).filter_map(Queue::end));
        told
    }
}

impl About {
    pub fn kind(&self, stage: &str) -> &str {
        self.stages.get(stage).map_or("", |(kind, _)| kind)
    }

    /// A stage's configuration.
    pub fn with(&self, stage: &str) -> &Value {
        self.stages
            .get(stage)
            .map_or(&Value::Null, |(_, with)| with)
    }

    /// A stage's configuration as path and value, for programs that know no tables.
    pub fn settings(&self, stage: &str) -> Vec<(String, Value)> {
        let all = spec::difference(&Value::Null, self.with(stage)).into_iter();
        all.filter_map(|d| Some((d.field, d.now?)))
            .filter(|(field, _)| !field.is_empty())
            .collect()
    }
}

/// Whether a stage's end is one that programs show as a success.
fn succeeded(status: Status) -> bool {
    matches!(status, Status::Ran | Status::Reused | Status::Adopted)
}

/// Seconds since 1970 (UTC).
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |d| d.as_secs_f64())
}
