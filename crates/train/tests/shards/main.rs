//! Sharded parameters, gradients, optimizer state and checkpoints over real processes, and what
//! ranks say when one is silent or does something else. The binary starts itself as ranks.

#[allow(dead_code)]
#[path = "../main/cases.rs"]
mod cases;
mod checkpoints;
mod failures;
mod limited;
mod ranks;
mod state;
