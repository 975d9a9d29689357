//! The trainer against plain autograd, against itself on two ranks, and across a restart.

mod cases;
mod checkpoint;
mod engine;
mod plain;
mod policy;
mod ranks;
