//! Arguments of the verbs that read runs: runs, show, compare, report, archive, watch, serve, logs.

use super::{RemoteArgs, StoreArgs};
use crate::ci::CiArgs;
use crate::completing;
use clap::Args;
use clap_complete::engine::ArgValueCompleter as Offer;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct RunsArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print the records as JSON lines
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A run's id, the start of one, or `last`
    #[arg(add = Offer::new(completing::runs))]
    pub run: String,
    /// Print the metrics of a stage as JSON lines
    #[arg(long, value_name = "STAGE", add = Offer::new(completing::stages_of_run))]
    pub metrics: Option<String>,
    #[command(flatten)]
    pub ci: CiArgs,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print the record as JSON
    #[arg(long, conflicts_with = "metrics")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A run's id, the start of one, or `last`
    #[arg(add = Offer::new(completing::runs))]
    pub a: String,
    /// The other run
    #[arg(add = Offer::new(completing::runs))]
    pub b: String,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Runs (ids, the start of one, or `last`); the first in detail, the others' curves beside it
    #[arg(value_name = "RUN", required = true, add = Offer::new(completing::runs))]
    pub runs: Vec<String>,
    /// The file to write: one page, no scripts, no requests
    #[arg(long, value_name = "FILE")]
    pub html: PathBuf,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct ArchiveArgs {
    /// A run's id, the start of one, or `last`
    #[arg(add = Offer::new(completing::runs))]
    pub run: String,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// An artifact that it is to hold; several
    #[arg(long, value_name = "STAGE.OUTPUT")]
    pub with: Vec<String>,
    /// The license of what is in it: a URL or words
    #[arg(long, value_name = "LICENSE", default_value = "not stated")]
    pub license: String,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// A run's id, the start of one, or `last`
    #[arg(default_value = "last", add = Offer::new(completing::runs))]
    pub run: String,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The port on 127.0.0.1; 0 takes any that is free [default: 7878, or any where that is taken]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// A run's id, the start of one, or `last`
    #[arg(add = Offer::new(completing::runs))]
    pub run: String,
    #[arg(add = Offer::new(completing::stages_of_run))]
    pub stage: String,
    /// Which attempt [default: the last]
    #[arg(long, value_name = "N")]
    pub attempt: Option<u32>,
    #[command(flatten)]
    pub store: StoreArgs,
}
