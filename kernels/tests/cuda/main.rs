//! The GPU kernels without a GPU: their sources compile for three architectures, wrappers refuse what does not fit, and
//! every kernel, run on the host by `emulate`, agrees with plain tensor code in fp64.

mod adamw;
mod arguments;
mod compile;
mod ops;
mod paged;
mod rows;
mod sample;
mod softmax;
mod support;
