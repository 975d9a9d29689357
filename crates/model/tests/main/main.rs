//! Tests of the crate `model`, in one binary.

mod bad;
mod golden;
mod packed;
mod save;
mod stream;
mod support;
