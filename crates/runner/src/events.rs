//! What a gang's events become: reports, and what the result keeps of them.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::time::Instant;

use serde_json::{Map, Value};
use spec::Event;
use spec::assertion::Steps;

use crate::attempt::Note;
use crate::report::Report;

/// Turns a gang's events into reports and gathers what the result keeps.
pub struct Events<'a> {
    stage: &'a spec::Stage,
    tell: &'a Sender<Note>,
    attempt: u32,
    launcher: &'static str,
    /// Per range of steps: `{"from": step, ...}`.
    pub numerics: Vec<Value>,
    /// The summary of a stage that finished.
    pub metrics: Map<String, Value>,
    /// Metrics of the steps, this attempt's and those that it went on from.
    pub steps: Steps,
    from: u64,
    pace: Option<(u64, Instant)>,
}

impl<'a> Events<'a> {
    pub fn new(
        stage: &'a spec::Stage,
        tell: &'a Sender<Note>,
        attempt: u32,
        numerics: Vec<Value>,
        steps: Steps,
        launcher: &'static str,
    ) -> Events<'a> {
        Events {
            stage,
            tell,
            attempt,
            launcher,
            numerics,
            metrics: Map::new(),
            steps,
            from: 0,
            pace: None,
        }
    }

    pub fn take(&mut self, rank: usize, event: Event) {
        let (stage, attempt) = (self.stage.name.clone(), self.attempt);
        let report = match event {
            Event::Started { numerics, .. } => {
                let resources = &self.stage.placement.resources;
                let mut all = Map::new();
                all.insert("from".into(), self.from.into());
                all.insert("ranks".into(), resources.ranks.into());
                all.insert("launcher".into(), self.launcher.into());
                all.extend(numerics);
                let all = Value::Object(all);
                self.numerics.push(all.clone());
                Report::Numerics {
                    stage,
                    attempt,
                    numerics: all,
                }
            }
            Event::Resumed { step } => {
                self.from = step;
                if let Some(Value::Object(last)) = self.numerics.last_mut() {
                    last.insert("from".into(), step.into());
                }
                Report::Resumed {
                    stage,
                    attempt,
                    step,
                }
            }
            Event::Progress { step, total } => {
                if total > 0 && self.stage.kind.checkpoints {
                    self.steps.planned = Some(total);
                }
                let (first, since) = *self.pace.get_or_insert((step, Instant::now()));
                let done = step.saturating_sub(first);
                let eta_seconds = (total > 0 && done > 0).then(|| {
                    since.elapsed().as_secs_f64() / done as f64 * total.saturating_sub(step) as f64
                });
                Report::Progress {
                    stage,
                    attempt,
                    step,
                    total: (total > 0).then_some(total),
                    eta_seconds,
                }
            }
            Event::Metrics { step, metrics } => {
                self.steps.add(step, metrics.clone());
                Report::Metrics {
                    stage,
                    attempt,
                    step,
                    metrics,
                }
            }
            Event::Checkpoint { step } => Report::Checkpoint {
                stage,
                attempt,
                step,
            },
            Event::Message { level, text } => {
                let level = match level {
                    spec::job::Level::Info => "info",
                    spec::job::Level::Warning => "warning",
                };
                Report::Message {
                    stage: Some(stage),
                    level: level.into(),
                    text,
                }
            }
            Event::Finished { metrics } => {
                if rank == 0 {
                    self.metrics = metrics.into_iter().map(|(k, v)| (k, v.into())).collect();
                }
                return;
            }
            // Both are told when the gang has ended.
            Event::Failed { .. } | Event::Stopped { .. } => return,
        };
        // The main loop outlives its attempts; should it not, nobody is left to tell.
        let _ = self.tell.send(Note::Report(report));
    }
}

/// Summary metrics as numbers; what is no number is left out.
pub fn numbers(metrics: &Map<String, Value>) -> BTreeMap<String, f64> {
    metrics
        .iter()
        .filter_map(|(k, v)| Some((k.clone(), v.as_f64()?)))
        .collect()
}
