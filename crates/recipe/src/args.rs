//! The command line, as clap reads it. What each verb does is in [`crate::verbs`].

mod artifacts;
mod common;
mod computing;
mod judging;
mod records;

pub use artifacts::{AdoptArgs, CacheArgs, CacheVerb, GcArgs, GetArgs, TransferArgs};
pub use common::{
    ComputeArgs, DeviceArg, RecipeArgs, RemoteArgs, ResumeArg, SelectArgs, StoreArgs,
};
pub use computing::{CheckArgs, GraphArgs, GraphFormat, LockArgs, PlanArgs, RunArgs, WhyArgs};
pub use judging::{BaselineArgs, BaselineVerb, VerifyArgs};
pub use records::{
    ArchiveArgs, CompareArgs, LogsArgs, ReportArgs, RunsArgs, ServeArgs, ShowArgs, WatchArgs,
};

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs LLM post-training as a build: what a recipe asks for is computed once, and never twice.
#[derive(Debug, Parser)]
#[command(name = "recipe", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

const EXIT_CODES: &str = "Exit codes:
  0 ok   1 a stage failed   2 usage or recipe error   3 an assertion failed
  4 infrastructure, worth a retry   5 store integrity   6 recipe.lock is stale
  7 plan --detailed-exitcode: something would run   75 stopped with a checkpoint, resumable
  130/143 stopped by a signal without one";

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run what is missing
    Run(Box<RunArgs>),
    /// Say what would run, what is reused, and why
    Plan(PlanArgs),
    /// Say which fields of a stage's key differ from its last result
    Why(WhyArgs),
    /// Parse, resolve and validate a recipe; no work
    Check(CheckArgs),
    /// Pin what a recipe's sources are in recipe.lock
    Lock(LockArgs),
    /// Take an artifact out of the store
    Get(GetArgs),
    /// Bring in weights or data that were made elsewhere, with a statement
    Adopt(AdoptArgs),
    /// Draw the stages and what they read from each other
    Graph(GraphArgs),
    /// List runs
    Runs(RunsArgs),
    /// Show a run
    Show(ShowArgs),
    /// Say what differs between two runs, and what follows from it
    Compare(CompareArgs),
    /// Write a page with the stages, curves and samples of runs
    Report(ReportArgs),
    /// Follow a run that goes on in another process
    Watch(WatchArgs),
    /// Show the runs as pages on this machine, live while they go on
    Serve(ServeArgs),
    /// Write a run to a folder that stands on its own, as an RO-Crate
    Archive(ArchiveArgs),
    /// Print the log of a stage of a run
    Logs(LogsArgs),
    /// Keep what a run came to, for assertions to compare with
    Baseline(BaselineArgs),
    /// Compute a stage again and compare the bits
    Verify(Box<VerifyArgs>),
    /// Look into the artifact store
    Cache(CacheArgs),
    /// Print the JSON Schema of the recipe file
    Schema,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print a manual page
    Man(ManArgs),
    /// Check what this machine has
    Doctor(DoctorArgs),
    /// Make a folder with a recipe that runs
    Init(InitArgs),
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The verb it is about, such as run or "cache gc"; of recipe itself, when none is named
    pub verb: Option<String>,
    /// Write all pages to DIR instead
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    pub to: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The folder to make
    pub dir: PathBuf,
}
