//! One line per thing that happens, for logs and CI. Steps at most every ten seconds.

use super::Live;
use crate::format::duration;
use runner::{Report, Reporter, Status};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(10);

/// Where lines go.
#[derive(Clone, Copy, PartialEq)]
pub enum To {
    /// Beside what the command itself prints.
    Stderr,
    Stdout,
}

impl To {
    fn say(self, text: &str) {
        // who closed the pipe has seen what it wanted
        let _ = match self {
            Self::Stderr => writeln!(std::io::stderr().lock(), "{text}"),
            Self::Stdout => writeln!(std::io::stdout().lock(), "{text}"),
        };
    }
}

pub struct Plain {
    to: To,
    stages: BTreeMap<String, (Live, Instant)>,
    /// Lines of reused stages, which come by the thousand: written together.
    held: String,
}

impl Plain {
    pub fn new(to: To) -> Self {
        Self {
            to,
            stages: BTreeMap::new(),
            held: String::new(),
        }
    }

    fn live(&mut self, stage: &str) -> &mut (Live, Instant) {
        self.stages
            .entry(stage.to_owned())
            .or_insert_with(|| (Live::default(), Instant::now()))
    }
}

impl Reporter for Plain {
    fn report(&mut self, event: &Report) {
        if let Report::StageFinished {
            stage,
            status: Status::Reused,
            ..
        } = event
        {
            let _ = writeln!(self.held, "{stage}: {}", word(Status::Reused));
            return;
        }
        if !self.held.is_empty() {
            self.to.say(self.held.trim_end());
            self.held.clear();
        }
        let to = self.to;
        match event {
            Report::Metrics { stage, metrics, .. } => self.live(stage).0.metrics(metrics),
            Report::Progress {
                stage,
                step,
                total,
                eta_seconds,
                ..
            } => {
                let (live, said) = self.live(stage);
                live.step = *step;
                live.total = total.unwrap_or(0);
                live.eta = *eta_seconds;
                if said.elapsed() >= EVERY {
                    *said = Instant::now();
                    to.say(&format!("{stage}: {}", live.sentence()));
                }
            }
            Report::StageFinished { stage, status, .. } => {
                if let Some((live, _)) = self.stages.remove(stage)
                    && live.step > 0
                    && *status == Status::Ran
                {
                    to.say(&format!("{stage}: {}", live.sentence()));
                }
                to.say(&line(event).unwrap_or_default());
            }
            other => {
                if let Some(text) = line(other) {
                    to.say(&text);
                }
            }
        }
    }
}

/// The event as a line of text; none for what only moves a bar.
pub fn line(event: &Report) -> Option<String> {
    Some(match event {
        Report::Source { source, text, .. } => format!("source {source}: {text}"),
        Report::StageWaiting { stage, owner } => {
            format!("{stage}: waiting for {owner}, who computes it")
        }
        Report::StageQueued { stage, why } => format!("{stage}: to run, {why}"),
        Report::AttemptStarted { stage, attempt, .. } => {
            format!("{stage}: started, attempt {attempt}")
        }
        Report::Resumed { stage, step, .. } => {
            format!("{stage}: resumed from the checkpoint of step {step}")
        }
        Report::Checkpoint { stage, step, .. } => format!("{stage}: checkpoint of step {step}"),
        Report::Message { stage, level, text } => {
            let level = if level == "info" {
                String::new()
            } else {
                format!("{level}: ")
            };
            match stage {
                Some(stage) => format!("{stage}: {level}{text}"),
                None => format!("{level}{text}"),
            }
        }
        Report::AttemptFailed { .. } => failure(event)?,
        Report::StageFinished {
            stage,
            status,
            seconds,
            message,
            ..
        } => {
            let mut text = format!("{stage}: {}", word(*status));
            if matches!(
                status,
                Status::Ran | Status::Adopted | Status::AssertionFailed
            ) {
                text = format!("{text} in {}", duration(*seconds));
            }
            match (status, message) {
                (Status::AssertionFailed | Status::Skipped, Some(message)) => {
                    format!("{text}: {message}")
                }
                _ => text,
            }
        }
        Report::RunStarted { .. }
        | Report::RunFinished { .. }
        | Report::Numerics { .. }
        | Report::Progress { .. }
        | Report::Metrics { .. } => return None,
    })
}

/// A failed attempt with its last log lines and where the whole log is.
pub fn failure(event: &Report) -> Option<String> {
    let Report::AttemptFailed {
        stage,
        attempt,
        error,
        tail,
        log,
        retry,
    } = event
    else {
        return None;
    };
    let code = error
        .code
        .clone()
        .unwrap_or_else(|| crate::fail::class_code(error.class).to_owned());
    let message = format!(
        "stage '{stage}' failed in attempt {attempt}: {}",
        error.message
    );
    let mut text = crate::fail::text(&code, &message, error.help.as_deref());
    if !tail.is_empty() {
        text.push_str("\nits last log lines:");
        for line in tail {
            text.push_str("\n  | ");
            text.push_str(line);
        }
    }
    text.push_str(&format!("\nthe whole log: {log}"));
    if *retry {
        text.push_str("\nit is tried again");
    }
    Some(text)
}

/// A stage's last state in one or two words.
pub fn word(status: Status) -> &'static str {
    match status {
        Status::Reused => "reused",
        Status::Ran => "done",
        Status::Adopted => "done elsewhere",
        Status::AssertionFailed => "assertion failed",
        Status::Failed => "failed",
        Status::Skipped => "skipped",
        Status::Stopped => "stopped",
        Status::Killed => "killed",
        Status::NotRun => "not run",
    }
}
