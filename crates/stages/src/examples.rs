//! Rows of data as units of training, and what was left out on the way.

use data::Tokenizer;
use data::chat::TrainOn;
use data::example::{self, Counts, Example, Limits, Pair};
use spec::kinds;
use train::{Branch, Policy, Unit};

use crate::failure::{Failure, Result};
use crate::report::Metrics;
use crate::stage::Stage;

/// Units in the order of their rows.
#[derive(Default)]
pub struct Examples {
    pub items: Vec<Unit>,
    /// The row of each item.
    pub rows: Vec<usize>,
    pub counts: Counts,
    /// Tokens that stand for text without a token of its own.
    unknown: usize,
}

impl Examples {
    /// Refuses data of which nothing is left.
    pub fn required(self, input: &str) -> Result<Examples> {
        if !self.items.is_empty() {
            return Ok(self);
        }
        Err(Failure::data(
            format!(
                "input '{input}' has no example to train on: {} rows were dropped as longer than max_length",
                self.counts.dropped
            ),
            "raise `max_length`",
        ))
    }

    /// What became of the rows, as metrics `data/examples`, `data/truncated`, `data/dropped` and
    /// `data/unknown_tokens`.
    pub fn metrics(&self) -> Metrics {
        Metrics::from([
            ("data/examples".into(), self.counts.kept as f64),
            ("data/truncated".into(), self.counts.truncated as f64),
            ("data/dropped".into(), self.counts.dropped as f64),
            ("data/unknown_tokens".into(), self.unknown as f64),
        ])
    }

    /// Counts unknown tokens, and warns of them: what they stand for is lost to the model.
    fn look_for_unknown(mut self, stage: &Stage, input: &str, tokenizer: &Tokenizer) -> Examples {
        let Some(unk) = tokenizer.unk() else {
            return self;
        };
        let (mut all, mut rows) = (0, 0);
        for unit in &self.items {
            let tokens = unit.branches.iter().flat_map(|b| &b.tokens);
            let before = self.unknown;
            for token in tokens.chain(&unit.prefix) {
                all += 1;
                self.unknown += usize::from(*token == unk);
            }
            rows += usize::from(self.unknown > before);
        }
        if self.unknown > 0 {
            let token = tokenizer.id_to_token(unk).unwrap_or_default();
            stage.report.warn(format!(
                "input '{input}': {} of {all} tokens, in {rows} examples, are '{token}': the \
                 tokenizer has no token for that text (an alphabet too small?)",
                self.unknown
            ));
        }
        self
    }

    fn add(&mut self, row: usize, unit: Unit) {
        self.items.push(unit);
        self.rows.push(row);
    }
}

/// The rows of an input as sequences to train on; none where the input is not given.
pub fn sequences(
    stage: &Stage,
    input: &str,
    tokenizer: &Tokenizer,
    train_on: TrainOn,
    limits: &Limits,
) -> Result<Examples> {
    let mut examples = Examples::default();
    let Some(dataset) = stage.dataset(input)? else {
        return Ok(examples);
    };
    for (row, record) in dataset.records().enumerate() {
        let counts = &mut examples.counts;
        for example in example::sft(&record?, tokenizer, train_on, limits, counts)? {
            examples.add(row, sequence(example));
        }
    }
    Ok(examples.look_for_unknown(stage, input, tokenizer))
}

/// The rows of an input as preference pairs; none where the input is not given.
pub fn pairs(
    stage: &Stage,
    input: &str,
    tokenizer: &Tokenizer,
    limits: &Limits,
) -> Result<Examples> {
    let mut examples = Examples::default();
    let Some(dataset) = stage.dataset(input)? else {
        return Ok(examples);
    };
    for (row, record) in dataset.records().enumerate() {
        let counts = &mut examples.counts;
        if let Some(pair) = example::preference(&record?, tokenizer, limits, counts)? {
            examples.add(row, preference(pair));
        }
    }
    Ok(examples.look_for_unknown(stage, input, tokenizer))
}

/// A pair as a unit: the prompt, then chosen and rejected.
pub fn preference(pair: Pair) -> Unit {
    Unit {
        prefix: pair.prefix,
        branches: vec![branch(pair.chosen), branch(pair.rejected)],
        ..Unit::default()
    }
}

/// A sequence as a unit.
pub fn sequence(example: Example) -> Unit {
    Unit {
        branches: vec![branch(example)],
        ..Unit::default()
    }
}

fn branch(example: Example) -> Branch {
    Branch {
        tokens: example.tokens,
        mask: example.mask,
    }
}

/// The sum of the log-probabilities of each branch's masked tokens, by unit. Many units at a
/// time, in bounded memory.
pub fn sums(policy: &Policy, units: &[Unit]) -> Result<Vec<Vec<f64>>> {
    let mut all = Vec::with_capacity(units.len());
    for part in units.chunks(256) {
        for unit in policy.logprobs(part)? {
            let sum = |branch: &Vec<f32>| branch.iter().map(|lp| f64::from(*lp)).sum();
            all.push(unit.iter().map(sum).collect());
        }
    }
    Ok(all)
}

/// The recipe's word in the terms of `data`.
pub fn overlong(choice: kinds::Overlong) -> example::Overlong {
    match choice {
        kinds::Overlong::Truncate => example::Overlong::Truncate,
        kinds::Overlong::Drop => example::Overlong::Drop,
    }
}

/// The recipe's word in the terms of `data`.
pub fn train_on(choice: kinds::TrainOn) -> TrainOn {
    match choice {
        kinds::TrainOn::Assistant => TrainOn::Assistant,
        kinds::TrainOn::Last => TrainOn::Last,
        kinds::TrainOn::All => TrainOn::All,
    }
}
