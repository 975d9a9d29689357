//! `addition`: generated arithmetic that a tiny model can learn.

use super::options::Options;
use super::{Data, Environment, Kind, Split, Step, Task, Turn};
use crate::error::{Error, Result};
use crate::message::Message;
use crate::rng::Draw;
use serde_json::json;
use std::sync::Arc;

pub(super) const KIND: Kind = Kind {
    name: "addition",
    about: "generated arithmetic such as 12+34=; the answer is the exact number",
    options: &[
        ("digits", "most digits of an operand (default 2)"),
        ("min_digits", "fewest digits of an operand (default 1)"),
        ("operands", "most operands of a problem (default 2)"),
        ("min_operands", "fewest operands (default: operands)"),
        ("ops", "operators to draw from, of + - * (default \"+\")"),
        (
            "held_out",
            "share of all problems that only the test split has (default 0.1)",
        ),
    ],
    data: Data::None,
    passes_options: false,
    build: |options| Ok(Arc::new(Addition::from_options(&options)?)),
};

/// Problems like `12+34=`. The splits partition the problems by a hash of the problem, the same
/// for every seed; sums that differ only in the order of their operands fall on the same side.
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    /// Least and greatest operand.
    low: i64,
    high: i64,
    operands: (u64, u64),
    ops: Vec<char>,
    held_out: f64,
}

/// A problem and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// As in `12+34`.
    pub text: String,
    pub answer: i64,
}

/// Draws tried before a split counts as empty.
const TRIES: usize = 10_000;

impl Addition {
    /// Sums of two operands of 1 to `digits` digits (at most 6), a tenth of them held out.
    pub fn new(digits: u32) -> Addition {
        Addition {
            low: 0,
            high: 10i64.pow(digits.min(6)) - 1,
            operands: (2, 2),
            ops: vec!['+'],
            held_out: 0.1,
        }
    }

    fn from_options(options: &Options) -> Result<Addition> {
        let digits = options.integer("digits", 2, 1, 6)?;
        let min_digits = options.integer("min_digits", 1, 1, digits)?;
        let most = options.integer("operands", 2, 2, 8)?;
        let fewest = options.integer("min_operands", most, 2, most)?;
        let ops: Vec<char> = options.text("ops", "+")?.chars().collect();
        if ops.is_empty() || ops.iter().any(|op| !"+-*".contains(*op)) {
            return Err(Error::Environment(format!(
                "addition: ops must be some of + - *, got \"{}\"",
                ops.iter().collect::<String>()
            )));
        }
        if ops.contains(&'*') && digits * most > 18 {
            return Err(Error::Environment(format!(
                "addition: products of {most} operands of {digits} digits do not fit; lower digits \
                 or operands"
            )));
        }
        let low = match min_digits {
            1 => 0,
            n => 10i64.pow(n as u32 - 1),
        };
        Ok(Addition {
            low,
            high: 10i64.pow(digits as u32) - 1,
            operands: (fewest, most),
            ops,
            held_out: options.float("held_out", 0.1, 0.0, 0.9)?,
        })
    }

    /// Problem `index` of a split.
    pub fn problem(&self, split: Split, index: u64, seed: u64) -> Result<Problem> {
        let purpose = match split {
            Split::Train => "env.addition.train",
            Split::Test => "env.addition.test",
        };
        let mut draw = Draw::new(seed, purpose, 0, index);
        for _ in 0..TRIES {
            let count = draw.range(self.operands.0 as i64, self.operands.1 as i64);
            let numbers: Vec<i64> = (0..count)
                .map(|_| draw.range(self.low, self.high))
                .collect();
            let ops: Vec<char> = (1..count)
                .map(|_| self.ops[draw.below(self.ops.len() as u64) as usize])
                .collect();
            let problem = Problem::new(&numbers, &ops);
            if self.held(&numbers, &ops) == (split == Split::Test) {
                return Ok(problem);
            }
        }
        Err(Error::Environment(format!(
            "addition: no problem of the {split:?} split in {TRIES} draws with held_out = {}; \
             change held_out or give more digits",
            self.held_out
        )))
    }

    /// Whether the test split has a problem.
    fn held(&self, numbers: &[i64], ops: &[char]) -> bool {
        let mut numbers = numbers.to_vec();
        if ops.iter().all(|&op| op == '+') || ops.iter().all(|&op| op == '*') {
            numbers.sort_unstable();
        }
        let key = Problem::new(&numbers, ops).text;
        let hash = blake3::derive_key("recipe data::env addition split 1", key.as_bytes());
        let word = u64::from_le_bytes(hash[..8].try_into().expect("eight bytes"));
        (word >> 11) as f64 / (1u64 << 53) as f64 <= self.held_out && self.held_out > 0.0
    }
}

impl Problem {
    /// Operators bind as usual: products before sums.
    fn new(numbers: &[i64], ops: &[char]) -> Problem {
        let mut text = numbers[0].to_string();
        let (mut sum, mut term) = (0, numbers[0]);
        for (op, n) in ops.iter().zip(&numbers[1..]) {
            text.push(*op);
            text.push_str(&n.to_string());
            match op {
                '*' => term *= n,
                '-' => (sum, term) = (sum + term, -n),
                _ => (sum, term) = (sum + term, *n),
            }
        }
        Problem {
            text,
            answer: sum + term,
        }
    }

    /// What the user says.
    pub fn prompt(&self) -> String {
        format!("{}=", self.text)
    }
}

impl Environment for Addition {
    fn name(&self) -> &str {
        KIND.name
    }

    fn task(&self, split: Split, index: u64, seed: u64) -> Result<Task> {
        let problem = self.problem(split, index, seed)?;
        Ok(Task {
            id: problem.text.clone(),
            environment: KIND.name.into(),
            messages: vec![Message::user(problem.prompt())],
            state: json!({"answer": problem.answer}),
        })
    }

    fn step(&self, task: &Task, _turns: &[Turn], completion: &str) -> Result<Step> {
        let Some(answer) = task.state["answer"].as_i64() else {
            return Err(super::bad_state(KIND.name, task));
        };
        let right = completion.trim() == answer.to_string();
        Ok(Step::done(&[(super::CORRECT, f64::from(right))]))
    }
}
