//! Where a training stage goes on from.
//!
//! | whose checkpoint | when |
//! |---|---|
//! | its own | an earlier attempt left one |
//! | of the same training: the whole's, or another part's | it is further than its own, and not beyond the stage's end |
//! | of a shorter run | there is no other, and the recipe allows it (`checkpoint.continue`) |

use std::fmt;

use cache::{Checkpoint, Key, ResultRecord, Store};
use serde::Serialize;
use serde_json::Value;
use spec::assertion::Steps;
use spec::{Preimage, Stage};

use crate::curves;
use crate::error::Error;
use crate::session::Keyed;

/// A stage's key, by its name.
pub type Kin = (String, Key);

/// The step that a stage goes on from, for people and for `plan --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GoesOn {
    pub step: u64,
    #[serde(flatten)]
    pub whose: Whose,
    /// Under which the checkpoint lies, hex.
    pub key: String,
}

/// Whose checkpoint it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Whose {
    Own,
    /// Another stage's, of which this one is a part or that is a part of this one.
    SameTraining {
        stage: String,
    },
    /// That of a run with fewer steps.
    ShorterRun,
}

impl fmt::Display for GoesOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.get(..12).unwrap_or(&self.key);
        write!(f, "goes on from step {}", self.step)?;
        match &self.whose {
            Whose::Own => Ok(()),
            Whose::SameTraining { stage } => write!(f, " of {stage}"),
            Whose::ShorterRun => write!(f, " of a shorter run (key {key})"),
        }
    }
}

/// A checkpoint to go on from.
pub struct Origin {
    pub checkpoint: Checkpoint,
    pub whose: Whose,
}

impl Origin {
    /// The best checkpoint for a stage, if any will do. `forced` is the attempt from which on its own count, and then no
    /// others do.
    pub fn of(
        store: &Store,
        stage: &Stage,
        keyed: &Keyed,
        kin: &[Kin],
        forced: Option<u32>,
    ) -> Result<Option<Origin>, Error> {
        if !stage.kind.checkpoints {
            return Ok(None);
        }
        let own = |checkpoint| Origin {
            checkpoint,
            whose: Whose::Own,
        };
        if let Some(from) = forced {
            return Ok(store.newest_checkpoint_from(&keyed.key, from)?.map(own));
        }
        let mut best = store.newest_checkpoint(&keyed.key)?.map(own);
        let may = stage.placement.checkpoint.from_shorter;
        if kin.is_empty() && !may {
            return Ok(best);
        }
        let mine = keyed.preimage();
        let end = mine.with["until"].as_u64().unwrap_or(u64::MAX);
        for (stage, key) in kin {
            let reached = best.as_ref().map_or(0, |b| b.checkpoint.step);
            if let Some(checkpoint) = store.newest_checkpoint_until(key, end)?
                && checkpoint.step > reached
            {
                let stage = stage.clone();
                let whose = Whose::SameTraining { stage };
                best = Some(Origin { checkpoint, whose });
            }
        }
        match best {
            None if may => of_shorter(store, mine, end),
            found => Ok(found),
        }
    }

    pub fn goes_on(&self) -> GoesOn {
        GoesOn {
            step: self.checkpoint.step,
            whose: self.whose.clone(),
            key: self.checkpoint.key.hex(),
        }
    }

    /// Numerics and metrics of the steps before a checkpoint that is not the stage's own, as far as they are known.
    pub fn before(&self, stage: &str, store: &Store) -> Result<(Vec<Value>, Steps), Error> {
        let checkpoint = &self.checkpoint;
        let record = store.current(&checkpoint.key)?.map(|(_, record)| record);
        let steps = |record: &ResultRecord| curves::of(record, store).ok().flatten();
        let mut steps = match record.as_ref().and_then(steps) {
            Some(steps) => steps,
            None => {
                let stage = match &self.whose {
                    Whose::SameTraining { stage } => stage,
                    Whose::Own | Whose::ShorterRun => stage,
                };
                curves::before(stage, checkpoint, 1, &[], store)
            }
        };
        steps.rows.retain(|step, _| *step <= checkpoint.step);
        let begun = |range: &&Value| range["from"].as_u64().is_none_or(|n| n < checkpoint.step);
        let ranges = record.as_ref().and_then(|r| r.numerics.as_array());
        let numerics = ranges.into_iter().flatten().filter(begun);
        Ok((numerics.cloned().collect(), steps))
    }
}

/// The furthest checkpoint of a result that differs from this stage in having fewer steps, and in nothing else but where
/// it stops.
fn of_shorter(store: &Store, mut mine: Preimage, end: u64) -> Result<Option<Origin>, Error> {
    let steps = |preimage: &Preimage| preimage.with["steps"].as_u64().unwrap_or(0);
    let whole = |preimage: &mut Preimage| {
        let with = preimage.with.as_object_mut();
        with.and_then(|with| with.remove("until"));
    };
    whole(&mut mine);
    let mut best: Option<Checkpoint> = None;
    for (key, _, record) in store.results()? {
        let Ok(mut other) = Preimage::parse(&record.preimage) else {
            continue;
        };
        if steps(&other) >= steps(&mine) {
            continue;
        }
        whole(&mut other);
        other.with["steps"] = mine.with["steps"].clone();
        if other != mine {
            continue;
        }
        let found = store.newest_checkpoint_until(&key, end)?;
        best = best.into_iter().chain(found).max_by_key(|c| c.step);
    }
    Ok(best.map(|checkpoint| Origin {
        checkpoint,
        whose: Whose::ShorterRun,
    }))
}
