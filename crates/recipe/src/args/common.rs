//! Arguments that several verbs share: the recipe, the stores, which stages, how they compute.

use crate::completing;
use clap::{Args, ValueEnum};
use clap_complete::engine::ArgValueCompleter as Offer;
use std::path::PathBuf;

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
