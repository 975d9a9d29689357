//! `recipe completions SHELL`.

use crate::args::{Cli, CompletionsArgs};
use crate::fail::Fail;
use crate::output;
use clap::CommandFactory;

pub fn run(args: CompletionsArgs) -> Result<u8, Fail> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "recipe", &mut script);
    output::bytes(&script);
    Ok(0)
}
