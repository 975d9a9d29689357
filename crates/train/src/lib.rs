//! The trainer's heart: batches of units, their plan over ranks and microbatches, the policy, the
//! token log-probability head, optimizers, schedules, checkpoints, metrics.
//!
//! An algorithm owns its loop and calls [`Policy::logprobs`], [`Policy::accumulate`] (or
//! [`Policy::accumulate_known`] where the coefficients are known beforehand) and
//! [`Policy::apply`]. Every rank makes the same calls with the same units.

mod balance;
mod batch;
mod checkpoint;
mod device;
mod error;
mod export;
mod head;
mod lay;
mod lend;
pub mod loss;
mod metrics;
mod optimizer;
mod plan;
mod policy;
mod schedule;
mod tensors;
mod update;
mod walk;

pub use batch::{Branch, LossOut, Replay, Tokens, Unit, UnitSpan};
pub use checkpoint::CheckpointState;
pub use device::{device, numerics};
pub use error::Error;
pub use metrics::{Meter, Sums, Work};
pub use optimizer::{Optimizer, OptimizerConfig};
pub use parallel::{Checkpointing, Collective, Gloo, Groups, Solo};
pub use plan::Plan;
pub use policy::{Accumulated, Entropy, Observe, Policy, PolicyConfig, StateBytes, StepStats};
pub use schedule::{Schedule, Shape};
