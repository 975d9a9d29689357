//! What crosses segments and ranks: collectives, the segment engine, gradient buffers.
//!
//! A decoder is a list of segments. The engine gathers a segment's parameters through one door
//! ([`Parameters`]), runs it, keeps or drops its graph, and walks back with one vector-Jacobian
//! product per segment; gradients leave through one door ([`Gradients`]). Sharding schemes are
//! other implementations of these two doors, never changes of model files.

mod collective;
mod cp;
mod crossing;
mod engine;
mod ep;
mod error;
mod grads;
mod groups;
mod inside;
pub mod pipeline;
mod reshard;
mod routes;
mod sharded;
mod tp;

pub use collective::{
    Carrier, Collective, Count, Counts, Gloo, Nccl, NcclProcess, Net, Pending, Solo, Transport,
    Wanted, free_port,
};
pub use engine::{Checkpointing, Engine, Microbatch, Parameters, Walk, Whole};
pub use ep::AllToAll;
pub use error::Error;
pub use grads::{Gradients, Grads};
pub use groups::Groups;
pub use inside::Inside;
pub use reshard::Reshard;
pub use routes::{Load, Moe, Routes};
pub use sharded::{Part, Sharded, Units};
