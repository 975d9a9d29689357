//! `recipe run`: what is missing is computed, and the outcome said.

use crate::args::{RecipeArgs, ResumeArg, RunArgs};
use crate::budget::Estimate;
use crate::fail::{self, Fail};
use crate::format::{duration, table};
use crate::past::Run;
use crate::progress::{Watch, plain, stage};
use crate::{output, profiling, project, spending};
use runner::{Outcome, Status};
use serde_json::json;
use spec::Plan;

pub fn run(args: RunArgs) -> Result<u8, Fail> {
    let (ci, recipe) = (args.ci.clone(), args.recipe.recipe.clone());
    ci.begin(&recipe)?;
    let ended = work(args);
    if let Err(fail) = &ended {
        ci.write_failure(&recipe, fail);
    }
    ended
}

fn work(args: RunArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let file = args.recipe.recipe.clone();
    let typed = typed(&args.recipe);
    let selection = project::selection(args.stages, args.select)?;
    let plan = Plan::new(recipe, &selection)?;
    let url = project::store(&args.store, project::folder(&file));
    project::prepare_store(&args.store, &url)?;
    let mut options = project::options(url, args.compute, &plan)?;
    if !options.offline {
        options.remote = project::remote(&args.remote, &options.store);
        options.push = !args.no_push;
    }
    options.keep_going = args.keep_going;
    options.track = !args.no_track;
    options.jobs = args.jobs.map(|n| n as usize);
    options.profile = args.profile_steps;
    if let Some(steps) = args.profile_steps {
        profiling::check(&plan, steps)?;
    }
    options.resume = match args.resume {
        ResumeArg::Auto => runner::Resume::Auto,
        ResumeArg::Never => runner::Resume::Never,
    };
    if !args.max_cost.is_empty() && !args.yes {
        let stages = runner::resolve(&plan, &options)?;
        Estimate::of(&plan, &stages, options.takes_gpus()).within(&args.max_cost, &args.rate)?;
    }
    // before any thread starts, so that all of them leave these signals to the one that waits
    options.cancel.on_signals()?;
    let mut watch = Watch::new(&plan, args.events.as_deref())?;
    let outcome = runner::run(&plan, &options, &mut watch)?;
    let reported = match args.ci.wanted() {
        true => args.ci.write(&Run::of(&outcome)),
        false => Ok(()),
    };
    let profiled = args
        .profile_steps
        .map(|_| profiling::of(&plan, &outcome, &options.store));
    if args.json {
        let mut value = serde_json::to_value(&outcome).unwrap_or_default();
        value["version"] = json!(1);
        if let Some(profiled) = profiled {
            value["profile"] = json!(profiled);
        }
        output::json(&value);
    } else {
        output::line(summary(&outcome));
        if let Some(profiled) = profiled {
            output::line(profiled.to_string());
        }
        if let Some(hint) = hint(&plan, &typed, &outcome) {
            output::line(hint);
        }
    }
    for stage in outcome.stages.iter().filter(|s| !watch.told(&s.stage)) {
        if let Some(report) = report(stage) {
            output::error(&report);
        }
    }
    let failed = |s: &runner::StageOutcome| s.error.is_some();
    if let Some(error) = &outcome.unrecorded
        && !outcome.stages.iter().any(failed)
    {
        output::error(&fail::text(
            fail::class_code(error.class),
            &format!("the run's record is incomplete: {}", error.message),
            error.help.as_deref(),
        ));
    }
    let mut code = outcome.exit_code;
    if let Err(fail) = reported {
        output::error(&fail.report());
        code = if code == 0 { fail.exit_code() } else { code };
    }
    // The process ends here: to free thousands of stages one by one would only take time.
    std::mem::forget((plan, outcome));
    Ok(code)
}

/// The table at the end: every stage with state, time, key metrics and artifact.
fn summary(outcome: &Outcome) -> String {
    let mut rows = vec![
        ["stage", "kind", "state", "time", "metrics", "artifact"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for stage in &outcome.stages {
        let artifacts: Vec<String> = stage
            .outputs
            .iter()
            .map(|(name, digest)| format!("{name} {}", digest.get(..12).unwrap_or(digest)))
            .collect();
        rows.push(vec![
            stage.stage.clone(),
            stage.kind.clone(),
            plain::word(stage.status).to_owned(),
            match stage.status {
                Status::Reused | Status::NotRun | Status::Skipped => "-".to_owned(),
                _ => duration(stage.seconds),
            },
            stage::key_metrics(&stage.metrics),
            artifacts.join(", "),
        ]);
    }
    let reused = outcome
        .stages
        .iter()
        .filter(|s| s.status == Status::Reused)
        .count();
    format!(
        "\n{}\n\nrun {} of {}: {} of {} stages reused, {}",
        table(&rows),
        outcome.run,
        outcome.recipe,
        reused,
        outcome.stages.len(),
        duration(outcome.seconds)
    ) + &match outcome.spent.is_zero() {
        true => String::new(),
        false => format!("\nspent: {}", spending::cost(&outcome.spent)),
    }
}

/// The recipe and its layers as they were typed, for the next command.
fn typed(args: &RecipeArgs) -> String {
    let mut words = vec![args.recipe.display().to_string()];
    words.extend(args.set.iter().map(|set| format!("-S {set}")));
    words.extend(args.profile.iter().map(|name| format!("--profile {name}")));
    words.join(" ")
}

/// What to type next.
fn hint(plan: &Plan, recipe: &str, outcome: &Outcome) -> Option<String> {
    match outcome.exit_code {
        0 => {
            // the last stage that makes something nobody in the recipe reads
            let last = plan
                .order
                .iter()
                .rev()
                .find(|s| s.downstream.is_empty() && !s.stage.outputs.is_empty())?;
            let name = &last.stage.name;
            let output = &last.stage.outputs[0].name;
            Some(format!(
                "take the result out: recipe get {recipe} {name}.{output} --to DIR"
            ))
        }
        75 => Some("stopped with a checkpoint: the same command goes on from there".to_owned()),
        _ => None,
    }
}

/// What a stage's failure was, where no attempt of it has told that already.
fn report(stage: &runner::StageOutcome) -> Option<String> {
    let name = &stage.stage;
    match (stage.status, &stage.error) {
        (Status::AssertionFailed | Status::Failed, Some(error)) => {
            let code = error
                .code
                .clone()
                .unwrap_or_else(|| fail::class_code(error.class).to_owned());
            Some(fail::text(
                &code,
                &format!("stage '{name}': {}", error.message),
                error.help.as_deref(),
            ))
        }
        (Status::AssertionFailed, None) => Some(fail::text(
            spec::codes::ASSERTION,
            &format!(
                "stage '{name}': {}",
                stage.why.as_deref().unwrap_or("an assertion does not hold")
            ),
            None,
        )),
        _ => None,
    }
}
