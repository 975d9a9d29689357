//! Errors of the trainer.

use std::path::PathBuf;

/// Why training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A unit that cannot be computed.
    #[error("unit {unit}, branch {branch}: {what}")]
    Unit {
        /// Index in the list given.
        unit: usize,
        /// Index of the branch.
        branch: usize,
        /// What is wrong, and the fix.
        what: String,
    },
    /// The loss closure failed.
    #[error("loss: {0}")]
    Loss(String),
    /// Too many steps in a row had a NaN or infinite gradient.
    #[error(
        "gradient norm was {norm} at {skipped} steps in a row (limit {limit}); the last finite weights are kept: lower the learning rate or look at the data of these steps"
    )]
    Diverged {
        /// The last norm.
        norm: f64,
        /// Steps skipped in a row.
        skipped: u64,
        /// The limit.
        limit: u64,
    },
    /// A checkpoint that is not of this model or this trainer.
    #[error("checkpoint {path:?}: {what}")]
    Checkpoint {
        /// Directory or file.
        path: PathBuf,
        /// What does not fit, and the fix.
        what: String,
    },
    /// Another rank failed at what all do together.
    #[error("rank {rank} failed in phase '{phase}'; its own message says why")]
    Peer {
        /// Which rank of the world.
        rank: usize,
        /// What all were doing.
        phase: String,
    },
    /// A configuration that cannot work.
    #[error("{0}")]
    Config(String),
    /// Reading or writing failed.
    #[error("{path:?}: {source}")]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A collective or the engine failed.
    #[error(transparent)]
    Parallel(#[from] parallel::Error),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// A GPU kernel refused.
    #[error(transparent)]
    Kernel(#[from] kernels::cuda::Error),
    /// libtorch refused.
    #[error(transparent)]
    Torch(#[from] torch::Error),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
