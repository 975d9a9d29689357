//! The CPU path: every row's result depends on that row alone, to the last bit.
//!
//! | module | what |
//! |---|---|
//! | [`packed`], [`gemm`] | linear layers: with AVX-512, and without |
//! | [`attention`] | attention over paged keys and values ([`memory`]) |
//! | [`pointwise`] | norm, rotary position, SwiGLU |
//! | [`ops`] | the above as the model's `Ops` on libtorch tensors |
//! | [`pool`] | threads; results do not depend on their number |
//! | [`kernels::elem`] | f32 and bf16, instruction sets, the exponential |
//!
//! libtorch's own kernels do not promise this: its BLAS picks kernels by the number of rows, and
//! vectorised loops treat the elements at their end apart. Padding every batch to one fixed shape
//! would give the promise at the price of the largest shape; here small batches stay cheap.

pub mod attention;
pub mod gemm;
pub mod memory;
pub mod ops;
#[cfg(target_arch = "x86_64")]
pub mod packed;
pub mod pointwise;
pub mod pool;
#[cfg(target_arch = "x86_64")]
mod wide;

/// Numbers that are computed with.
#[cfg(target_arch = "x86_64")]
pub use kernels::cpu::simd::Cell as Number;
#[cfg(not(target_arch = "x86_64"))]
pub use kernels::elem::Elem as Number;
