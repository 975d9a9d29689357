//! What a rank says to the runner: [`Event`]s as JSON lines on stdout, from rank 0 only, but for
//! a failure, which every rank reports.

use std::collections::BTreeMap;
use std::io::Write;

use spec::Event;
use spec::job::Level;

use crate::failure::Failure;

/// Named numbers of a step.
pub type Metrics = BTreeMap<String, f64>;

/// Sends events.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub rank: usize,
}

impl Report {
    /// Sends an event, from rank 0.
    pub fn event(&self, event: &Event) {
        if self.rank == 0 {
            print(event);
        }
    }

    /// Metrics of a step. Values that are not finite have no JSON form and go out as null.
    pub fn metrics(&self, step: u64, metrics: Metrics) {
        self.event(&Event::Metrics { step, metrics });
    }

    /// How far the stage is; `total` 0 where it is not known.
    pub fn progress(&self, step: u64, total: u64) {
        self.event(&Event::Progress { step, total });
    }

    pub fn info(&self, text: impl Into<String>) {
        self.event(&Event::Message {
            level: Level::Info,
            text: text.into(),
        });
    }

    pub fn warn(&self, text: impl Into<String>) {
        self.event(&Event::Message {
            level: Level::Warning,
            text: text.into(),
        });
    }

    /// Sent by any rank.
    pub fn failed(&self, failure: &Failure) {
        print(&Event::Failed {
            class: failure.class,
            code: failure.code.to_string(),
            message: failure.message.clone(),
            help: failure.help.clone(),
        });
    }
}

fn print(event: &Event) {
    let Ok(mut line) = serde_json::to_string(event) else {
        return;
    };
    line.push('\n');
    let mut out = std::io::stdout().lock();
    // nobody listens any more when the runner is gone; its guard ends this process
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// Leaves a line in the attempt's log, where one can be written: on a full disk it cannot.
pub fn note(text: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
