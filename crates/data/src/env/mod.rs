//! Environments: tasks with a reward, multi-turn from the start.

use crate::dataset::Dataset;
use crate::error::Result;
use crate::message::Message;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// Which tasks: the two are disjoint for generated tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    Train,
    /// Held out: what `evaluate` and validation use.
    Test,
}

/// One task: what an episode starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Identifies the problem (equal for equal problems).
    pub id: String,
    /// Name of the environment it belongs to (the member's, in a mixture): metrics are per task
    /// kind and never only pooled.
    pub environment: String,
    pub messages: Vec<Message>,
    /// What the environment needs to grade: explicit, so that episodes can be resumed anywhere.
    pub state: Value,
}

/// A completed turn of an episode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    pub completion: String,
    pub observation: Vec<Message>,
}

/// What a completion led to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Messages the policy sees next; empty when done.
    pub observation: Vec<Message>,
    /// Reward by named component. The episode's reward is the weighted sum over its steps.
    pub rewards: Vec<(String, f64)>,
    pub done: bool,
}

/// Pure: every result depends on the arguments only.
pub trait Environment: Send + Sync {
    fn name(&self) -> &str;

    /// Task `index` of a split. Generated tasks are endless; data-driven ones take row
    /// `index` of a seeded order over the rows (an epoch after the other).
    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task>;

    /// What the environment says to `completion`, given the turns before it.
    fn step(&self, task: &Task, turns: &[Turn], completion: &str) -> Result<Step>;

    /// Number of distinct tasks of a split, where that is fixed by data.
    fn len(&self, _split: Split) -> Option<usize> {
        None
    }

    /// The most completions an episode can have.
    fn max_turns(&self) -> usize {
        1
    }

    /// Names of the reward components, and whether each counts as `accuracy` is by convention:
    /// component `correct` in 0..=1 is what `evaluate` reports as accuracy.
    fn components(&self) -> Vec<&'static str> {
        vec!["correct"]
    }
}

/// A kind of environment: one file and one line in [`ENVIRONMENTS`] each.
pub struct Kind {
    pub name: &'static str,
    /// One line for `recipe schema` and errors.
    pub about: &'static str,
    /// Whether it takes its tasks from a data input.
    pub needs_data: bool,
    pub build: fn(options: &Value, data: Option<Arc<Dataset>>) -> Result<Arc<dyn Environment>>,
}

pub static ENVIRONMENTS: &[Kind] = &[];

/// Builds what a recipe's `environment` says: a name (`"addition"`), a table with options
/// (`{ name = "addition", digits = 2 }`), or a list of them mixed by `weight`. Options are
/// checked here: unknown ones are errors that name the nearest.
pub fn build(_config: &Value, _data: Option<Arc<Dataset>>) -> Result<Arc<dyn Environment>> {
    todo!()
}

/// Checks a recipe's `environment` without data (for `recipe check`): names and options.
/// Returns whether any of them needs a data input.
pub fn check(_config: &Value) -> Result<bool> {
    todo!()
}
