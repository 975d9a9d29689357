//! Rows to training examples: tokens with a loss mask, preference pairs, text chunks.

use crate::chat::TrainOn;
use crate::dataset::Record;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// What happens to an example longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    #[default]
    Error,
    Truncate,
    Drop,
}

/// How rows become examples.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// In tokens.
    pub max_length: usize,
    pub overlong: Overlong,
}

/// A sequence: `mask[i]` says that log p(tokens[i] | tokens[..i]) enters the loss. `mask[0]` is
/// always false.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub tokens: Vec<u32>,
    pub mask: Vec<bool>,
}

/// A preference pair: a shared prefix (never masked) and two branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    pub prefix: Vec<u32>,
    pub chosen: Example,
    pub rejected: Example,
}

/// What was left out or cut, for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    pub kept: u64,
    pub truncated: u64,
    pub dropped: u64,
}

/// A row of any supervised kind as one example. `None`: dropped as overlong, counted.
pub fn sft(_record: &Record, _tokenizer: &Tokenizer, _train_on: TrainOn, _limits: &Limits, _counts: &mut Counts) -> Result<Option<Example>> {
    todo!()
}

/// A preference row as a pair. `None`: dropped as overlong, counted.
pub fn preference(_record: &Record, _tokenizer: &Tokenizer, _limits: &Limits, _counts: &mut Counts) -> Result<Option<Pair>> {
    todo!()
}

/// The prompt tokens of a row for `generate` (`prompt`, `tokens` or `messages`).
pub fn prompt(_record: &Record, _tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    todo!()
}
