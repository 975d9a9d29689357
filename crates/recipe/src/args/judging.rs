//! Arguments of `recipe baseline` and `recipe verify`.

use super::{DeviceArg, RecipeArgs, RemoteArgs, StoreArgs};
use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub struct BaselineArgs {
    #[command(subcommand)]
    pub verb: BaselineVerb,
}

#[derive(Debug, Subcommand)]
pub enum BaselineVerb {
    /// Move a pin to a run: assertions with `baseline` or `digest` compare with it from then on
    Accept {
        /// A run's id, the start of one, or `last`
        run: String,
        /// The pin: NAME in `baseline = "pin:NAME"`
        #[arg(long = "as", value_name = "NAME")]
        name: String,
        /// Why it is accepted, for who looks at the history
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// Who accepts it [default: the user and the machine]
        #[arg(long, value_name = "WHO")]
        by: Option<String>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// List the pins and the runs that they stand for
    List {
        #[command(flatten)]
        store: StoreArgs,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a pin's history, and what its run came to
    Show {
        /// The pin
        name: String,
        #[command(flatten)]
        store: StoreArgs,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[group(id = "how", required = true, multiple = true, args = ["rerun", "resume"])]
pub struct VerifyArgs {
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// The stage; what it reads must be in the store
    pub stage: String,
    /// Compute it again from its beginning
    #[arg(long)]
    pub rerun: bool,
    /// Compute it again, killed after its first checkpoint and resumed from there
    #[arg(long)]
    pub resume: bool,
    /// Where it computes
    #[arg(long, value_enum, default_value_t = DeviceArg::Auto)]
    pub device: DeviceArg,
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Never touch the network
    #[arg(long)]
    pub offline: bool,
    /// Print what was found as JSON
    #[arg(long)]
    pub json: bool,
}
