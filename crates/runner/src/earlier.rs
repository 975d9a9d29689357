//! What other runs did for a stage before, as their records tell: an attempt goes on from their checkpoints.

use std::collections::{BTreeMap, BTreeSet};

use cache::{Checkpoint, Cost, Key, Store};
use serde::Deserialize;

use crate::{machine, record};

/// The run that owned an attempt.
pub struct Earlier<'s> {
    store: &'s Store,
    run: String,
    /// What its recipe called the stage.
    pub stage: String,
    /// What it spent on the stage. Only a run that has ended tells.
    spent: Cost,
}

impl<'s> Earlier<'s> {
    /// The run that owned an attempt at a key, whose stage is called `stage` now. None where that is not known.
    pub fn of(stage: &str, key: &Key, attempt: u32, store: &'s Store) -> Option<Earlier<'s>> {
        #[derive(Deserialize)]
        struct Record {
            stages: Vec<Named>,
        }
        #[derive(Deserialize)]
        struct Named {
            stage: String,
            key: Option<String>,
            #[serde(default)]
            spent: Cost,
        }
        let claim = store.claim_record(key, attempt).ok()?;
        let run = machine::run_of(&claim.owner)?.to_owned();
        let record = store.get_run(&run, "record.json").ok().flatten();
        let record = serde_json::from_slice::<Record>(&record.unwrap_or_default()).ok();
        // another recipe may call the stage otherwise
        let same = |s: &Named| s.key.as_deref() == Some(key.hex().as_str());
        let named = record.and_then(|r| r.stages.into_iter().find(same));
        let (stage, spent) = match named {
            Some(named) => (named.stage, named.spent),
            None => (stage.to_owned(), Cost::default()),
        };
        Some(Earlier {
            store,
            run,
            stage,
            spent,
        })
    }

    /// One of its files; empty where it is not there.
    pub fn file(&self, name: &str) -> Vec<u8> {
        let file = self.store.get_run(&self.run, name).ok().flatten();
        file.unwrap_or_default()
    }

    /// What the run spent on the stage. Of one that was killed nothing but time is known: that of each attempt from its
    /// start to the last that it told, on so many GPUs.
    fn cost(&self, gpus: usize) -> Cost {
        if !self.spent.is_zero() {
            return self.spent;
        }
        let mut spans: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for line in self.file("events.jsonl").split(|b| *b == b'\n') {
            if let Some((at, report)) = record::event(line)
                && let Some((stage, attempt)) = report.of_attempt()
                && stage == self.stage
            {
                spans.entry(attempt).or_insert((at, at)).1 = at;
            }
        }
        let seconds = spans.values().map(|(from, to)| to - from).sum();
        Cost {
            seconds,
            gpu_seconds: seconds * gpus as f64,
            ..Cost::default()
        }
    }
}

/// What the stage took in other runs than `run`, in those that own the attempts from `lowest` to the one that took a
/// checkpoint.
pub fn cost(
    stage: &str,
    checkpoint: &Checkpoint,
    lowest: u32,
    run: &str,
    gpus: usize,
    store: &Store,
) -> Cost {
    let mut counted = BTreeSet::from([run.to_owned()]);
    let mut all = Cost::default();
    for attempt in lowest..=checkpoint.attempt {
        if let Some(earlier) = Earlier::of(stage, &checkpoint.key, attempt, store)
            && counted.insert(earlier.run.clone())
        {
            all += earlier.cost(gpus);
        }
    }
    all
}
