//! Events out: the runner tells what happens; subscribers render and record it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use spec::assertion::Judged;

use crate::error::AttemptError;
use crate::outcome::Status;

/// Version of the event lines (`--events`, `events.jsonl`, `--json`).
pub const VERSION: u32 = 1;

/// Something that happened in a run; one JSON object per line when recorded.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    RunStarted {
        version: u32,
        run: String,
        recipe: String,
        stages: Vec<String>,
    },
    /// A source was pinned, or its content changed since `recipe.lock` was written.
    Source {
        source: String,
        digest: String,
        text: String,
    },
    /// A stage will run, and why.
    StageQueued { stage: String, why: String },
    /// Another runner computes this key; its result is waited for.
    StageWaiting { stage: String, owner: String },
    AttemptStarted {
        stage: String,
        attempt: u32,
        key: String,
        reason: String,
        log: String,
    },
    /// What the worker computes on.
    Numerics {
        stage: String,
        attempt: u32,
        numerics: serde_json::Value,
    },
    Resumed {
        stage: String,
        attempt: u32,
        step: u64,
    },
    Progress {
        stage: String,
        attempt: u32,
        step: u64,
        total: Option<u64>,
        /// Seconds left, from the pace of this attempt.
        eta_seconds: Option<f64>,
    },
    Metrics {
        stage: String,
        attempt: u32,
        step: u64,
        #[serde(deserialize_with = "spec::job::numbers")]
        metrics: BTreeMap<String, f64>,
    },
    Checkpoint {
        stage: String,
        attempt: u32,
        step: u64,
    },
    Message {
        stage: Option<String>,
        level: String,
        text: String,
    },
    /// An attempt ended without a result.
    AttemptFailed {
        stage: String,
        attempt: u32,
        error: AttemptError,
        /// The last lines of the attempt's log.
        tail: Vec<String>,
        log: String,
        retry: bool,
    },
    /// A stage reached its last state.
    StageFinished {
        stage: String,
        status: Status,
        attempt: Option<u32>,
        key: Option<String>,
        outputs: BTreeMap<String, String>,
        #[serde(deserialize_with = "spec::job::numbers")]
        metrics: BTreeMap<String, f64>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        verdicts: Vec<Judged>,
        seconds: f64,
        message: Option<String>,
    },
    RunFinished {
        run: String,
        exit_code: u8,
        seconds: f64,
    },
}

impl Report {
    /// The stage and attempt that it tells of: the attempt lived then.
    pub(crate) fn of_attempt(&self) -> Option<(&str, u32)> {
        match self {
            Report::AttemptStarted { stage, attempt, .. }
            | Report::Numerics { stage, attempt, .. }
            | Report::Resumed { stage, attempt, .. }
            | Report::Progress { stage, attempt, .. }
            | Report::Metrics { stage, attempt, .. }
            | Report::Checkpoint { stage, attempt, .. }
            | Report::AttemptFailed { stage, attempt, .. } => Some((stage, *attempt)),
            _ => None,
        }
    }
}

/// A subscriber. Called from the run's main thread only, in order.
pub trait Reporter {
    fn report(&mut self, event: &Report);
}

/// Drops every event.
pub struct Silent;

impl Reporter for Silent {
    fn report(&mut self, _: &Report) {}
}
