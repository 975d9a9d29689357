//! Fused arithmetic behind [`model::Ops`].
//!
//! | module | what |
//! |---|---|
//! | [`ops`] | [`Fused`]: CPU kernels where they apply, libtorch elsewhere |
//! | [`spans`] | [`Spans`]: attention over a packed batch |
//! | [`flash`] | [`Flash`]: the same by libtorch's flash attention, on a GPU |
//! | [`softmax`] | [`Softmax`]: log-probability and entropy from logits, and back |
//! | [`cpu`] | one file per kernel: its formula, shapes, forward and backward |
//! | [`cuda`] | GPU kernels: sources compiled at run time, one wrapper each |
//! | [`elem`] | element types, instruction sets, a vectorising exponential |
//!
//! A CPU kernel is also the reference that a GPU kernel of the same name is held against.

pub mod cpu;
pub mod cuda;
pub mod elem;
pub mod flash;
pub mod ops;
pub mod softmax;
pub mod spans;

pub use cuda::CudaOps;
pub use flash::Flash;
pub use ops::{Fused, input_gradient, weight_gradient};
pub use softmax::Softmax;
pub use spans::Spans;
