//! Runs read back from the store, for verbs that look at what happened.

mod completions;
mod curves;
mod follow;
mod reader;
mod story;

use std::collections::BTreeMap;

use cache::Store;
use serde::Deserialize;
use serde_json::Value;
use spec::assertion::Judged;

use crate::fail::Fail;
use crate::verbs::runs::{find, record};

pub use completions::Completion;
pub use curves::{Curve, Curves};
pub use follow::Follow;
pub use reader::Reader;
pub use story::Story;

/// Whether a metric says something of the mathematics: those of time and memory need not repeat.
pub fn of_mathematics(metric: &str) -> bool {
    let machine = ["timing/", "performance/", "memory/"];
    !machine.iter().any(|group| metric.starts_with(group))
}

/// A recorded run.
pub struct Run {
    pub id: String,
    /// In the order of its plan.
    pub stages: Vec<Stage>,
    pub record: Value,
}

/// A stage as a run left it. Fields as in `runner::StageOutcome`.
#[derive(Deserialize)]
pub struct Stage {
    pub stage: String,
    pub kind: String,
    pub status: String,
    pub key: Option<String>,
    /// Which attempt of the key its result is.
    #[serde(default)]
    pub attempt: Option<u32>,
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "spec::job::numbers")]
    pub metrics: BTreeMap<String, f64>,
    /// What its assertions came to.
    #[serde(default)]
    pub verdicts: Vec<Judged>,
    /// Stages whose outputs it reads; none in records of earlier versions.
    #[serde(default)]
    pub reads: Option<Vec<String>>,
    /// Why it ran, or why it did not.
    pub why: Option<String>,
    /// Wall seconds in this run.
    #[serde(default)]
    pub seconds: f64,
    /// Wall seconds that computing the result took, in whichever run that was.
    pub cost_seconds: Option<f64>,
    pub error: Option<Failure>,
}

/// Why a stage has no result.
#[derive(Deserialize)]
pub struct Failure {
    pub class: String,
    pub message: String,
}

impl Run {
    /// The run that `word` names, see [`find`].
    pub fn read(store: &Store, word: &str) -> Result<Run, Fail> {
        let id = find(store, word)?;
        let Some(record) = record(store, &id)? else {
            return Err(Fail::not_stored(
                format!("run '{id}' has no record"),
                "it died before it wrote one",
            ));
        };
        let stages = serde_json::from_value(record["stages"].clone()).map_err(|e| {
            Fail::not_stored(
                format!("the record of run '{id}' does not say what its stages came to: {e}"),
                "it was written by another version of recipe: use that one",
            )
        })?;
        Ok(Run { id, stages, record })
    }

    /// A run that has just ended, as its record tells it.
    pub fn of(outcome: &runner::Outcome) -> Run {
        let record = serde_json::to_value(outcome).unwrap_or_default();
        Run {
            id: outcome.run.clone(),
            // the fields of `Stage` are those of what was just written
            stages: serde_json::from_value(record["stages"].clone()).unwrap_or_default(),
            record,
        }
    }

    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.stage == name)
    }

    /// A text of its record; empty where there is none.
    pub fn text(&self, field: &str) -> &str {
        self.record[field].as_str().unwrap_or_default()
    }
}

impl Stage {
    /// Whether its run came to a result of it.
    pub fn has_result(&self) -> bool {
        self.is_reused() || matches!(self.status.as_str(), "ran" | "assertion_failed")
    }

    /// Whether it has a result that this run did not compute.
    pub fn is_reused(&self) -> bool {
        matches!(self.status.as_str(), "reused" | "adopted")
    }

    /// The state as people read it.
    pub fn state(&self) -> String {
        self.status.replace('_', " ")
    }
}
