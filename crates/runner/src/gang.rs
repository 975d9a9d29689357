//! Follows a gang to its end: events, deadline, stop requests, the death of one rank.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use spec::Event;

use crate::cancel::{Cancel, Stop};
use crate::error::{AttemptError, Class};
use crate::fault::Ask;
use crate::guard::Exit;
use crate::launch::{Gang, Happening};

/// How long ranks may live on after one of them failed: enough to say what they saw.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often the clock, the claim and stop requests are looked at.
const TICK: Duration = Duration::from_millis(50);

/// What may end a gang from outside.
pub struct Limits {
    pub cancel: Cancel,
    pub deadline: Option<Instant>,
    /// From SIGTERM to SIGKILL.
    pub grace: Duration,
    /// Set when another runner sealed this attempt.
    pub fenced: Arc<AtomicBool>,
    /// SIGTERM means "checkpoint, then stop"; that may take as long as it needs until the second request.
    pub checkpoints: bool,
    /// Ranks speak events on stdout.
    pub events: bool,
}

/// How a gang ended.
#[derive(Debug)]
pub enum Ending {
    /// Every rank ended with 0.
    Done,
    Failed(AttemptError),
    /// Stopped on request; `checkpoint`: every rank says that it left one.
    Stopped {
        checkpoint: bool,
    },
    /// Another runner took the attempt over.
    Fenced,
}

/// How a gang ended and what it used.
#[derive(Debug)]
pub struct GangEnd {
    pub ending: Ending,
    pub cpu_seconds: f64,
    /// Largest resident set of a rank, in bytes.
    pub max_rss: u64,
    /// Processes that outlived their rank and were killed.
    pub swept: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Asked {
    Nothing,
    Stop,
    Timeout,
    Fenced,
}

/// What is known so far.
struct Seen<'a> {
    exits: Vec<Option<Exit>>,
    /// Ranks whose stdout is closed.
    closed: usize,
    /// The first `failed` event.
    failure: Option<AttemptError>,
    first_bad: Option<(usize, Exit)>,
    lost: Option<AttemptError>,
    swept: usize,
    on_event: &'a mut dyn FnMut(usize, Event) -> Ask,
    /// A fault on purpose asked for the death of all ranks.
    kill: bool,
}

impl Seen<'_> {
    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Line { rank, text } => match serde_json::from_str::<Event>(&text) {
                Ok(event) => {
                    if self.failure.is_none() {
                        self.failure = failure_of(&event);
                    }
                    self.kill |= (self.on_event)(rank, event) == Ask::KillGang;
                }
                Err(e) => {
                    let text =
                        format!("rank {rank} wrote an event that cannot be read ({e}): {text}");
                    (self.on_event)(
                        rank,
                        Event::Message {
                            level: spec::job::Level::Warning,
                            text,
                        },
                    );
                }
            },
            Happening::Said { rank, event } => {
                self.kill |= (self.on_event)(rank, event) == Ask::KillGang;
            }
            Happening::Closed => self.closed += 1,
            Happening::Ended { rank, exit, swept } => {
                self.swept += swept;
                self.exits[rank] = Some(exit);
                if exit.code != Some(0) && self.first_bad.is_none() {
                    self.first_bad = Some((rank, exit));
                }
            }
            Happening::Lost { error } => self.lost = Some(error),
        }
    }

    fn running(&self) -> bool {
        self.lost.is_none() && self.exits.iter().any(Option::is_none)
    }

    fn all_ended_with(&self, code: i32) -> bool {
        self.exits
            .iter()
            .all(|e| e.is_some_and(|e| e.code == Some(code)))
    }
}

