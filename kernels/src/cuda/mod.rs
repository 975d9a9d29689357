//! GPU kernels: CUDA C++ of `kernels/cuda`, compiled at run time by NVRTC and launched on libtorch's tensors and stream.
//!
//! | module | what |
//! |---|---|
//! | [`source`] | the sources, in the binary |
//! | [`compile`] | NVRTC, and compiled code kept on disk |
//! | [`launch`] | a launch, and the [`Machine`] that carries it out |
//! | [`driver`] | the machine that is a GPU |
//! | `check` | shapes, kinds and places, before anything is launched |
//! | [`rms_norm`], [`rope`], [`swiglu`], [`softmax`], [`adamw`], [`paged`], [`sample`] | one kernel each |
//! | [`ops`] | [`CudaOps`]: the segments' arithmetic, with gradients |
//!
//! Each wrapper checks its tensors, takes memory for results from the machine and launches. Nothing here waits for the
//! device. The same wrappers run in tests on a machine that emulates a GPU on the host (`crates/emulate`).

pub mod adamw;
mod check;
pub mod compile;
pub mod driver;
mod error;
pub mod launch;
pub mod ops;
pub mod paged;
pub mod rms_norm;
pub mod rope;
pub mod sample;
pub mod softmax;
pub mod source;
pub mod swiglu;

pub use check::FLOATS;
pub use driver::{Choice, choice, machine};
pub use error::Error;
pub use launch::Machine;
pub use ops::CudaOps;
