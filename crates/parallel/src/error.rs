//! Errors of collectives and of the segment engine.

/// Why a collective or a walk over segments failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A collective failed or ran past its deadline.
    #[error(
        "rank {rank} of {size}: {collective} failed in phase '{phase}': {reason}; look at the other ranks' logs for the one that stopped first"
    )]
    Collective {
        /// The rank that reports.
        rank: usize,
        /// Ranks in all.
        size: usize,
        /// Which collective, and over which group.
        collective: String,
        /// What the rank was doing.
        phase: String,
        /// What the transport said, and what the other ranks say of themselves.
        reason: String,
    },
    /// No transport for the collectives.
    #[error("rank {rank} of {size}: {why}")]
    Transport {
        /// The rank that reports.
        rank: usize,
        /// Ranks in all.
        size: usize,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Ranks that met in one collective with different tensors, or in different collectives.
    #[error("rank {rank} of {size}: ranks do not call the same: rank {rank}: {mine}; {peers}")]
    Mismatch {
        /// The rank that reports.
        rank: usize,
        /// Ranks in all.
        size: usize,
        /// What this rank called, with shape and phase.
        mine: String,
        /// What the others called.
        peers: String,
    },
    /// Sizes that do not fit the collective.
    #[error(
        "rank {rank} of {size}: {collective} in phase '{phase}' got an output of {got} elements where {want} are needed"
    )]
    Sizes {
        /// The rank that reports.
        rank: usize,
        /// Ranks in the group.
        size: usize,
        /// Which collective.
        collective: &'static str,
        /// What the rank was doing.
        phase: String,
        /// Elements of the output given.
        got: i64,
        /// Elements the output must have.
        want: i64,
    },
    /// A gradient whose shape is not its parameter's.
    #[error("gradient of '{name}' has shape {got:?}, its parameter has {want:?}")]
    Shape {
        /// Hugging Face name of the parameter.
        name: String,
        /// Shape of the gradient.
        got: Vec<i64>,
        /// Shape of the parameter.
        want: Vec<i64>,
    },
    /// A gradient for a tensor that is not a parameter of the model.
    #[error("gradient of '{name}', which is no parameter of this model")]
    Unknown {
        /// The name given.
        name: String,
    },
    /// The bridge to libtorch failed.
    #[error(transparent)]
    Torch(#[from] torch::Error),
    /// The model refused.
    #[error(transparent)]
    Model(#[from] model::Error),
}
