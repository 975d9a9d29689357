//! Drives real runs in scratch projects: `examples/drive.rs` is the runner, commands and `examples/scripted_worker.rs` the
//! processes.

mod commands;
mod crashes;
mod healing;
mod judging;
mod parts;
mod project;
mod scheduling;
mod sweeps;
mod workers;
