//! `exact_match`: questions whose answer must be given word for word.

use super::options::Options;
use super::rows::{self, Rows};
use super::{Data, Environment, Kind, Split, Step, Task, Turn};
use crate::error::Result;
use crate::grade;
use serde_json::json;
use std::sync::Arc;

pub(super) const KIND: Kind = Kind {
    name: "exact_match",
    about: "questions from data; the completion must equal the reference, outer spaces aside",
    options: &[
        rows::OPTIONS[0],
        rows::OPTIONS[1],
        rows::OPTIONS[2],
        rows::OPTIONS[3],
        ("ignore_case", "whether case is set aside (default false)"),
    ],
    data: Data::Required,
    passes_options: false,
    build: |options| Ok(Arc::new(ExactMatch::from_options(&options)?)),
};

struct ExactMatch {
    rows: Rows,
    ignore_case: bool,
}

impl ExactMatch {
    fn from_options(options: &Options) -> Result<ExactMatch> {
        let ignore_case = options.flag("ignore_case", false)?;
        Ok(ExactMatch {
            rows: Rows::from_options(options)?,
            ignore_case,
        })
    }
}

impl Environment for ExactMatch {
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
        let right = grade::exact_match(completion, answer, self.ignore_case);
        Ok(Step::done(&[(super::CORRECT, f64::from(right))]))
    }

    fn len(&self, _split: Split) -> Option<u64> {
        Some(self.rows.len())
    }

    fn canonical(&self, _task: &Task, completion: &str) -> Option<String> {
        let answer = match self.ignore_case {
            true => completion.trim().to_lowercase(),
            false => completion.trim().to_string(),
        };
        (!answer.is_empty()).then_some(answer)
    }
}
