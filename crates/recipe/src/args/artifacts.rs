//! Arguments of the verbs that handle artifacts: get, adopt, and the store's own.

use super::{RecipeArgs, RemoteArgs, StoreArgs};
use crate::completing;
use clap::{Args, Subcommand};
use clap_complete::engine::ArgValueCompleter as Offer;
use std::path::PathBuf;

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
