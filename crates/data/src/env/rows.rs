//! Tasks from the rows of a dataset.

use super::options::Options;
use super::{Split, Task};
use crate::dataset::{Content, Dataset, Record, Row};
use crate::error::{Error, Result, quote};
use crate::message::Message;
use crate::order::Order;
use serde_json::Value;
use std::sync::{Arc, Mutex};

/// Options of every data-driven environment.
pub const OPTIONS: [(&str, &str); 4] = [
    (
        "question",
        "field with the question (default: question, problem, prompt or messages)",
    ),
    (
        "answer",
        "field with the reference (default: answer, solution, target or completion)",
    ),
    ("system", "a system message before every question"),
    ("instruction", "text after every question"),
];

const QUESTIONS: [&str; 4] = ["question", "problem", "prompt", "messages"];
const ANSWERS: [&str; 4] = ["answer", "solution", "target", "completion"];

/// Questions with references, taken from a dataset.
pub struct Rows {
    data: Arc<Dataset>,
    question: Option<String>,
    answer: Option<String>,
    system: Option<String>,
    instruction: Option<String>,
    /// The train order of the seed asked for last: only a cache.
    order: Mutex<Option<(u64, Arc<Order>)>>,
}

impl Rows {
    pub fn from_options(options: &Options) -> Result<Rows> {
        let (question, answer) = (
            options.optional_text("question")?,
            options.optional_text("answer")?,
        );
        let (system, instruction) = (
            options.optional_text("system")?,
            options.optional_text("instruction")?,
        );
        Ok(Rows {
            data: options.data()?,
            question,
            answer,
            system,
            instruction,
            order: Mutex::new(None),
        })
    }

    pub fn len(&self) -> u64 {
        self.data.len() as u64
    }

    /// The record of a task: train rows in a seeded order, test rows as they come.
    pub fn record(&self, split: Split, index: u64, seed: u64) -> Result<(usize, Record)> {
        let row = match split {
            Split::Test => (index % self.len()) as usize,
            Split::Train => self.order(seed).at(index),
        };
        Ok((row, self.data.record(row)?))
    }

    fn order(&self, seed: u64) -> Arc<Order> {
        let mut cached = self.order.lock().unwrap_or_else(|e| e.into_inner());
        match &*cached {
            Some((of, order)) if *of == seed => order.clone(),
            _ => {
                let order = Arc::new(Order::new(self.data.len(), seed));
                *cached = Some((seed, order.clone()));
                order
            }
        }
    }

    /// The task of a record, with its reference answer (not yet in the task's state).
    pub fn task(&self, environment: &str, row: usize, record: &Record) -> Result<(Task, String)> {
        let (messages, last) = self.question(record)?;
        let answer = match (self.answer(record)?, last) {
            (Some(answer), _) => answer,
            (None, Some(last)) => last,
            (None, None) => {
                return Err(Error::row(
                    &record.place,
                    format!(
                        "no reference answer in fields [{}]; set the environment's option answer \
                         to the field that has it",
                        fields(record)
                    ),
                ));
            }
        };
        Ok((self.dressed(environment, row, messages), answer))
    }

    /// The task of a record that needs no reference.
    pub fn prompt(&self, environment: &str, row: usize, record: &Record) -> Result<Task> {
        let (messages, _) = self.question(record)?;
        Ok(self.dressed(environment, row, messages))
    }

    fn dressed(&self, environment: &str, row: usize, mut messages: Vec<Message>) -> Task {
        if let (Some(text), Some(message)) = (&self.instruction, messages.last_mut()) {
            let joined = format!("{}{text}", message.text());
            message.0.insert("content".into(), joined.into());
        }
        if let Some(system) = &self.system {
            messages.insert(0, Message::new("system", system.as_str()));
        }
        Task {
            id: format!("row {}", row + 1),
            environment: environment.into(),
            messages,
            state: Value::Null,
        }
    }

    /// The question's messages; of a conversation that ends in an assistant message, that message
    /// apart.
    fn question(&self, record: &Record) -> Result<(Vec<Message>, Option<String>)> {
        let name = match &self.question {
            Some(name) => Some(name.as_str()),
            None => QUESTIONS
                .into_iter()
                .find(|f| record.value.contains_key(*f)),
        };
        let value = name.and_then(|name| Some((name, record.value.get(name)?)));
        let Some((name, value)) = value else {
            return Err(Error::row(
                &record.place,
                format!(
                    "no question in fields [{}]; set the environment's option question to the \
                     field that has it",
                    fields(record)
                ),
            ));
        };
        match value {
            Value::String(text) => Ok((vec![Message::user(text.as_str())], None)),
            Value::Array(_) => {
                // Checked as a prompt of messages, by the one reader of rows.
                let mut only = serde_json::Map::new();
                only.insert("prompt".into(), value.clone());
                let row = Record {
                    value: only,
                    place: record.place.clone(),
                };
                let Row::Prompt {
                    prompt: Content::Messages(mut messages),
                    ..
                } = row.parse()?
                else {
                    return Err(Error::row(
                        &record.place,
                        format!("{name} holds no messages"),
                    ));
                };
                let ends = messages.last().is_some_and(|m| m.role() == "assistant");
                let last = (ends && messages.len() > 1)
                    .then(|| messages.pop().map(|m| m.text()))
                    .flatten();
                Ok((messages, last))
            }
            other => Err(Error::row(
                &record.place,
                format!("{name} must be a string or messages, got {}", quote(other)),
            )),
        }
    }

    fn answer(&self, record: &Record) -> Result<Option<String>> {
        let name = match &self.answer {
            Some(name) => Some(name.as_str()),
            None => ANSWERS.into_iter().find(|f| record.value.contains_key(*f)),
        };
        let Some(value) = name.and_then(|name| record.value.get(name)) else {
            return match &self.answer {
                Some(name) => Err(Error::row(
                    &record.place,
                    format!("no field '{name}' in [{}]", fields(record)),
                )),
                None => Ok(None),
            };
        };
        match value {
            Value::String(text) => Ok(Some(text.clone())),
            Value::Number(n) => Ok(Some(n.to_string())),
            Value::Bool(b) => Ok(Some(b.to_string())),
            // A completion of messages: what the last one says.
            Value::Array(items) => Ok(items
                .last()
                .and_then(|m| m.get("content")?.as_str())
                .map(str::to_string)),
            other => Err(Error::row(
                &record.place,
                format!(
                    "the reference must be text or a number, got {}",
                    quote(other)
                ),
            )),
        }
    }
}

fn fields(record: &Record) -> String {
    let names: Vec<&str> = record.value.keys().map(String::as_str).collect();
    names.join(", ")
}
