//! Environments: tasks with a reward, multi-turn from the start.
//!
//! An environment is one file and one line in [`ENVIRONMENTS`].

mod addition;
mod exact_match;
mod math;
mod mixture;
mod options;
mod regex;
mod rows;
mod two_turn;

pub use addition::{Addition, Problem};
pub use options::{build, check};

use crate::dataset::Dataset;
use crate::error::{Error, Result, quote};
use crate::message::Message;
use options::Options;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;

/// Which tasks. Generated tasks of the two are disjoint; those from data are the rows given.
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
    /// Name of the environment it belongs to (the member's, in a mixture), by which metrics are
    /// told apart.
    pub environment: String,
    pub messages: Vec<Message>,
    /// What the environment needs to grade: explicit, so that an episode can go on anywhere.
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
    /// Reward by named component. An episode's components are sums over its steps; its reward is
    /// the sum of its components.
    pub rewards: Vec<(String, f64)>,
    pub done: bool,
}

impl Step {
    /// The last step of an episode.
    fn done(rewards: &[(&str, f64)]) -> Step {
        Step {
            observation: Vec::new(),
            rewards: rewards.iter().map(|(n, r)| (n.to_string(), *r)).collect(),
            done: true,
        }
    }
}

/// Pure: every result depends on the arguments only.
pub trait Environment: Send + Sync {
    /// The name by which a recipe asks for it.
    fn name(&self) -> &str;

    /// Task `index` of a split. Generated tasks are endless; data-driven ones take rows in a
    /// seeded order, one epoch after the other (the test split: in the order of the file).
    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task>;

    /// What the environment says to `completion`, given the turns before it.
    fn step(&self, task: &Task, turns: &[Turn], completion: &str) -> Result<Step>;

    /// Number of distinct tasks of a split, where that is known.
    fn len(&self, _split: Split) -> Option<u64> {
        None
    }

    /// Never: an environment without tasks is not built.
    fn is_empty(&self) -> bool {
        false
    }

    /// The most completions an episode can have.
    fn max_turns(&self) -> usize {
        1
    }

    /// Names of the reward components. `correct`, 1 or 0, is what `accuracy` averages.
    fn components(&self) -> Vec<&'static str> {
        vec![CORRECT]
    }

    /// The answer in a form that is equal for equal answers: what a majority vote (cons@k)
    /// counts. `None` where the completion has no answer.
    fn canonical(&self, _task: &Task, completion: &str) -> Option<String> {
        let answer = completion.trim();
        (!answer.is_empty()).then(|| answer.to_string())
    }
}

/// The component that says whether an episode ended with the right answer.
pub const CORRECT: &str = "correct";

/// A kind of environment.
pub struct Kind {
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Options with one line of help each.
    pub options: &'static [(&'static str, &'static str)],
    pub data: Data,
    /// Whether other options are those of an environment that this one is built over.
    passes_options: bool,
    build: fn(Options) -> Result<Arc<dyn Environment>>,
}

/// Whether a kind takes its tasks from a data input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Generates its own.
    None,
    Required,
    /// Generates its own where there is none.
    Optional,
}

pub static ENVIRONMENTS: &[Kind] = &[
    addition::KIND,
    exact_match::KIND,
    math::KIND,
    regex::KIND,
    two_turn::KIND,
];

/// Rows that a data-driven environment draws from.
pub type Rows = Option<Arc<Dataset>>;

/// A task that was not made by the environment it is given to.
fn bad_state(environment: &str, task: &Task) -> Error {
    Error::Environment(format!(
        "{environment}: task '{}' was not made by this environment (state {})",
        task.id,
        quote(&task.state)
    ))
}

fn text_state<'t>(environment: &str, task: &'t Task, field: &str) -> Result<&'t str> {
    (task.state[field].as_str()).ok_or_else(|| bad_state(environment, task))
}
