//! What runs left in a store, each file read once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use cache::{Digest, Ending, Key, ResultRecord, Store};
use spec::Preimage;

use super::curves::Steps;
use super::{Completion, Curves, Run, Stage, Story};
use crate::fail::Fail;
use crate::verbs::runs::record;

/// Reads results, metrics and completions, and remembers them.
pub struct Reader {
    store: Store,
    results: RefCell<Results>,
    metrics: RefCell<HashMap<String, Read<Steps>>>,
    events: RefCell<HashMap<String, Read<Story>>>,
    /// Curves of results, by their artifact.
    steps: RefCell<HashMap<Digest, Arc<Curves>>>,
    completions: RefCell<HashMap<Digest, Arc<Vec<Completion>>>>,
}

/// Results by key, and by attempt where one is named.
type Results = HashMap<(Key, Option<u32>), Option<Arc<Made>>>;

/// A result, and what it was made from.
pub struct Made {
    pub preimage: Preimage,
    pub result: ResultRecord,
}

/// A file of a run that grows as long as the run goes on.
#[derive(Default)]
struct Read<T> {
    what: T,
    /// Nothing will be added, or has been looked for in this round.
    done: bool,
    ended: bool,
}

impl<T> Read<T> {
    /// Brings it up to date, by `feed` with the whole file.
    fn update(
        &mut self,
        (store, id, name): (&Store, &str, &str),
        feed: impl Fn(&mut T, &[u8]),
    ) -> Result<&mut T, Fail> {
        if !self.done {
            // asked first: what a run writes before it ends is then read below
            self.ended = record(store, id)?.is_none_or(|r| r["state"] == "finished");
            self.done = true;
            feed(
                &mut self.what,
                &store.get_run(id, name)?.unwrap_or_default(),
            );
        }
        Ok(&mut self.what)
    }
}

impl Reader {
    pub fn new(store: Store) -> Reader {
        Reader {
            store,
            results: RefCell::default(),
            metrics: RefCell::default(),
            events: RefCell::default(),
            steps: RefCell::default(),
            completions: RefCell::default(),
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// From now on runs that go on are looked at again, once.
    pub fn look_again(&self) {
        for read in self.metrics.borrow_mut().values_mut() {
            read.done = read.ended;
        }
        for read in self.events.borrow_mut().values_mut() {
            read.done = read.ended;
        }
        self.results.borrow_mut().retain(|_, made| made.is_some());
    }

    /// A stage's result; none where it has none, or none that can be read.
    pub fn result(&self, stage: &Stage) -> Result<Option<Arc<Made>>, Fail> {
        let Some(key) = stage.key.as_deref().and_then(|hex| hex.parse::<Key>().ok()) else {
            return Ok(None);
        };
        let at = (key, stage.attempt.filter(|_| stage.has_result()));
        if let Some(known) = self.results.borrow().get(&at) {
            return Ok(known.clone());
        }
        let read = |result: ResultRecord| {
            let preimage = Preimage::parse(&result.preimage).ok()?;
            Some(Arc::new(Made { preimage, result }))
        };
        let own = match at.1 {
            Some(attempt) => self.store.ending(&key, attempt)?,
            None => None,
        };
        let found = match own {
            Some(Ending::Result(result)) => Some(*result),
            // of a record without it, or where it is gone, what the key has now
            _ => self.store.current(&key)?.map(|(_, result)| result),
        };
        let made = found.and_then(read);
        self.results.borrow_mut().insert(at, made.clone());
        Ok(made)
    }

    /// The run and stage whose metrics, logs and data a stage of `run` has: its own, or those that
    /// computed what it reused.
    pub fn computed_in(&self, run: &Run, stage: &Stage) -> Result<(String, String), Fail> {
        let own = || (run.id.clone(), stage.stage.clone());
        if !stage.has_result() {
            return Ok(own());
        }
        Ok(self
            .result(stage)?
            .and_then(|made| made.computed_in())
            .unwrap_or_else(own))
    }

    /// A stage's metrics by name and step: those that lie beside its result, which has the steps of
    /// all attempts that led to it; of a stage that has none (yet), what its run recorded.
    pub fn curves(&self, run: &Run, stage: &Stage) -> Result<Arc<Curves>, Fail> {
        if stage.has_result()
            && let Some(made) = self.result(stage)?
            && let Some(curves) = self.steps_of(&made)
        {
            return Ok(curves);
        }
        let (id, stage) = self.computed_in(run, stage)?;
        let mut all = self.metrics.borrow_mut();
        let read = all.entry(id.clone()).or_default();
        let steps = read.update((&self.store, &id, "metrics.jsonl"), Steps::feed)?;
        Ok(steps.of(&stage))
    }

    /// The curves of a result; none where they were not kept, or are lost.
    fn steps_of(&self, made: &Made) -> Option<Arc<Curves>> {
        let artifact = made.result.steps?;
        if let Some(known) = self.steps.borrow().get(&artifact) {
            return Some(Arc::clone(known));
        }
        let steps = runner::steps_of(&made.result, &self.store).ok()??;
        let mut curves = Curves::new();
        for (step, metrics) in steps.rows {
            for (name, value) in metrics {
                curves.entry(name).or_default().insert(step, value);
            }
        }
        let curves = Arc::new(curves);
        self.steps
            .borrow_mut()
            .insert(artifact, Arc::clone(&curves));
        Some(curves)
    }

    /// What happened in a run.
    pub fn story(&self, run: &Run) -> Result<Story, Fail> {
        let mut all = self.events.borrow_mut();
        let read = all.entry(run.id.clone()).or_default();
        let story = read.update((&self.store, &run.id, "events.jsonl"), Story::feed)?;
        Ok(story.clone())
    }

    /// A stage's completions; none where it has none, or the store does not have them any more.
    pub fn completions(&self, stage: &Stage) -> Result<Arc<Vec<Completion>>, Fail> {
        let digest = stage.outputs.get("completions");
        let Some(digest) = digest.and_then(|hex| hex.parse::<Digest>().ok()) else {
            return Ok(Arc::default());
        };
        if let Some(known) = self.completions.borrow().get(&digest) {
            return Ok(known.clone());
        }
        let mut rows = Arc::default();
        if self.store.artifact_intact(&digest)?.is_yes()
            && let Some(file) = self.store.manifest(&digest)?.file("completions.jsonl")
        {
            rows = Arc::new(Completion::read(&self.store.get_bytes(&file.blob)?));
        }
        self.completions
            .borrow_mut()
            .insert(digest, Arc::clone(&rows));
        Ok(rows)
    }
}

impl Made {
    /// The run and stage that computed it.
    pub fn computed_in(&self) -> Option<(String, String)> {
        let word = |field: &str| {
            self.result
                .provenance
                .get(field)?
                .as_str()
                .map(str::to_owned)
        };
        Some((word("run")?, word("stage")?))
    }
}
