//! The smallest program that embeds the runner; what the tests drive.
//!
//! `drive RECIPE STORE [--force STAGE|all] [--keep-going] [--locked] [--only S] [--from S] [--skip S] [--resume-never]
//! [--interrupt] [--accept-trainer] [-j N] [-S k=v] [--plan]` prints one line per event, then the outcome as JSON.

use std::process::ExitCode;

use runner::{Cancel, Force, Options, Report, Reporter, Resume};
use spec::{Layers, Plan, Selection};

/// Prints events as JSON lines.
struct Lines;

impl Reporter for Lines {
    fn report(&mut self, event: &Report) {
        println!("{}", serde_json::to_string(event).unwrap_or_default());
    }
}

fn main() -> ExitCode {
    // First of all: this program is also the guard of its runs.
    if runner::guard::requested() {
        return runner::guard::main();
    }
    match drive() {
        Ok(code) => ExitCode::from(code),
        Err((code, text)) => {
            eprintln!("{text}");
            ExitCode::from(code)
        }
    }
}

fn drive() -> Result<u8, (u8, String)> {
    let mut args = std::env::args().skip(1);
    let usage = |what: &str| (2, format!("{what}; usage: drive RECIPE STORE [OPTIONS]"));
    let recipe = args.next().ok_or_else(|| usage("no recipe"))?;
    let mut options = Options::new(args.next().ok_or_else(|| usage("no store"))?);
    let mut selection = Selection::default();
    let mut layers = Layers::default();
    let mut plan_only = false;
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .ok_or_else(|| usage(&format!("{arg} needs a value")))
        };
        match arg.as_str() {
            "--force" => {
                options.force = match value()?.as_str() {
                    "all" => Force::All,
                    stage => Force::Stages(vec![stage.to_owned()]),
                }
            }
            "--keep-going" => options.keep_going = true,
            "--locked" => options.locked = true,
            "--accept-trainer" => options.accept_trainer = true,
            "--interrupt" => options.interrupt = true,
            "--resume-never" => options.resume = Resume::Never,
            "--only" => selection.only.push(value()?),
            "--from" => selection.from.push(value()?),
            "--skip" => selection.skip.push(value()?),
            "--grace-ms" => {
                options.grace = std::time::Duration::from_millis(
                    value()?.parse().map_err(|_| usage("not a number"))?,
                );
            }
            "-j" => options.jobs = value()?.parse().ok(),
            "-S" => layers.settings.push(spec::Setting(value()?)),
            "--plan" => plan_only = true,
            _ => return Err(usage(&format!("unknown option {arg}"))),
        }
    }
    let cancel = Cancel::default();
    cancel.on_signals().map_err(|e| (4, e.to_string()))?;
    options.cancel = cancel;
    let recipe = spec::load(recipe.as_ref(), &layers).map_err(|d| (2, d.message))?;
    let plan = Plan::new(recipe, &selection).map_err(|d| (2, d.message))?;
    let fail = |e: runner::Error| (e.class().exit_code(), format!("error: {e}"));
    if plan_only {
        for stage in runner::resolve(&plan, &options).map_err(fail)? {
            println!("{} {:?}", stage.stage, stage.state);
        }
        return Ok(0);
    }
    let outcome = runner::run(&plan, &options, &mut Lines).map_err(fail)?;
    println!("{}", serde_json::to_string(&outcome).unwrap_or_default());
    Ok(outcome.exit_code)
}
