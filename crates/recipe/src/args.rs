//! The command line, as clap reads it. What each verb does is in [`crate::verbs`].

mod judging;

pub use judging::{BaselineArgs, BaselineVerb, VerifyArgs};

use crate::budget::{Limit, Rate};
use crate::ci::CiArgs;
use crate::completing;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter as Offer;
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

/// A recipe and its layers.
#[derive(Debug, Args)]
pub struct RecipeArgs {
    /// The recipe file
    pub recipe: PathBuf,
    /// Set a parameter (lr=1e-4) or any path (stage.sft.with.lr=1e-4)
    #[arg(short = 'S', value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Apply [profile.NAME]
    #[arg(long, value_name = "NAME", add = Offer::new(completing::profiles))]
    pub profile: Option<String>,
}

/// Where the store is.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The store: a directory, s3://, gs:// or az:// [default: .recipe at the project root]
    #[arg(long, value_name = "URL")]
    pub store: Option<String>,
}

/// What lies behind a local store.
#[derive(Debug, Args)]
pub struct RemoteArgs {
    /// The store behind a local one, where results are looked for as well: s3://, gs:// or az://
    /// [default: the environment variable RECIPE_REMOTE]; `none` for none
    #[arg(long, value_name = "URL")]
    pub remote: Option<String>,
}

/// Which stages.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// Only these stages; what they read must be in the store
    #[arg(long, value_name = "STAGE", add = Offer::new(completing::stages))]
    pub only: Vec<String>,
    /// These stages and what they read (as naming them does)
    #[arg(long, value_name = "STAGE", add = Offer::new(completing::stages))]
    pub until: Vec<String>,
    /// These stages and what reads them
    #[arg(long, value_name = "STAGE", add = Offer::new(completing::stages))]
    pub from: Vec<String>,
    /// Not these stages; what reads them takes their result from the store
    #[arg(long, value_name = "STAGE", add = Offer::new(completing::stages))]
    pub skip: Vec<String>,
}

/// How stages are looked up and computed.
#[derive(Debug, Args)]
pub struct ComputeArgs {
    /// Compute again although a result exists: all selected stages, or these
    #[arg(long, value_name = "STAGE", num_args = 0..=1, require_equals = true, default_missing_value = "",
          add = Offer::new(completing::stages))]
    pub force: Vec<String>,
    /// Where stages compute
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    /// Refuse sources that recipe.lock does not describe
    #[arg(long)]
    pub locked: bool,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
    /// Reuse results that another build of the trainer computed
    #[arg(long)]
    pub accept_trainer: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DeviceArg {
    /// CUDA where this machine has a GPU, else the CPU
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ResumeArg {
    /// Go on from the newest checkpoint
    Auto,
    /// Start stages from their beginning
    Never,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// These stages and what they read; all, when none is named
    #[arg(value_name = "STAGE", add = Offer::new(completing::stages))]
    pub stages: Vec<String>,
    #[command(flatten)]
    pub select: SelectArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Go on with stages that do not need a failed one
    #[arg(long)]
    pub keep_going: bool,
    /// Most stages at once
    #[arg(short = 'j', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Do not send what is computed to the remote store
    #[arg(long)]
    pub no_push: bool,
    /// Tell no tracker of the recipe's [track] tables
    #[arg(long)]
    pub no_track: bool,
    /// What to do with checkpoints of an interrupted stage
    #[arg(long, value_enum, default_value_t = ResumeArg::Auto)]
    pub resume: ResumeArg,
    /// Start only if it is expected to cost at most this, from what its stages took before: time,
    /// CPU or GPU time (90min, 4cpuh, 2gpuh) or money (20USD, with --rate); several: 2gpuh,1h
    #[arg(long, value_name = "LIMIT", value_delimiter = ',')]
    pub max_cost: Vec<Limit>,
    /// What is paid for time, CPU or GPU time: 2.10USD/gpuh
    #[arg(
        long,
        value_name = "RATE",
        value_delimiter = ',',
        requires = "max_cost"
    )]
    pub rate: Vec<Rate>,
    /// Start although it may cost more than --max-cost
    #[arg(long, requires = "max_cost")]
    pub yes: bool,
    /// Write what happens to FILE as JSON lines
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    #[command(flatten)]
    pub ci: CiArgs,
    /// Print the outcome as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// These stages and what they read; all, when none is named
    #[arg(value_name = "STAGE", add = Offer::new(completing::stages))]
    pub stages: Vec<String>,
    #[command(flatten)]
    pub select: SelectArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Say instead how each training stage fits on so many GPUs (several: 1,8,64)
    #[arg(long, value_name = "N", value_delimiter = ',', requires = "gpu_memory", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub gpus: Vec<u32>,
    /// Memory of a GPU (several: 80GB,141GB); without --gpus, refuse stages that do not fit it
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = crate::devices::parse_memory)]
    pub gpu_memory: Vec<u64>,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    /// Exit 7 when something would run
    #[arg(long)]
    pub detailed_exitcode: bool,
}

