//! What can be wrong with a model directory or a layout.

use std::path::{Path, PathBuf};

/// Why a model cannot be read, written or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is unusable.
    #[error(transparent)]
    Config(#[from] arch::Error),
    /// A file cannot be opened, read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// A weights file, or the index of several, is not what it claims to be.
    #[error("{}: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// Tensors do not fit the configuration.
    #[error("{}: {problem}", path.display())]
    Fit { path: PathBuf, problem: String },
    /// Tensors given by a caller do not fit the configuration.
    #[error("{0}")]
    Tensors(String),
    /// Two span lists or row counts do not agree.
    #[error("layout: {0}")]
    Layout(String),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    pub(crate) fn io(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(std::io::Error) -> Error + use<> {
        let path = path.to_path_buf();
        move |source| Error::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Error {
        Error::File {
            path: path.to_path_buf(),
            problem: problem.into(),
        }
    }

    /// Whether the fault is in the given files or configuration rather than in the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Error::Config(_) | Error::File { .. } | Error::Fit { .. } | Error::Layout(_) => true,
            Error::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Error::Torch(_) | Error::Tensors(_) => false,
        }
    }
}
