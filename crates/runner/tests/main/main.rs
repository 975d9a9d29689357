//! Drives real runs in scratch projects: `examples/drive.rs` is the runner, commands and `examples/scripted_worker.rs` the
//! processes.

mod commands;
mod crashes;
mod project;
mod sources;
mod workers;
