//! Watching a run: live bars on a terminal, plain lines elsewhere, JSON lines in a file.
//!
//! A line of `--events FILE` is a [`runner::Report`] with `time`, seconds since 1970 (UTC); its
//! `event` is `run_started` first (with `version`), `run_finished` last (with `exit_code`).

mod events;
pub mod plain;
pub mod stage;
mod terminal;

use crate::fail::Fail;
use crate::output;
use events::Events;
use plain::Plain;
use runner::{Report, Reporter};
use spec::Plan;
use stage::Live;
use std::collections::BTreeSet;
use std::path::Path;
use terminal::Terminal;

/// All subscribers of one run.
pub struct Watch {
    all: Vec<Box<dyn Reporter>>,
    failures: BTreeSet<String>,
}

impl Watch {
    /// Progress on stderr, and events to a file where one is named.
    pub fn new(plan: &Plan, events: Option<&Path>) -> Result<Self, Fail> {
        let mut all: Vec<Box<dyn Reporter>> = Vec::new();
        if let Some(path) = events {
            all.push(Box::new(Events::create(path)?));
        }
        // bars need a terminal that understands cursor movement
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) && !dumb {
            all.push(Box::new(Terminal::new(
                plan,
                output::colour(&std::io::stderr()),
            )));
        } else {
            all.push(Box::new(Plain::new()));
        }
        Ok(Self {
            all,
            failures: BTreeSet::new(),
        })
    }

    /// Whether the failure of a stage has been told, with its log, when it happened.
    pub fn told(&self, stage: &str) -> bool {
        self.failures.contains(stage)
    }
}

impl Reporter for Watch {
    fn report(&mut self, event: &Report) {
        if let Report::AttemptFailed {
            stage,
            retry: false,
            ..
        } = event
        {
            self.failures.insert(stage.clone());
        }
        for reporter in &mut self.all {
            reporter.report(event);
        }
    }
}
