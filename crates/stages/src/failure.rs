//! Why a stage failed, in the terms of the contract with the runner: a class that decides whether
//! to retry, a code, a message and what to do.

use std::io;

use spec::FailureClass;
use spec::job::exit;

/// A failed stage.
#[derive(Debug)]
pub struct Failure {
    pub class: FailureClass,
    /// Stable, for tests and tools.
    pub code: &'static str,
    pub message: String,
    /// What to do about it; may be empty.
    pub help: String,
}

/// The result of anything a stage does.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// The configuration is wrong.
    pub fn config(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure::new(FailureClass::Config, "W0101", message, help)
    }

    /// The data is wrong.
    pub fn data(message: impl Into<String>, help: impl Into<String>) -> Failure {
        Failure::new(FailureClass::Config, "W0201", message, help)
    }

    /// The stage itself cannot go on; a retry would repeat it.
    pub fn failed(
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Failure {
        Failure::new(FailureClass::Failed, code, message, help)
    }

    pub fn new(
        class: FailureClass,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Failure {
        Failure {
            class,
            code,
            message: message.into(),
            help: help.into(),
        }
    }

    /// What the worker exits with.
    pub fn exit_code(&self) -> i32 {
        match self.class {
            FailureClass::Failed => exit::FAILED,
            FailureClass::Config => exit::CONFIG,
            FailureClass::Infra | FailureClass::Timeout => exit::INFRA,
            FailureClass::Integrity => exit::INTEGRITY,
            FailureClass::Preempt => exit::STOPPED,
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if self.help.is_empty() {
            Ok(())
        } else {
            write!(f, "\nhelp: {}", self.help)
        }
    }
}

impl From<spec::kinds::Invalid> for Failure {
    fn from(e: spec::kinds::Invalid) -> Failure {
        Failure::new(FailureClass::Config, e.code, e.message, e.help)
    }
}

impl From<data::Error> for Failure {
    fn from(e: data::Error) -> Failure {
        let code = match &e {
            data::Error::Io { source, path } => return disk(&path.display().to_string(), source),
            data::Error::Row { .. } => "W0202",
            data::Error::File { .. } => "W0203",
            data::Error::TooLong { .. } => "W0204",
            data::Error::Tokenizer(_) => "W0205",
            data::Error::Template(_) => "W0206",
            data::Error::Environment(_) | data::Error::NoData { .. } => "W0207",
        };
        Failure::new(FailureClass::Config, code, e.to_string(), "")
    }
}

impl From<model::Error> for Failure {
    fn from(e: model::Error) -> Failure {
        match &e {
            model::Error::Io { source, path, .. } if !e.is_bad_input() => {
                disk(&path.display().to_string(), source)
            }
            _ if e.is_bad_input() => Failure::new(FailureClass::Config, "W0301", e.to_string(), ""),
            _ => Failure::failed("W0901", e.to_string(), ""),
        }
    }
}

impl From<arch::Error> for Failure {
    fn from(e: arch::Error) -> Failure {
        Failure::new(FailureClass::Config, "W0302", e.to_string(), "")
    }
}

impl From<parallel::Error> for Failure {
    fn from(e: parallel::Error) -> Failure {
        match e {
            parallel::Error::Model(e) => e.into(),
            parallel::Error::Collective { .. } => Failure::new(
                FailureClass::Infra,
                "W0503",
                e.to_string(),
                "another rank probably stopped first; its log says why",
            ),
            parallel::Error::Transport { .. } => Failure::config(e.to_string(), ""),
            other => Failure::failed("W0901", other.to_string(), ""),
        }
    }
}

impl From<train::Error> for Failure {
    fn from(e: train::Error) -> Failure {
        use train::Error as E;
        match e {
            E::Parallel(e) => e.into(),
            E::Model(e) => e.into(),
            E::Io { path, source } => disk(&path.display().to_string(), &source),
            E::Peer { .. } => Failure::new(FailureClass::Infra, "W0505", e.to_string(), ""),
            E::Config(_) => Failure::config(e.to_string(), ""),
            E::Unit { .. } => Failure::data(e.to_string(), ""),
            E::Checkpoint { .. } => {
                Failure::new(FailureClass::Integrity, "W0602", e.to_string(), "")
            }
            E::Diverged { .. } => Failure::failed("W0401", e.to_string(), ""),
            E::Loss(_) | E::Torch(_) | E::Kernel(_) => Failure::failed("W0901", e.to_string(), ""),
        }
    }
}

impl From<rollout::Error> for Failure {
    fn from(e: rollout::Error) -> Failure {
        use rollout::Error as E;
        let class = match &e {
            E::Parallel(_) => FailureClass::Infra,
            E::NotFinite { .. } | E::WeightsChanged { .. } | E::Version { .. } => {
                FailureClass::Failed
            }
            _ => FailureClass::Config,
        };
        Failure::new(class, "W0402", e.to_string(), "")
    }
}

impl From<cache::Error> for Failure {
    fn from(e: cache::Error) -> Failure {
        let (class, code) = match e.class() {
            cache::Class::Integrity => (FailureClass::Integrity, "W0601"),
            _ => (FailureClass::Infra, "W0504"),
        };
        Failure::new(class, code, e.to_string(), "")
    }
}

/// A failure to read or write `what`.
pub fn disk(what: &str, e: &io::Error) -> Failure {
    match e.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(FailureClass::Config, "W0501", format!("{what}: {e}"), "")
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Failure::new(
            FailureClass::Infra,
            "W0502",
            format!("{what}: {e}"),
            "free some space and run again; what was stored before is intact",
        ),
        _ => Failure::new(FailureClass::Infra, "W0501", format!("{what}: {e}"), ""),
    }
}

/// [`disk`] as a closure for `map_err`.
pub fn at(path: &std::path::Path) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |e| disk(&path.display().to_string(), &e)
}
