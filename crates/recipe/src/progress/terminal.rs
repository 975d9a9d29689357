//! One live line per stage on a terminal.

use super::{Live, plain};
use crate::format::duration;
use crate::output::Colour;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use runner::{Report, Reporter, Status};
use std::collections::HashMap;
use std::time::Duration;

pub struct Terminal {
    lines: MultiProgress,
    stages: HashMap<String, (ProgressBar, Live)>,
    width: usize,
    colour: bool,
}

/// With many stages only those that do something get a line.
const ALL: usize = 20;

impl Terminal {
    pub fn new(names: &[&str], colour: bool) -> Self {
        let width = names
            .iter()
            .map(|n| n.chars().count())
            .max()
            .unwrap_or(0)
            .min(24);
        let mut this = Self {
            lines: MultiProgress::new(),
            stages: HashMap::new(),
            width,
            colour,
        };
        if names.len() <= ALL {
            for name in names {
                this.bar(name);
            }
        }
        this
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colour {
            colour.paint(text)
        } else {
            text.to_owned()
        }
    }

    fn name(&self, stage: &str) -> String {
        format!("{stage:width$}", width = self.width)
    }

    fn bar(&mut self, stage: &str) -> &mut (ProgressBar, Live) {
        if !self.stages.contains_key(stage) {
            let bar = self.lines.add(ProgressBar::new_spinner());
            bar.set_style(style("{prefix} {msg}"));
            bar.set_prefix(self.paint(Colour::Dim, &format!("· {}", self.name(stage))));
            bar.set_message(self.paint(Colour::Dim, "waiting"));
            bar.tick();
            self.stages.insert(stage.to_owned(), (bar, Live::default()));
        }
        self.stages.get_mut(stage).expect("inserted above")
    }

    fn say(&self, text: &str) {
        let _ = self.lines.println(text);
    }

    fn refresh(&mut self, stage: &str) {
        let (bar, live) = self.bar(stage);
        if live.total > 0 {
            if bar.length() != Some(live.total) {
                bar.set_length(live.total);
                bar.set_style(style("{spinner} {prefix} {bar:24} {msg}"));
            }
            bar.set_position(live.step);
        }
        let text = [live.steps(), live.spark(), live.numbers()]
            .into_iter()
            .filter(|s| !s.is_empty())
            .collect::<Vec<_>>()
            .join("  ");
        bar.set_message(text);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
        .progress_chars("━╸ ")
}

impl Reporter for Terminal {
    fn report(&mut self, event: &Report) {
        match event {
            Report::AttemptStarted { stage, .. } => {
                let name = self.name(stage);
                let (bar, _) = self.bar(stage);
                bar.set_style(style("{spinner} {prefix} {elapsed} {msg}"));
                bar.set_prefix(name);
                bar.set_message("starting");
                bar.reset_elapsed();
                bar.enable_steady_tick(Duration::from_millis(120));
            }
            Report::StageWaiting { stage, owner } => {
                let text = format!("waiting for {owner}");
                self.bar(stage).0.set_message(text);
            }
            Report::StageQueued { stage, why } => {
                let text = self.paint(Colour::Dim, &format!("to run: {why}"));
                self.bar(stage).0.set_message(text);
            }
            Report::Metrics { stage, metrics, .. } => {
                self.bar(stage).1.metrics(metrics);
                self.refresh(stage);
            }
            Report::Progress {
                stage,
                step,
                total,
                eta_seconds,
                ..
            } => {
                let live = &mut self.bar(stage).1;
                live.step = *step;
                live.total = total.unwrap_or(0);
                live.eta = *eta_seconds;
                self.refresh(stage);
            }
            Report::AttemptFailed { .. } => {
                if let Some(text) = plain::failure(event) {
                    let (head, rest) = text.split_once(": ").unwrap_or((&text, ""));
                    self.say(&format!("{}: {rest}", self.paint(Colour::Red, head)));
                }
            }
            Report::Message { .. } | Report::Source { .. } | Report::Resumed { .. } => {
                if let Some(text) = plain::line(event) {
                    self.say(&text);
                }
            }
            Report::StageFinished {
                stage,
                status,
                seconds,
                metrics,
                message,
                ..
            } => {
                let (mark, colour) = match status {
                    Status::Ran | Status::Adopted | Status::Reused => ("✔", Colour::Green),
                    Status::AssertionFailed | Status::Failed => ("✘", Colour::Red),
                    Status::Stopped | Status::Killed => ("■", Colour::Yellow),
                    Status::Skipped | Status::NotRun => ("–", Colour::Dim),
                };
                let prefix = format!("{} {}", self.paint(colour, mark), self.name(stage));
                let mut text = plain::word(*status).to_owned();
                if matches!(status, Status::Ran | Status::Adopted) {
                    text = format!("{text} in {}", duration(*seconds));
                }
                let numbers = super::stage::key_metrics(metrics);
                if !numbers.is_empty() {
                    text = format!("{text}  {numbers}");
                }
                match (status, message) {
                    (Status::AssertionFailed | Status::Failed | Status::Skipped, Some(message)) => {
                        text = format!("{text}: {}", message.lines().next().unwrap_or_default());
                    }
                    (Status::Stopped, _) => {
                        text = format!("{text} at {}", self.bar(stage).1.steps());
                    }
                    _ => {}
                }
                let (bar, _) = self.bar(stage);
                bar.disable_steady_tick();
                bar.set_style(style("{prefix} {msg}"));
                bar.set_prefix(prefix);
                bar.finish_with_message(text);
            }
            Report::RunFinished { .. } => {
                for (bar, _) in self.stages.values().filter(|(bar, _)| !bar.is_finished()) {
                    bar.abandon();
                }
            }
            Report::RunStarted { .. } | Report::Numerics { .. } | Report::Checkpoint { .. } => {}
        }
    }
}
