//! Metrics of a `command` stage: JSON lines that it appends to the file `$METRICS`.
//!
//! | line | what |
//! |---|---|
//! | `{"step": 3, "loss": 0.5}` | metrics of a step |
//! | `{"accuracy": 0.8}` | metrics of the stage's summary; of two with one name, the later counts |
//!
//! A number that is not finite may be written as null, or as Python writes it (`NaN`, `Infinity`). Anything else that is
//! no number makes the stage fail: what was meant to be judged must not be lost.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use spec::Event;

use crate::error::{AttemptError, Class};
use crate::launch::{Gang, Happening};

/// The file's name in an attempt's directory.
pub const FILE: &str = "metrics.jsonl";

/// Reads the file as it grows.
pub struct Emitted {
    path: PathBuf,
    /// Bytes that were read.
    at: u64,
    lines: usize,
    /// The begin of a line that has no end yet.
    begun: Vec<u8>,
    summary: BTreeMap<String, f64>,
    /// The first line that says nothing.
    wrong: Option<String>,
}

impl Emitted {
    pub fn new(root: &Path) -> Emitted {
        Emitted {
            path: root.join(FILE),
            at: 0,
            lines: 0,
            begun: Vec::new(),
            summary: BTreeMap::new(),
            wrong: None,
        }
    }

    /// Metrics of steps since the last look.
    fn look(&mut self) -> Vec<Event> {
        let mut fresh = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut fresh)
        });
        match read {
            Ok(n) => self.at += n as u64,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => self.complain(format!("cannot be read: {e}")),
        }
        let mut events = Vec::new();
        for byte in fresh {
            if byte != b'\n' {
                self.begun.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.begun);
            events.extend(self.line(&line));
        }
        events
    }

    /// What is left when the process has ended: metrics of steps, and the summary.
    ///
    /// # Errors
    /// Where a line is no metrics.
    pub fn rest(mut self) -> Result<(Vec<Event>, BTreeMap<String, f64>), AttemptError> {
        let mut events = self.look();
        let line = std::mem::take(&mut self.begun);
        events.extend(self.line(&line));
        match self.wrong {
            None => Ok((events, self.summary)),
            Some(what) => Err(AttemptError {
                help: Some(
                    "write a JSON object of numbers on each line: {\"step\": 3, \"loss\": 0.5}"
                        .into(),
                ),
                ..AttemptError::new(Class::Failed, format!("what it wrote to $METRICS {what}"))
            }),
        }
    }

    fn line(&mut self, line: &[u8]) -> Option<Event> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        self.lines += 1;
        let at = self.lines;
        match parse(line) {
            Ok((Some(step), metrics)) => return Some(Event::Metrics { step, metrics }),
            Ok((None, metrics)) => self.summary.extend(metrics),
            Err(why) => self.complain(format!("is wrong in line {at}: {why}")),
        }
        None
    }

    fn complain(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}

/// A line's step, if it has one, and its numbers.
fn parse(line: &[u8]) -> Result<(Option<u64>, BTreeMap<String, f64>), String> {
    let text = String::from_utf8_lossy(line);
    let object: Map<String, Value> = serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(&finite(&text)))
        .map_err(|e| format!("{e}: {}", text.trim()))?;
    let mut step = None;
    let mut metrics = BTreeMap::new();
    for (name, value) in object {
        let number = match &value {
            Value::Null => f64::NAN,
            Value::Number(number) => number.as_f64().unwrap_or(f64::NAN),
            other => return Err(format!("'{name}' is {other}, not a number")),
        };
        if name == "step" {
            let whole = value.as_u64();
            step = Some(whole.ok_or_else(|| format!("'step' is {value}, not a whole number"))?);
        } else {
            metrics.insert(name, number);
        }
    }
    Ok((step, metrics))
}

/// JSON as Python writes it, with null for what is not finite.
fn finite(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut quoted, mut escaped) = (false, false);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"]
            .into_iter()
            .find(|word| !quoted && rest.starts_with(word));
        if let Some(word) = word {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = quoted && c == '\\' && !escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// A gang of one process whose metrics are looked for while it runs.
pub struct Telling<'a> {
    gang: Box<dyn Gang + 'a>,
    emitted: &'a mut Emitted,
    seen: VecDeque<Event>,
}

impl<'a> Telling<'a> {
    pub fn new(gang: Box<dyn Gang + 'a>, emitted: &'a mut Emitted) -> Telling<'a> {
        Telling {
            gang,
            emitted,
            seen: VecDeque::new(),
        }
    }
}

impl Gang for Telling<'_> {
    fn next(&mut self, wait: Duration) -> Option<Happening> {
        if self.seen.is_empty() {
            if let Some(happening) = self.gang.next(wait) {
                return Some(happening);
            }
            self.seen.extend(self.emitted.look());
        }
        let event = self.seen.pop_front()?;
        Some(Happening::Said { rank: 0, event })
    }

    fn signal(&mut self, signal: i32) {
        self.gang.signal(signal);
    }

    fn sweep(&mut self) -> usize {
        self.gang.sweep()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Line = (Option<u64>, Vec<(String, f64)>);

    fn metrics(text: &str) -> Result<Line, String> {
        parse(text.as_bytes()).map(|(step, all)| (step, all.into_iter().collect()))
    }

    #[test]
    fn lines_are_steps_or_summary() {
        let one = |name: &str, x: f64| vec![(name.to_owned(), x)];
        assert_eq!(
            metrics(r#"{"step": 3, "loss": 0.5}"#),
            Ok((Some(3), one("loss", 0.5)))
        );
        assert_eq!(
            metrics(r#"{"accuracy": 1}"#),
            Ok((None, one("accuracy", 1.0)))
        );
        for text in [
            r#"{"a NaN \" NaN": NaN}"#,
            r#"{"a NaN \" NaN": -Infinity}"#,
            r#"{"a NaN \" NaN": null}"#,
        ] {
            let (step, all) = metrics(text).unwrap();
            assert!(step.is_none() && all[0].0 == "a NaN \" NaN" && all[0].1.is_nan());
        }
        for bad in [
            "[1]",
            "loss 0.5",
            r#"{"a": "1"}"#,
            r#"{"a": true}"#,
            r#"{"step": 1.5}"#,
        ] {
            assert!(metrics(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_growing_file_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut emitted = Emitted::new(dir.path());
        assert!(emitted.look().is_empty());
        let write = |text: &str| {
            use std::io::Write;
            let file = File::options()
                .append(true)
                .create(true)
                .open(dir.path().join(FILE));
            file.unwrap().write_all(text.as_bytes()).unwrap();
        };
        write("{\"step\": 1, \"a\": 1}\n{\"step\": 2, ");
        assert_eq!(emitted.look().len(), 1);
        write("\"a\": 2}\n{\"b\": 3}");
        let (events, summary) = emitted.rest().unwrap();
        assert_eq!((events.len(), summary["b"]), (1, 3.0));
    }
}
