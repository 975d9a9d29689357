//! What a run came to.

use std::collections::BTreeMap;

use cache::Cost;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use spec::assertion::Judged;

use crate::error::{AttemptError, Class};
use crate::meter::Energy;

/// The last state of a stage in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The store had the result.
    Reused,
    /// Computed in this run.
    Ran,
    /// Another runner computed it while this one waited.
    Adopted,
    /// Its result is kept, but an assertion does not hold.
    AssertionFailed,
    Failed,
    /// Something above it failed, or the selection leaves it out.
    Skipped,
    /// Stopped with a checkpoint.
    Stopped,
    /// Killed by a signal without a checkpoint.
    Killed,
    /// Never started because the run ended first.
    NotRun,
}

impl Status {
    /// True when the stage has outputs that others may use.
    pub fn has_result(self) -> bool {
        matches!(
            self,
            Status::Reused | Status::Ran | Status::Adopted | Status::AssertionFailed
        )
    }
}

/// One stage's result.
#[derive(Debug, Clone, Serialize)]
pub struct StageOutcome {
    pub stage: String,
    /// Set where it is a cell of a matrix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell: Option<CellOf>,
    pub kind: String,
    /// Stages whose outputs it reads.
    pub reads: Vec<String>,
    pub status: Status,
    /// Hex key, when its inputs were known.
    pub key: Option<String>,
    pub attempt: Option<u32>,
    /// Output name to artifact digest (hex).
    pub outputs: BTreeMap<String, String>,
    /// Summary metrics of the result.
    pub metrics: BTreeMap<String, f64>,
    /// What its assertions came to, in the order of the recipe.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verdicts: Vec<Judged>,
    /// The cells that it took for inputs which choose among cells.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<ChosenCell>,
    /// Why it ran, or why it did not.
    pub why: Option<String>,
    pub error: Option<AttemptError>,
    /// Wall seconds in this run.
    pub seconds: f64,
    /// Wall seconds that computing the result took, in whichever run that was.
    pub cost_seconds: Option<f64>,
    /// All that computing the result took, in whichever run that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// What this run spent on it, failed attempts included.
    #[serde(skip_serializing_if = "Cost::is_zero")]
    pub spent: Cost,
}

/// What a run spent on these stages.
pub(crate) fn spent(stages: &[StageOutcome]) -> Cost {
    let mut all = Cost::default();
    stages.iter().for_each(|stage| all += stage.spent);
    all
}

/// What a cell is a cell of, and where it stands.
#[derive(Debug, Clone, Serialize)]
pub struct CellOf {
    /// The stage as the recipe has it.
    pub of: String,
    /// What `${matrix.x}` stands for in it.
    pub values: IndexMap<String, serde_json::Value>,
    /// Its name without the seed, where it is one of `replicas`: replicas of one thing share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replica_of: Option<String>,
}

impl From<&spec::Cell> for CellOf {
    fn from(cell: &spec::Cell) -> CellOf {
        CellOf {
            of: cell.of.clone(),
            values: cell.values.clone(),
            replica_of: cell.replica.map(|_| cell.group()),
        }
    }
}

/// The cell that was chosen for an input.
#[derive(Debug, Clone, Serialize)]
pub struct ChosenCell {
    pub input: String,
    /// What was asked for: `sft.model with the max of eval.accuracy`.
    pub choice: String,
    /// The cell.
    pub stage: String,
    /// Its metric.
    pub value: f64,
}

/// The whole run's result.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub run: String,
    pub recipe: String,
    /// In plan order.
    pub stages: Vec<StageOutcome>,
    pub exit_code: u8,
    pub seconds: f64,
    /// When it began, as `2026-01-31T12:00:00.000Z`.
    pub started: String,
    /// What this run spent on all its stages; `seconds` are those of stages, side by side or not.
    pub spent: Cost,
    /// What measured energy, or why nothing did.
    pub energy: Energy,
    /// Why the run record is incomplete, if it is. The results are in the store all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<AttemptError>,
}

impl Outcome {
    /// The exit code by DESIGN section 5: a stop on request first, else the gravest failure.
    pub(crate) fn exit_code(stages: &[StageOutcome], stop_code: Option<u8>) -> u8 {
        if let Some(signal_code) = stop_code {
            let lost = stages.iter().any(|s| s.status == Status::Killed);
            return if lost {
                signal_code
            } else {
                Class::Preempt.exit_code()
            };
        }
        // Integrity outranks all: nothing else can be trusted. Infra comes last: a retry may do.
        let order = [
            Class::Integrity,
            Class::Lock,
            Class::Config,
            Class::Failed,
            Class::Timeout,
            Class::Assertion,
            Class::Preempt,
            Class::Infra,
        ];
        let classes: Vec<Class> = stages
            .iter()
            .filter_map(|s| match s.status {
                Status::AssertionFailed => Some(Class::Assertion),
                Status::Failed => Some(s.error.as_ref().map_or(Class::Failed, |e| e.class)),
                Status::Stopped => Some(Class::Preempt),
                _ => None,
            })
            .collect();
        order
            .into_iter()
            .find(|c| classes.contains(c))
            .map_or(0, Class::exit_code)
    }
}
