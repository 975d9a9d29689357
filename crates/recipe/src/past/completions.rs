//! What models said: rows of `completions.jsonl`, as `evaluate` and `generate` write them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// One completion, or the turns of one episode.
#[derive(Deserialize)]
pub struct Completion {
    #[serde(default)]
    task: Value,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    completions: Vec<String>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    tokens: Vec<Value>,
    #[serde(default)]
    pub rewards: BTreeMap<String, f64>,
    #[serde(default)]
    finish_reason: Value,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    role: String,
    #[serde(default)]
    content: Value,
}

impl Completion {
    /// The rows of a file; a line that is none is passed over.
    pub fn read(file: &[u8]) -> Vec<Completion> {
        file.split(|b| *b == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()
    }

    /// What was asked: the messages, else the task's name.
    pub fn asked(&self) -> String {
        let said = |m: &Message| match (&m.content, self.messages.len()) {
            (Value::String(text), 1) => text.clone(),
            (Value::String(text), _) => format!("{}: {text}", m.role),
            (other, _) => format!("{}: {other}", m.role),
        };
        match (&self.task, self.messages.is_empty()) {
            (_, false) => self
                .messages
                .iter()
                .map(said)
                .collect::<Vec<_>>()
                .join("\n"),
            (Value::Null, true) => String::new(),
            (Value::String(name), true) => name.clone(),
            (other, true) => other.to_string(),
        }
    }

    /// What the model said, turn by turn.
    pub fn turns(&self) -> Vec<&str> {
        match self.completions.is_empty() {
            true => vec![&self.text],
            false => self.completions.iter().map(String::as_str).collect(),
        }
    }

    /// Tokens that were sampled.
    pub fn length(&self) -> usize {
        // one list, or one for each turn
        let of = |token: &Value| token.as_array().map_or(1, Vec::len);
        self.tokens.iter().map(of).sum()
    }

    /// `stop`, `length`, or what else ended it.
    pub fn ended_by(&self) -> &str {
        self.finish_reason.as_str().unwrap_or_default()
    }
}
