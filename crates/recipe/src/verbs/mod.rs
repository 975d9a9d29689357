//! One file per verb. Each takes its arguments and gives the exit code of its own end.

pub mod cache;
pub mod check;
pub mod completions;
pub mod doctor;
pub mod get;
pub mod graph;
pub mod init;
pub mod logs;
pub mod plan;
pub mod run;
pub mod runs;
pub mod schema;
pub mod show;
pub mod why;
