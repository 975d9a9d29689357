//! When checkpoints are taken, and where they go.
//!
//! | taken | why |
//! |---|---|
//! | every `checkpoint.every` steps | to lose no more than these |
//! | when a stop is asked for | to lose nothing |
//! | after the last step of a stage that ends before its schedule does (`with.until`) | the whole goes on from there |
//! | after a step that is the best so far by a metric which readers choose by | its weights are there when it stays the best |
//!
//! A checkpoint is a directory: what `train` writes, each rank its slices, and files of the stage's
//! own. Rank 0 commits it to the store when all ranks have written; the store refuses when another
//! attempt has taken over.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use cache::{Ingest, Key, Store};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use spec::Event;
use train::{CheckpointState, Optimizer, Policy};

use crate::failure::{Failure, Result, at};
use crate::report::Metrics;
use crate::stage::Stage;
use crate::stop;

/// Takes checkpoints of one attempt.
pub struct Checkpoints<'a> {
    stage: &'a Stage,
    store: Store,
    key: Key,
    /// Files of the stage's own that every checkpoint holds (equal bytes are stored once).
    carried: Vec<PathBuf>,
    /// The best step so far by each metric that the job watches.
    best: RefCell<Vec<Option<(u64, f64)>>>,
}

/// Beside the other files of a checkpoint: the best steps so far.
const BEST: &str = "best.json";

/// What to do after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    GoOn,
    /// A checkpoint was taken because a stop was asked for.
    Stop,
}

/// What a resumed stage gets back beside weights and optimizer.
pub struct Resumed<S> {
    /// Steps done.
    pub step: u64,
    pub state: S,
}

