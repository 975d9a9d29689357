//! One file per verb. Each takes its arguments and gives the exit code of its own end.

#![doc = include_str!("json.md")]

pub mod adopt;
pub mod archive;
pub mod baseline;
pub mod cache;
pub mod check;
pub mod compare;
pub mod completions;
pub mod doctor;
pub mod get;
pub mod graph;
pub mod init;
pub mod lock;
pub mod logs;
pub mod man;
pub mod plan;
pub mod report;
pub mod run;
pub mod runs;
pub mod schema;
pub mod serve;
pub mod show;
pub mod verify;
pub mod watch;
pub mod why;
