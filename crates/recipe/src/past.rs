//! A run read back from the store, for verbs that look at what happened.

use std::collections::BTreeMap;

use cache::{Key, ResultRecord, Store};
use serde::Deserialize;
use serde_json::Value;
use spec::Preimage;
use spec::assertion::Judged;

use crate::fail::Fail;
use crate::verbs::runs::{computed_in, find, record};

/// A metric's value by step.
pub type Curve = BTreeMap<u64, f64>;

/// Whether a metric says something of the mathematics: those of time never repeat.
pub fn of_mathematics(metric: &str) -> bool {
    !metric.starts_with("timing/") && !metric.starts_with("performance/")
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
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// What its assertions came to.
    #[serde(default)]
    pub verdicts: Vec<Judged>,
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
}

impl Stage {
    /// Its result, and what that was made from. None where it has none, or none that can be read.
    pub fn result(&self, store: &Store) -> Result<Option<(Preimage, ResultRecord)>, Fail> {
        let Some(key) = self.key.as_deref().and_then(|hex| hex.parse::<Key>().ok()) else {
            return Ok(None);
        };
        let Some((_, result)) = store.current(&key)? else {
            return Ok(None);
        };
        Ok(Preimage::parse(&result.preimage).ok().map(|p| (p, result)))
    }

    /// Its metrics by name and step. Those of a reused stage are of the run that computed it; where
    /// a resumed attempt wrote a step again, the last line counts.
    pub fn curves(&self, store: &Store, run: &Run) -> Result<BTreeMap<String, Curve>, Fail> {
        let row = run.record["stages"]
            .as_array()
            .and_then(|all| all.iter().find(|s| s["stage"] == self.stage.as_str()));
        let computed = row.map(|s| computed_in(store, s)).transpose()?.flatten();
        let (id, stage) = computed.unwrap_or((run.id.clone(), self.stage.clone()));
        let lines = store.get_run(&id, "metrics.jsonl")?.unwrap_or_default();
        let mut curves: BTreeMap<String, Curve> = BTreeMap::new();
        for line in String::from_utf8_lossy(&lines).lines() {
            // a line cut short by a crash is not JSON and is passed over
            let Ok(step) = serde_json::from_str::<Step>(line) else {
                continue;
            };
            if step.stage == stage {
                let finite = step
                    .metrics
                    .into_iter()
                    .filter(|(_, value)| value.is_finite());
                for (name, value) in finite {
                    curves.entry(name).or_default().insert(step.step, value);
                }
            }
        }
        Ok(curves)
    }
}

/// A line of `metrics.jsonl`.
#[derive(Deserialize)]
struct Step {
    stage: String,
    step: u64,
    #[serde(deserialize_with = "spec::job::numbers")]
    metrics: BTreeMap<String, f64>,
}
