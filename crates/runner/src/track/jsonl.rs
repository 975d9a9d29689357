//! `[track.jsonl]`: one line for each step and each stage that ended, of all runs, in one file.
//!
//! `{"time", "run", "recipe", "stage", "step", "metrics"}`, or `"status"` instead of `"step"`;
//! what is no number is null.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use spec::track::Track;

use super::{About, Failure, Record, Tracker, What};

struct JsonLines {
    file: File,
    about: Arc<About>,
}

pub fn start(track: &Track, about: &Arc<About>) -> Option<Result<Box<dyn Tracker>, String>> {
    let path = about.folder.join(&track.jsonl.as_ref()?.path);
    let opened = OpenOptions::new().append(true).create(true).open(&path);
    Some(match opened {
        Ok(file) => Ok(Box::new(JsonLines {
            file,
            about: Arc::clone(about),
        })),
        Err(e) => Err(format!("cannot write '{}': {e}", path.display())),
    })
}

impl Tracker for JsonLines {
    fn send(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        let mut lines = Vec::new();
        for record in records {
            let mut line = json!({
                "time": record.time, "run": self.about.run, "recipe": self.about.recipe,
                "stage": record.stage,
            });
            let mut set = |field: &str, value: Value| line[field] = value;
            match &record.what {
                What::Step { step, metrics } => {
                    set("step", json!(step));
                    set("metrics", json!(metrics));
                }
                What::Finished {
                    status, metrics, ..
                } => {
                    set("status", json!(status));
                    set("metrics", json!(metrics));
                }
                What::Started { .. } | What::RunFinished { .. } => continue,
            }
            lines.extend(line.to_string().into_bytes());
            lines.push(b'\n');
        }
        // one write: lines of runs at once do not mix. A part of it cannot be taken back, so there
        // is no second try.
        let written = self.file.write_all(&lines);
        written.map_err(|e| Failure::Never(format!("cannot write: {e}")))
    }
}
