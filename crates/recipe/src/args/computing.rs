//! Arguments of the verbs that read a recipe: run, plan, why, check, lock, graph.

use super::{ComputeArgs, RecipeArgs, RemoteArgs, ResumeArg, SelectArgs, StoreArgs};
use crate::budget::{Limit, Rate};
use crate::ci::CiArgs;
use crate::completing;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter as Offer;
use std::path::PathBuf;

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
    /// Write a trace of these steps of each training stage that computes, the first to the last, as in
    /// 10..12: for https://ui.perfetto.dev, in the run's record
    #[arg(long, value_name = "A..B")]
    pub profile_steps: Option<spec::job::StepRange>,
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
