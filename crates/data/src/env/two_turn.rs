//! `two_turn`: an answer is checked, and a wrong one may be corrected once.

use super::options::Options;
use super::{Data, Environment, Kind, Split, Step, Task, Turn};
use crate::error::Result;
use crate::message::Message;
use std::sync::Arc;

pub(super) const KIND: Kind = Kind {
    name: "two_turn",
    about: "another environment whose wrong answers may be corrected once",
    options: &[
        (
            "over",
            "the environment (default: math where there is data, else addition); its options too",
        ),
        (
            "feedback",
            "what is said to a wrong answer (default \"wrong, try again\")",
        ),
        (
            "penalty",
            "taken off where the second try was needed (default 0.2)",
        ),
    ],
    data: Data::Optional,
    passes_options: true,
    build: |options| Ok(Arc::new(TwoTurn::from_options(options)?)),
};

struct TwoTurn {
    inner: Arc<dyn Environment>,
    feedback: String,
    penalty: f64,
}

/// Component: minus the penalty where the second try was needed.
const RETRY: &str = "retry";

impl TwoTurn {
    fn from_options(options: Options) -> Result<TwoTurn> {
        let feedback = options.text("feedback", "wrong, try again")?;
        let penalty = options.float("penalty", 0.2, 0.0, 1.0)?;
        let default = if options.has_data() {
            "math"
        } else {
            "addition"
        };
        Ok(TwoTurn {
            inner: options.inner(default)?.environment,
            feedback,
            penalty,
        })
    }
}

impl Environment for TwoTurn {
    fn name(&self) -> &str {
        KIND.name
    }

    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task> {
        let mut task = self.inner.task(split, index, seed)?;
        task.environment = KIND.name.into();
        Ok(task)
    }

    fn step(&self, task: &Task, turns: &[Turn], completion: &str) -> Result<Step> {
        // Each answer is graded as if it were the first.
        let mut graded = self.inner.step(task, &[], completion)?;
        let is_correct = |(name, value): &(String, f64)| name == super::CORRECT && *value == 1.0;
        let right = graded.rewards.iter().any(is_correct);
        if turns.is_empty() && !right {
            return Ok(Step {
                observation: vec![Message::user(self.feedback.as_str())],
                rewards: Vec::new(),
                done: false,
            });
        }
        let retry = if turns.is_empty() { 0.0 } else { -self.penalty };
        graded.rewards.push((RETRY.into(), retry));
        Ok(Step {
            observation: Vec::new(),
            done: true,
            ..graded
        })
    }

    fn len(&self, split: Split) -> Option<u64> {
        self.inner.len(split)
    }

    fn max_turns(&self) -> usize {
        2
    }

    fn components(&self) -> Vec<&'static str> {
        let mut names = self.inner.components();
        names.push(RETRY);
        names
    }

    fn canonical(&self, task: &Task, completion: &str) -> Option<String> {
        self.inner.canonical(task, completion)
    }
}
