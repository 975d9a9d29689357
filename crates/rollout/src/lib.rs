//! Generation from the policy's own weights: continuous batching over a paged KV cache.
//!
//! ```text
//!             schedule                    run                          postprocess
//! Request -> scheduler: rows of the -> engine: one forward of those -> append, split groups, -> Sample
//!            next forward               rows, tokens chosen            collect what ended
//!                |                          |
//!             blocks: who owns          store: the keys and
//!             which, known prefixes     values in them
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`rollout`] | [`Rollout`]: the loop above |
//! | `scheduler`, `sequence`, `batch` | which rows next |
//! | `blocks`, `store` | the paged cache: ownership, prefixes, memory, version of the weights |
//! | `engine`, `sampler` | one forward; temperature, top-k, top-p |
//! | `routes` | the experts that cached tokens went to |
//! | `peers` | the ranks that hold the model together |
//! | `cpu`, `device`, `paged` | arithmetic and attention on CPU, on a GPU, and by libtorch anywhere |
//! | [`episodes`] | multi-turn episodes of environments |
//!
//! On CPU a completion has the same bits alone and in any batch: every operation computes a row
//! from that row alone (`cpu`), every draw is keyed by (seed, request, sample, position), and
//! nothing else couples rows.

mod batch;
mod blocks;
mod cpu;
mod device;
mod engine;
pub mod episodes;
mod error;
mod paged;
mod peers;
mod request;
pub mod rollout;
mod routes;
mod sampler;
mod scheduler;
mod sequence;
mod store;

pub use error::Error;
pub use peers::Peers;
pub use request::{Finish, Request, Sample, Sampling};
pub use rollout::{Rollout, RolloutConfig, Stats, text};
pub use store::KvCache;
