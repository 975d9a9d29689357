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
use plain::{Plain, To};
use runner::{Report, Reporter};
use spec::Plan;
use spec::plan::Part;
use stage::Live;
use std::collections::BTreeSet;
use std::io::IsTerminal;
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
        let taken = plan.order.iter().filter(|s| s.part != Part::Out);
        let names: Vec<&str> = taken.map(|s| s.stage.name.as_str()).collect();
        all.push(shown(&names, To::Stderr));
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

/// What shows a run that another process carries out.
pub fn watching(stages: &[String]) -> Box<dyn Reporter> {
    let names: Vec<&str> = stages.iter().map(String::as_str).collect();
    shown(&names, To::Stdout)
}

/// Bars on a terminal, lines elsewhere.
fn shown(stages: &[&str], to: To) -> Box<dyn Reporter> {
    // bars need a terminal that understands cursor movement
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    let mut terminal = std::io::stderr().is_terminal() && !dumb;
    if to == To::Stdout {
        terminal &= std::io::stdout().is_terminal();
    }
    match terminal {
        true => Box::new(Terminal::new(stages, output::colour(&std::io::stderr()))),
        false => Box::new(Plain::new(to)),
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
