//! What can go wrong outside a stage, and the failure classes of stages.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use spec::FailureClass;

use crate::space;

/// Why a stage or a run failed; decides the exit code and what `retry.on` matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The stage's own work failed: exit 1.
    Failed,
    /// Recipe, usage, configuration or data: exit 2.
    Config,
    /// A metric assertion does not hold: exit 3.
    Assertion,
    /// Machine, network, a killed process: worth a retry, exit 4.
    Infra,
    /// The store or an input is not what its digest says: exit 5.
    Integrity,
    /// `recipe.lock` does not describe the sources: exit 6.
    Lock,
    /// The stage ran longer than its `timeout`: exit 1.
    Timeout,
    /// Stopped on request with a checkpoint: exit 75 (what `retry.on` calls `preempt`).
    Preempt,
}

impl Class {
    /// The process exit code of DESIGN section 5.
    pub fn exit_code(self) -> u8 {
        match self {
            Class::Failed | Class::Timeout => 1,
            Class::Config => 2,
            Class::Assertion => 3,
            Class::Infra => 4,
            Class::Integrity => 5,
            Class::Lock => 6,
            Class::Preempt => 75,
        }
    }

    /// The class that a worker's exit code stands for.
    pub fn of_exit(code: i32) -> Class {
        match code {
            2 => Class::Config,
            4 => Class::Infra,
            5 => Class::Integrity,
            75 => Class::Preempt,
            _ => Class::Failed,
        }
    }

    /// What `retry.on` calls this class; assertions and locks are never retried.
    pub fn retried_as(self) -> Option<FailureClass> {
        match self {
            Class::Failed => Some(FailureClass::Failed),
            Class::Config => Some(FailureClass::Config),
            Class::Infra => Some(FailureClass::Infra),
            Class::Integrity => Some(FailureClass::Integrity),
            Class::Preempt => Some(FailureClass::Preempt),
            Class::Timeout => Some(FailureClass::Timeout),
            Class::Assertion | Class::Lock => None,
        }
    }
}

impl From<FailureClass> for Class {
    fn from(class: FailureClass) -> Class {
        match class {
            FailureClass::Failed => Class::Failed,
            FailureClass::Config => Class::Config,
            FailureClass::Infra => Class::Infra,
            FailureClass::Integrity => Class::Integrity,
            FailureClass::Preempt => Class::Preempt,
            FailureClass::Timeout => Class::Timeout,
        }
    }
}

impl From<cache::Class> for Class {
    fn from(class: cache::Class) -> Class {
        match class {
            cache::Class::Integrity => Class::Integrity,
            cache::Class::Infra => Class::Infra,
            cache::Class::Usage => Class::Config,
        }
    }
}

/// A failure of the runner itself. What happens to a stage is in its [`crate::StageOutcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what} '{}': {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },

    #[error("{what}: {source}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },

    #[error("store: {0}")]
    Store(#[from] cache::Error),

    /// The options do not go together with the plan or the machine.
    #[error("{message}")]
    Usage {
        message: String,
        help: Option<String>,
    },

    #[error("source '{name}': {message}")]
    Source {
        name: String,
        message: String,
        class: Class,
        help: Option<String>,
    },

    #[error("'{}' is stale: {message}", path.display())]
    Lock { path: PathBuf, message: String },

    #[error("'{}' line {line}: {message}", path.display())]
    LockFile {
        path: PathBuf,
        line: usize,
        message: String,
    },

    #[error("worker '{}': {message}", path.display())]
    Worker {
        path: PathBuf,
        message: String,
        help: Option<String>,
    },

    #[error("guard: {0}")]
    Guard(String),

    #[error("{0}")]
    Attempt(AttemptError),
}

/// What ended an attempt, with its class.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct AttemptError {
    pub class: Class,
    pub message: String,
    /// The fix, when one is known.
    pub help: Option<String>,
    /// The diagnostic code that the worker named (`E0123`), if any.
    pub code: Option<String>,
}

impl AttemptError {
    pub fn new(class: Class, message: impl Into<String>) -> AttemptError {
        AttemptError {
            class,
            message: message.into(),
            help: None,
            code: None,
        }
    }
}

impl Error {
    /// The failure class, hence the exit code.
    pub fn class(&self) -> Class {
        match self {
            Error::Io { .. } | Error::System { .. } | Error::Guard(_) => Class::Infra,
            Error::Store(e) => e.class().into(),
            Error::Usage { .. } | Error::LockFile { .. } => Class::Config,
            Error::Source { class, .. } => *class,
            Error::Lock { .. } => Class::Lock,
            Error::Worker { .. } => Class::Config,
            Error::Attempt(e) => e.class,
        }
    }

    /// The fix, when one is known.
    pub fn help(&self) -> Option<String> {
        match self {
            Error::Usage { help, .. } | Error::Source { help, .. } | Error::Worker { help, .. } => {
                help.clone()
            }
            Error::Lock { .. } => {
                Some("run without --locked, or `recipe lock RECIPE`, and commit the change".into())
            }
            Error::Attempt(e) => e.help.clone(),
            Error::Io { source, .. } | Error::System { source, .. } if space::is_full(source) => {
                Some(space::HELP.into())
            }
            _ => None,
        }
    }
}

impl From<Error> for AttemptError {
    fn from(e: Error) -> AttemptError {
        match e {
            Error::Attempt(a) => a,
            e => AttemptError {
                class: e.class(),
                help: e.help(),
                code: None,
                message: e.to_string(),
            },
        }
    }
}

impl From<cache::Error> for AttemptError {
    fn from(e: cache::Error) -> AttemptError {
        Error::Store(e).into()
    }
}
