//! What ends a verb early, and the one report a person reads about it.

use spec::codes;
use std::fmt::Write as _;

/// An error on its way to the top.
#[derive(Debug)]
pub enum Fail {
    /// The recipe is wrong.
    Recipe(Box<spec::Diagnostic>),
    /// The runner could not do its work.
    Runner(Box<runner::Error>),
    /// The store.
    Store(Box<cache::Error>),
    /// Anything else, with its code and exit code.
    Other {
        code: &'static str,
        exit: u8,
        message: String,
        help: String,
    },
}

impl Fail {
    /// A wrong use of the command line.
    pub fn usage(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Other {
            code: codes::USAGE,
            exit: 2,
            message: message.into(),
            help: help.into(),
        }
    }

    /// Something asked for that the store does not have.
    pub fn not_stored(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Other {
            code: codes::NOT_STORED,
            exit: 2,
            message: message.into(),
            help: help.into(),
        }
    }

    /// A failed file operation.
    pub fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::Other {
            code: codes::INFRA,
            exit: 4,
            message: format!("cannot {doing} '{}': {error}", path.display()),
            help: if runner::space::is_full(error) {
                runner::space::HELP.to_owned()
            } else {
                String::new()
            },
        }
    }

    /// The process exit code, DESIGN section 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Recipe(_) => 2,
            Self::Runner(e) => e.class().exit_code(),
            Self::Store(e) => runner::Class::from(e.class()).exit_code(),
            Self::Other { exit, .. } => *exit,
        }
    }

    /// The whole report, without a newline at the end.
    pub fn report(&self) -> String {
        match self {
            Self::Recipe(diagnostic) => diagnostic.to_string(),
            Self::Runner(e) => text(runner_code(e), &e.to_string(), e.help().as_deref()),
            Self::Store(e) => text(class_code(e.class().into()), &e.to_string(), None),
            Self::Other {
                code,
                message,
                help,
                ..
            } => text(code, message, Some(help)),
        }
    }
}

/// `error[CODE]: message`, then `help: ..`.
pub fn text(code: &str, message: &str, help: Option<&str>) -> String {
    let mut out = format!("error[{code}]: {message}");
    if let Some(help) = help.filter(|h| !h.is_empty()) {
        let _ = write!(out, "\nhelp: {help}");
    }
    out
}

fn runner_code(error: &runner::Error) -> &'static str {
    match error {
        runner::Error::Usage { .. } => codes::USAGE,
        runner::Error::Source { .. } => codes::SOURCE,
        runner::Error::Lock { .. } | runner::Error::LockFile { .. } => codes::LOCK,
        runner::Error::Worker { .. } => codes::WORKER,
        other => class_code(other.class()),
    }
}

/// The code of an error that has nothing more specific than its class.
pub fn class_code(class: runner::Class) -> &'static str {
    match class {
        runner::Class::Integrity => codes::INTEGRITY,
        runner::Class::Lock => codes::LOCK,
        runner::Class::Config => codes::USAGE,
        runner::Class::Assertion => codes::ASSERTION,
        runner::Class::Failed => codes::STAGE,
        runner::Class::Timeout => codes::TIMEOUT,
        runner::Class::Infra | runner::Class::Preempt => codes::INFRA,
    }
}

impl From<Box<spec::Diagnostic>> for Fail {
    fn from(diagnostic: Box<spec::Diagnostic>) -> Self {
        Self::Recipe(diagnostic)
    }
}

impl From<runner::Error> for Fail {
    fn from(error: runner::Error) -> Self {
        Self::Runner(Box::new(error))
    }
}

impl From<cache::Error> for Fail {
    fn from(error: cache::Error) -> Self {
        Self::Store(Box::new(error))
    }
}
