//! `regex`: a completion is right where a pattern matches it.

use super::options::Options;
use super::rows::{self, Rows};
use super::{Data, Environment, Kind, Split, Step, Task, Turn};
use crate::error::{Error, Result};
use serde_json::json;
use std::sync::Arc;

pub(super) const KIND: Kind = Kind {
    name: "regex",
    about: "prompts from data; the completion must match a pattern",
    options: &[
        rows::OPTIONS[0],
        (
            "pattern",
            "the pattern; where not set, each row's reference is its pattern",
        ),
        (
            "full",
            "whether the whole completion must match (default false)",
        ),
        rows::OPTIONS[1],
        rows::OPTIONS[2],
        rows::OPTIONS[3],
    ],
    data: Data::Required,
    passes_options: false,
    build: |options| Ok(Arc::new(Matches::from_options(&options)?)),
};

struct Matches {
    rows: Rows,
    pattern: Option<regex::Regex>,
    full: bool,
}

impl Matches {
    fn from_options(options: &Options) -> Result<Matches> {
        let full = options.flag("full", false)?;
        let pattern = match options.optional_text("pattern")? {
            Some(pattern) => Some(compile(&pattern, full)?),
            None => None,
        };
        Ok(Matches {
            rows: Rows::from_options(options)?,
            pattern,
            full,
        })
    }
}

fn compile(pattern: &str, full: bool) -> Result<regex::Regex> {
    let whole = format!(r"\A(?:{pattern})\z");
    let compiled = regex::Regex::new(if full { &whole } else { pattern });
    compiled.map_err(|e| {
        let cause = e.to_string();
        let cause = cause
            .lines()
            .last()
            .unwrap_or("")
            .trim_start_matches("error: ");
        Error::Environment(format!("regex: pattern '{pattern}' is not valid: {cause}"))
    })
}

impl Environment for Matches {
    fn name(&self) -> &str {
        KIND.name
    }

    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task> {
        let (row, record) = self.rows.record(split, index, seed)?;
        match &self.pattern {
            // A question needs no reference then.
            Some(_) => self.rows.prompt(KIND.name, row, &record),
            None => {
                let (mut task, pattern) = self.rows.task(KIND.name, row, &record)?;
                compile(&pattern, self.full)
                    .map_err(|e| Error::row(&record.place, e.to_string()))?;
                task.state = json!({"pattern": pattern});
                Ok(task)
            }
        }
    }

    fn step(&self, task: &Task, _turns: &[Turn], completion: &str) -> Result<Step> {
        let right = match &self.pattern {
            Some(pattern) => pattern.is_match(completion),
            None => {
                let pattern = super::text_state(KIND.name, task, "pattern")?;
                compile(pattern, self.full)?.is_match(completion)
            }
        };
        Ok(Step::done(&[(super::CORRECT, f64::from(right))]))
    }

    fn len(&self, _split: Split) -> Option<u64> {
        Some(self.rows.len())
    }
}
