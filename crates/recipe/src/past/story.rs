//! What happened in a run, stage by stage, read from its `events.jsonl`.

use std::collections::BTreeMap;

use runner::Report;

/// What has been read of one `events.jsonl`. Times are seconds since 1970.
#[derive(Clone, Default)]
pub struct Story {
    /// Bytes that were whole lines.
    read: usize,
    pub stages: BTreeMap<String, Told>,
    /// Messages of level `warning`, each with its stage.
    pub warnings: Vec<(Option<String>, String)>,
    /// When the run began, and the last that was heard of it.
    pub begun: Option<f64>,
    pub last: Option<f64>,
}

/// What is known of a stage.
#[derive(Clone, Default)]
pub struct Told {
    /// Why it is to run, once it is.
    pub queued: Option<String>,
    /// Whose result is waited for.
    pub waiting: Option<String>,
    pub attempts: Vec<Attempt>,
    pub step: u64,
    pub total: Option<u64>,
    pub eta_seconds: Option<f64>,
    pub ended: bool,
}

#[derive(Clone, Default)]
pub struct Attempt {
    pub number: u32,
    pub from: f64,
    /// None while it goes on.
    pub to: Option<f64>,
    pub failed: bool,
    /// The step it went on from.
    pub resumed: Option<u64>,
    /// When checkpoints were committed, and of which steps.
    pub checkpoints: Vec<(f64, u64)>,
}

impl Story {
    /// Takes in what a file has beyond what was read of it.
    pub fn feed(&mut self, file: &[u8]) {
        let new = file.get(self.read..).unwrap_or_default();
        let whole = new.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.read += whole;
        for line in new[..whole].split(|b| *b == b'\n') {
            // steps are most of the lines, and `metrics.jsonl` has them
            let head = &line[..line.len().min(80)];
            let is_step = head.windows(17).any(|w| w == b"\"event\":\"metrics\"");
            if !is_step && let Some((time, report)) = runner::event(line) {
                self.take(time, report);
            }
        }
    }

    fn take(&mut self, time: f64, report: Report) {
        self.begun.get_or_insert(time);
        self.last = Some(time);
        match report {
            Report::StageQueued { stage, why } => self.stage(stage).queued = Some(why),
            Report::StageWaiting { stage, owner } => self.stage(stage).waiting = Some(owner),
            Report::AttemptStarted { stage, attempt, .. } => {
                let told = self.stage(stage);
                told.waiting = None;
                told.attempts.push(Attempt {
                    number: attempt,
                    from: time,
                    ..Attempt::default()
                });
            }
            Report::Resumed { stage, step, .. } => {
                let told = self.stage(stage);
                told.step = step;
                if let Some(attempt) = told.attempts.last_mut() {
                    attempt.resumed = Some(step);
                }
            }
            Report::Progress {
                stage,
                step,
                total,
                eta_seconds,
                ..
            } => {
                let told = self.stage(stage);
                (told.step, told.total, told.eta_seconds) = (step, total, eta_seconds);
            }
            Report::Checkpoint { stage, step, .. } => {
                if let Some(attempt) = self.stage(stage).attempts.last_mut() {
                    attempt.checkpoints.push((time, step));
                }
            }
            Report::AttemptFailed { stage, .. } => {
                if let Some(attempt) = self.stage(stage).attempts.last_mut() {
                    (attempt.to, attempt.failed) = (Some(time), true);
                }
            }
            Report::StageFinished { stage, .. } => {
                let told = self.stage(stage);
                told.ended = true;
                if let Some(attempt) = told.attempts.last_mut() {
                    attempt.to.get_or_insert(time);
                }
            }
            Report::Message { stage, level, text } if level == "warning" => {
                self.warnings.push((stage, text));
            }
            _ => {}
        }
    }

    fn stage(&mut self, name: String) -> &mut Told {
        self.stages.entry(name).or_default()
    }
}

impl Told {
    /// Whether an attempt of it goes on.
    pub fn runs(&self) -> bool {
        self.attempts.last().is_some_and(|a| a.to.is_none())
    }

    /// `running 120/300, 12s left`, `to run`, `waiting`; none where nothing was told or it ended.
    pub fn phase(&self) -> Option<String> {
        if self.ended {
            return None;
        }
        if self.runs() {
            let steps = match (self.step, self.total) {
                (0, None) => String::new(),
                (step, Some(total)) => format!(" {step}/{total}"),
                (step, None) => format!(" step {step}"),
            };
            let left = self.eta_seconds.map(crate::format::duration);
            let left = left.map_or_else(String::new, |t| format!(", {t} left"));
            return Some(format!("running{steps}{left}"));
        }
        match (&self.waiting, &self.queued) {
            (Some(_), _) => Some("waiting".to_owned()),
            (None, Some(_)) => Some("to run".to_owned()),
            (None, None) => None,
        }
    }
}