/// Runs the gang to its end. `on_event` sees every event of every rank, in order of arrival.
pub fn drive(
    gang: &mut dyn Gang,
    ranks: usize,
    limits: &Limits,
    on_event: &mut dyn FnMut(usize, Event) -> Ask,
) -> GangEnd {
    let mut seen = Seen {
        exits: vec![None; ranks],
        closed: 0,
        failure: None,
        first_bad: None,
        lost: None,
        swept: 0,
        on_event,
        kill: false,
    };
    let mut asked = Asked::Nothing;
    let mut kill_at: Option<Instant> = None;

    while seen.running() {
        if let Some(happening) = gang.next(TICK) {
            seen.take(happening);
        }
        if std::mem::take(&mut seen.kill) {
            gang.signal(Signal::SIGKILL as i32);
        }
        let now = Instant::now();
        if seen.first_bad.is_some_and(|(_, e)| e.code != Some(75)) {
            kill_at.get_or_insert(now + AFTER_FAILURE);
        }
        if asked != Asked::Fenced && limits.fenced.load(Ordering::SeqCst) {
            asked = Asked::Fenced;
            kill_at = Some(now);
        }
        let stop = limits.cancel.level();
        let late = limits.deadline.is_some_and(|d| now >= d);
        if asked == Asked::Nothing && (stop != Stop::No || late) {
            asked = if stop != Stop::No {
                Asked::Stop
            } else {
                Asked::Timeout
            };
            gang.signal(Signal::SIGTERM as i32);
            if asked == Asked::Timeout || !limits.checkpoints {
                kill_at.get_or_insert(now + limits.grace);
            }
        }
        if stop == Stop::Now {
            kill_at = Some(kill_at.map_or(now, |at| at.min(now)));
        }
        if kill_at.is_some_and(|at| now >= at) {
            gang.signal(Signal::SIGKILL as i32);
        }
    }

    if seen.lost.is_some() {
        gang.signal(Signal::SIGKILL as i32);
    }
    let swept = gang.sweep() + seen.swept;
    // Lines that are still in the pipes. Nobody holds their other end any more, so this is short.
    let until = Instant::now() + Duration::from_secs(2);
    while limits.events && seen.lost.is_none() && seen.closed < ranks && Instant::now() < until {
        if let Some(happening) = gang.next(TICK) {
            seen.take(happening);
        }
    }

    let ending = if asked == Asked::Fenced {
        Ending::Fenced
    } else if seen.all_ended_with(0) {
        Ending::Done
    } else if let Some(error) = &seen.lost {
        Ending::Failed(error.clone())
    } else if asked == Asked::Stop {
        Ending::Stopped {
            checkpoint: seen.all_ended_with(75),
        }
    } else if asked == Asked::Timeout {
        Ending::Failed(AttemptError {
            help: Some("raise the stage's `timeout`, or give it more resources".into()),
            ..AttemptError::new(Class::Timeout, "it ran longer than its timeout")
        })
    } else {
        Ending::Failed(
            seen.failure
                .clone()
                .unwrap_or_else(|| describe(seen.first_bad, ranks)),
        )
    };
    let exits = seen.exits.iter().flatten();
    GangEnd {
        ending,
        cpu_seconds: exits.clone().map(|e| e.cpu_seconds).sum(),
        max_rss: exits.map(|e| e.max_rss).max().unwrap_or(0),
        swept,
    }
}

fn failure_of(event: &Event) -> Option<AttemptError> {
    let Event::Failed {
        class,
        code,
        message,
        help,
    } = event
    else {
        return None;
    };
    Some(AttemptError {
        class: (*class).into(),
        message: message.clone(),
        help: (!help.is_empty()).then(|| help.clone()),
        code: (!code.is_empty()).then(|| code.clone()),
    })
}

/// What to say of a rank that ended badly without a word.
fn describe(bad: Option<(usize, Exit)>, ranks: usize) -> AttemptError {
    let Some((rank, exit)) = bad else {
        return AttemptError::new(Class::Infra, "it ended in an unknown way");
    };
    let who = if ranks > 1 {
        format!("rank {rank} ")
    } else {
        "it ".into()
    };
    match (exit.code, exit.signal) {
        (Some(code), _) => AttemptError::new(
            Class::of_exit(code),
            format!("{who}ended with exit code {code}"),
        ),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal)
                .map_or_else(|_| format!("signal {signal}"), |s| s.to_string());
            // A crash of the program repeats itself; being killed from outside may not.
            let crash = [
                libc::SIGSEGV,
                libc::SIGBUS,
                libc::SIGILL,
                libc::SIGFPE,
                libc::SIGABRT,
            ]
            .contains(&signal);
            AttemptError {
                help: (signal == libc::SIGKILL).then(|| {
                    "somebody killed it, or memory ran out: see the kernel log (dmesg)".into()
                }),
                ..AttemptError::new(
                    if crash { Class::Failed } else { Class::Infra },
                    format!("{who}was killed by {name}"),
                )
            }
        }
        (None, None) => AttemptError::new(Class::Infra, format!("{who}ended in an unknown way")),
    }
}
