//! `math`: questions with a mathematical answer, as in GSM8K.

use super::options::Options;
use super::rows::Rows;
use super::{Data, Environment, Kind, Split, Step, Task, Turn};
use crate::error::Result;
use crate::grade;
use serde_json::json;
use std::sync::Arc;

pub(super) const KIND: Kind = Kind {
    name: "math",
    about: "questions from data, graded by the value of the final answer",
    options: &super::rows::OPTIONS,
    data: Data::Required,
    passes_options: false,
    build: |options| Ok(Arc::new(Math::from_options(&options)?)),
};

struct Math {
    rows: Rows,
}

impl Math {
    fn from_options(options: &Options) -> Result<Math> {
        Ok(Math {
            rows: Rows::from_options(options)?,
        })
    }
}

impl Environment for Math {
    fn name(&self) -> &str {
        KIND.name
    }

    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task> {
        let (row, record) = self.rows.record(split, index, seed)?;
        let (mut task, answer) = self.rows.task(KIND.name, row, &record)?;
        task.state = json!({"answer": answer});
        Ok(task)
    }

    fn step(&self, task: &Task, _turns: &[Turn], completion: &str) -> Result<Step> {
        let answer = super::text_state(KIND.name, task, "answer")?;
        let right = grade::math(completion, answer);
        Ok(Step::done(&[(super::CORRECT, f64::from(right))]))
    }

    fn len(&self, _split: Split) -> Option<u64> {
        Some(self.rows.len())
    }

    fn canonical(&self, _task: &Task, completion: &str) -> Option<String> {
        grade::canonical(completion)
    }
}
