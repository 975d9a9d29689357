//! Tests of the crate `arch`, in one binary.

mod config;
mod init;
mod params;
mod rope;
mod slice;