#[derive(Debug, Args)]
pub struct WhyArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// The stage
    #[arg(add = Offer::new(completing::stages))]
    pub stage: String,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print the differences as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Say where a value comes from instead: a parameter (lr) or any path (stage.sft.with.lr)
    #[arg(long, value_name = "KEY")]
    pub explain: Option<String>,
    /// Print the resolved recipe, or the explanation, as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Pin this source anew as it is now; without a name, all of them
    #[arg(long, value_name = "SOURCE", num_args = 0..=1, default_missing_value = "")]
    pub update: Vec<String>,
    /// Change nothing; exit 6 when a source is not what the lock says
    #[arg(long, conflicts_with = "update")]
    pub check: bool,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// The artifact
    #[arg(value_name = "STAGE.OUTPUT", add = Offer::new(completing::outputs))]
    pub output: String,
    /// The directory to make
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Hard-link to the store instead of copying; the files are then read-only
    #[arg(long)]
    pub link: bool,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// The file or directory
    pub path: PathBuf,
    /// Who brings it in
    #[arg(long, value_name = "WHO")]
    pub by: String,
    /// Where it was made or taken from
    #[arg(long, value_name = "WHERE")]
    pub from: String,
    /// Why it is brought in
    #[arg(long, value_name = "TEXT")]
    pub why: String,
    /// Refuse it unless a file has this sha256, as its maker published it; several
    #[arg(long, value_name = "[FILE=]HEX")]
    pub sha256: Vec<String>,
    /// The source's name in the lines that are printed for a recipe
    #[arg(long = "as", value_name = "NAME", default_value = "base")]
    pub name: String,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum GraphFormat {
    Dot,
    Mermaid,
    Json,
}

#[derive(Debug, Args)]
pub struct GraphArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    #[arg(long, value_enum, default_value_t = GraphFormat::Dot)]
    pub format: GraphFormat,
}

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

#[derive(Debug, Args)]
pub struct CacheArgs {
    #[command(subcommand)]
    pub verb: CacheVerb,
}

#[derive(Debug, Subcommand)]
pub enum CacheVerb {
    /// Say what the store holds
    Stat {
        #[command(flatten)]
        store: StoreArgs,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Check that everything is what its name says
    Verify {
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        remote: RemoteArgs,
        /// Hash every blob again, whatever its file's times say
        #[arg(long)]
        paranoid: bool,
        /// Fetch what is damaged from the remote store, else drop what depends on it, so that the
        /// next run computes it
        #[arg(long)]
        repair: bool,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what no recent run, pin, lock file or running stage needs
    Gc(GcArgs),
    /// Keep an artifact whatever its age; without arguments, list what is kept
    Pin {
        /// The pin's name
        name: Option<String>,
        /// The artifact's digest, or the recipe that makes it
        #[arg(value_name = "DIGEST|RECIPE", requires = "name")]
        what: Option<String>,
        /// Which of the recipe's artifacts
        #[arg(value_name = "STAGE.OUTPUT", requires = "what")]
        output: Option<String>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Keep an artifact no longer
    Unpin {
        name: String,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Send results to the remote store: all, or those of a recipe's stages
    Push(TransferArgs),
    /// Fetch results and their artifacts from the remote store: all, or those of a recipe's stages
    Pull(TransferArgs),
}

#[derive(Debug, Args)]
pub struct GcArgs {
    #[command(flatten)]
    pub store: StoreArgs,
    /// Forget runs that ended longer ago, and what only they used: 12h, 30d
    #[arg(long, value_name = "AGE", default_value = "30d", value_parser = crate::format::parse_age)]
    pub older_than: std::time::Duration,
    /// Forget further runs, the oldest first, until the store holds at most this much: 500GB
    #[arg(long, value_name = "SIZE", value_parser = crate::devices::parse_memory)]
    pub max_size: Option<u64>,
    /// Say what would go; remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Only the results of this recipe's stages
    pub recipe: Option<PathBuf>,
    /// Only these stages
    #[arg(value_name = "STAGE", requires = "recipe")]
    pub stages: Vec<String>,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
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