impl<'a> Checkpoints<'a> {
    /// From now on a SIGTERM asks for a checkpoint.
    pub fn open(stage: &'a Stage) -> Result<Checkpoints<'a>> {
        stop::catch_term();
        let key = Key::from_str(&stage.job.key)
            .map_err(|e| Failure::config(format!("key '{}': {e}", stage.job.key), ""))?;
        let store = Store::open(&stage.job.store)?;
        Ok(Checkpoints {
            stage,
            store,
            key,
            carried: Vec::new(),
            best: RefCell::new(vec![None; stage.job.watch.len()]),
        })
    }

    /// The step after which the stage stops though its schedule goes on.
    fn until(&self) -> Option<u64> {
        self.stage.job.with["until"].as_u64()
    }

    /// Adds a file to every checkpoint from now on.
    pub fn carry(&mut self, file: PathBuf) {
        self.carried.push(file);
    }

    /// A file that an earlier attempt carried.
    pub fn carried(&self, name: &str) -> Option<PathBuf> {
        let path = self.stage.job.resume.as_ref()?.path.join(name);
        path.exists().then_some(path)
    }

    /// Restores weights, optimizer and the stage's state, if there is something to go on from.
    pub fn resume<S: DeserializeOwned>(
        &self,
        policy: &mut Policy,
        optimizer: &mut Optimizer,
    ) -> Result<Option<Resumed<S>>> {
        let Some(resume) = &self.stage.job.resume else {
            return Ok(None);
        };
        let saved = policy.load_checkpoint(&resume.path, optimizer)?;
        if saved.step != resume.step {
            return Err(Failure::new(
                spec::FailureClass::Integrity,
                "W0602",
                format!(
                    "the checkpoint of step {} says it is of step {}",
                    resume.step, saved.step
                ),
                "run with `--resume never`",
            ));
        }
        if let Some(until) = self.until().filter(|until| saved.step > *until) {
            return Err(Failure::new(
                spec::FailureClass::Integrity,
                "W0602",
                format!(
                    "the checkpoint is of step {}, beyond step {until}",
                    saved.step
                ),
                "run with `--resume never`",
            ));
        }
        if let Ok(text) = fs::read(resume.path.join(BEST))
            && let Ok(best) = serde_json::from_slice::<Vec<Option<(u64, f64)>>>(&text)
            && best.len() == self.stage.job.watch.len()
        {
            self.best.replace(best);
        }
        let state = serde_json::from_value(saved.extra).map_err(|e| {
            Failure::new(
                spec::FailureClass::Integrity,
                "W0602",
                format!("the checkpoint's state cannot be read: {e}"),
                "run with `--resume never`",
            )
        })?;
        self.stage
            .report
            .event(&Event::Resumed { step: saved.step });
        Ok(Some(Resumed {
            step: saved.step,
            state,
        }))
    }

    /// Called after each step with its metrics: takes a checkpoint where one is due or a stop was asked for.
    pub fn after<S: Serialize>(
        &self,
        step: u64,
        policy: &Policy,
        optimizer: &Optimizer,
        state: &S,
        metrics: &Metrics,
    ) -> Result<Next> {
        let every = self.stage.job.checkpoint.every;
        let due = every > 0 && step.is_multiple_of(every)
            || self.until() == Some(step)
            || self.best_so_far(step, metrics)?;
        let stop = self.stage.gang.any(stop::requested(), "stop")?;
        if due || stop {
            self.save(step, policy, optimizer, state)?;
        }
        Ok(if stop { Next::Stop } else { Next::GoOn })
    }

    fn save<S: Serialize>(
        &self,
        step: u64,
        policy: &Policy,
        optimizer: &Optimizer,
        state: &S,
    ) -> Result<()> {
        let _checkpoint = trace::phase("checkpoint").with("step", step);
        let dir = self.stage.job.scratch.join(format!("checkpoint-{step}"));
        // a failure of one rank is the whole gang's failure
        self.together(step, self.lead(|| empty(&dir)))?;
        let extra = serde_json::to_value(state)
            .map_err(|e| Failure::failed("W0902", format!("state of the stage: {e}"), ""))?;
        let state = CheckpointState {
            step,
            cursor: step,
            extra,
        };
        policy.save_checkpoint(&dir, optimizer, &state)?;
        self.together(step, self.lead(|| self.commit(step, &dir)))
    }

    /// Whether a step is the best so far by a metric that the job watches.
    fn best_so_far(&self, step: u64, metrics: &Metrics) -> Result<bool> {
        let watch = &self.stage.job.watch;
        if watch.is_empty() {
            return Ok(false);
        }
        let mut any = false;
        for (by, best) in watch.iter().zip(self.best.borrow_mut().iter_mut()) {
            let value = metrics.get(&by.metric).filter(|v| v.is_finite());
            if let Some(value) = value
                && best.is_none_or(|(_, before)| by.best.is_better(*value, before))
            {
                *best = Some((step, *value));
                any = true;
            }
        }
        self.stage.gang.any(any, "checkpoint")
    }

    /// Does on rank 0 what one rank does for all.
    fn lead(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.stage.gang.leads() {
            act()
        } else {
            Ok(())
        }
    }

    /// One rank's failure is all ranks'.
    fn together(&self, step: u64, done: Result<()>) -> Result<()> {
        let broken = self.stage.gang.any(done.is_err(), "checkpoint")?;
        done?;
        if broken {
            return Err(Failure::new(
                spec::FailureClass::Infra,
                "W0505",
                format!("rank 0 could not save the checkpoint of step {step}"),
                "its own message says why",
            ));
        }
        Ok(())
    }

    fn commit(&self, step: u64, dir: &Path) -> Result<()> {
        for file in &self.carried {
            let name = file.file_name().unwrap_or_default();
            fs::copy(file, dir.join(name)).map_err(at(file))?;
        }
        let job = &self.stage.job;
        let best = self.best.borrow();
        if !best.is_empty() {
            let path = dir.join(BEST);
            let text = serde_json::to_vec(&*best).unwrap_or_default();
            fs::write(&path, text).map_err(at(&path))?;
        }
        let meta = json!({ "stage": job.stage, "step": step });
        self.store
            .commit_checkpoint(&self.key, job.attempt, step, dir, Ingest::Move, meta)?;
        let best: Vec<u64> = best.iter().flatten().map(|(step, _)| *step).collect();
        self.store
            .prune_checkpoints(&self.key, job.checkpoint.keep as usize, &best)?;
        remove(dir);
        self.stage.report.event(&Event::Checkpoint { step });
        Ok(())
    }
}

/// A directory without what an earlier attempt may have left there.
fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(at(dir))?;
    }
    fs::create_dir_all(dir).map_err(at(dir))
}

/// Scratch that may stay behind.
fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}
