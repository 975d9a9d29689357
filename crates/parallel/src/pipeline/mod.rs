//! Pipeline parallelism: each rank of the pipeline group is a stage that holds some chunks of the
//! segments; microbatches go through the chunks in order, and their gradients back.
//!
//! [`schedule`] says who does what when, as pure data; [`drive`] does it over a [`Collective`].
//!
//! [`Collective`]: crate::Collective

pub mod drive;
pub mod schedule;

pub use drive::{Chunks, drive};
pub use schedule::{Event, Pass, Place, Shape};
