//! Launchers: how the ranks of a gang come to life. One file each, one line in [`LAUNCHERS`].

mod local;

pub use local::rank_log;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{AttemptError, Error};
use crate::guard::{Exit, Guard};

/// Makes a launcher that starts its processes through the guard.
type New = fn(Arc<Guard>) -> Box<dyn Launcher>;

/// Name and constructor of every launcher.
pub const LAUNCHERS: &[(&str, New)] = &[("local", local::new)];

/// What to start: the same program once per rank.
pub struct GangSpec {
    /// Unique in the run; every process of the gang carries it in its environment.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub cwd: PathBuf,
    pub ranks: usize,
    /// Start from an empty environment instead of the runner's.
    pub clear_env: bool,
    pub unset: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Ranks speak events on stdout; otherwise stdout goes to the log.
    pub events: bool,
    /// Log of rank 0; rank r > 0 writes beside it, to `<stem>.rank<r>.log`.
    pub log: PathBuf,
}

/// Something that happened to a gang.
#[derive(Debug)]
pub enum Happening {
    /// A line of a rank's stdout.
    Line { rank: usize, text: String },
    /// What a rank told in another way than a line.
    Said { rank: usize, event: spec::Event },
    /// A rank's stdout was closed.
    Closed,
    /// A rank ended; how many processes of the gang were killed thereupon.
    Ended {
        rank: usize,
        exit: Exit,
        swept: usize,
    },
    /// A rank could not be started, or nobody can tell any more what the ranks do.
    Lost { error: AttemptError },
}

/// All ranks of one attempt.
pub trait Gang: Send {
    /// The next thing that happens, or `None` after `wait`.
    fn next(&mut self, wait: Duration) -> Option<Happening>;
    /// Sends a signal to every rank that lives.
    fn signal(&mut self, signal: i32);
    /// After every rank ended: kills what they left behind; returns how many processes that were.
    fn sweep(&mut self) -> usize;
}

/// Starts gangs. The trait is all that the runner knows: a cluster's launcher is another file.
pub trait Launcher: Send + Sync {
    fn launch(&self, spec: GangSpec) -> Result<Box<dyn Gang>, Error>;
}
