//! The command line of `recipe`: arguments, printing, exit codes. One file per verb in [`verbs`].

mod args;
mod budget;
mod causes;
mod ci;
mod compare;
mod completing;
mod devices;
mod digests;
mod fail;
mod format;
mod names;
mod output;
mod past;
mod price;
mod profiling;
mod progress;
mod project;
mod provenance;
mod report;
mod serve;
mod spending;
mod tensors;
mod verbs;

use args::{Cli, Verb};
use clap::Parser;
use fail::Fail;
use std::process::ExitCode;

/// A recipe of thousands of stages is many small values: they take a third less time this way.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    if runner::guard::requested() {
        return runner::guard::main();
    }
    output::report_panics();
    if completing::answered() {
        return ExitCode::SUCCESS;
    }
    match std::panic::catch_unwind(run) {
        Ok(code) => ExitCode::from(code),
        // the hook has said what happened
        Err(_) => ExitCode::from(1),
    }
}

fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // help and version come this way too, with exit code 0
            let _ = e.print();
            return u8::try_from(e.exit_code()).unwrap_or(2);
        }
    };
    match dispatch(cli.verb) {
        Ok(code) => code,
        Err(fail) => {
            output::error(&fail.report());
            fail.exit_code()
        }
    }
}

/// Runs a verb; its exit code when it came to an end of its own.
fn dispatch(verb: Verb) -> Result<u8, Fail> {
    match verb {
        Verb::Run(args) => verbs::run::run(*args),
        Verb::Plan(args) => verbs::plan::run(args),
        Verb::Why(args) => verbs::why::run(args),
        Verb::Check(args) => verbs::check::run(args),
        Verb::Lock(args) => verbs::lock::run(args),
        Verb::Get(args) => verbs::get::run(args),
        Verb::Adopt(args) => verbs::adopt::run(args),
        Verb::Graph(args) => verbs::graph::run(args),
        Verb::Runs(args) => verbs::runs::run(args),
        Verb::Show(args) => verbs::show::run(args),
        Verb::Compare(args) => verbs::compare::run(args),
        Verb::Report(args) => verbs::report::run(args),
        Verb::Archive(args) => verbs::archive::run(args),
        Verb::Watch(args) => verbs::watch::run(args),
        Verb::Serve(args) => verbs::serve::run(args),
        Verb::Logs(args) => verbs::logs::run(args),
        Verb::Baseline(args) => verbs::baseline::run(args),
        Verb::Verify(args) => verbs::verify::run(*args),
        Verb::Cache(args) => verbs::cache::run(args),
        Verb::Schema => verbs::schema::run(),
        Verb::Completions(args) => verbs::completions::run(args),
        Verb::Man(args) => verbs::man::run(args),
        Verb::Doctor(args) => verbs::doctor::run(args),
        Verb::Init(args) => verbs::init::run(args),
    }
}
