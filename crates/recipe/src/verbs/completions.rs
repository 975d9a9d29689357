//! `recipe completions SHELL`: a script that asks `recipe` itself what fits, so that stages of the recipe
//! and runs of the store are offered too (see [`crate::completing`]).

use crate::args::CompletionsArgs;
use crate::completing::VARIABLE;
use crate::fail::Fail;
use crate::output;
use clap_complete::env::Shells;

pub fn run(args: CompletionsArgs) -> Result<u8, Fail> {
    let shells = Shells::builtins();
    let name = args.shell.to_string();
    let Some(shell) = shells.completer(&name) else {
        return Err(Fail::usage(
            format!("there are no completions for '{name}'"),
            format!("known: {}", shells.names().collect::<Vec<_>>().join(", ")),
        ));
    };
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "recipe", "recipe", "recipe", &mut script)
        .map_err(|e| Fail::io("write", std::path::Path::new("stdout"), &e))?;
    output::bytes(&script);
    Ok(0)
}
