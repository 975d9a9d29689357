//! `recipe plan`: what would run, what is reused, what is undecided, why, what it cost last time, and
//! what memory training stages need.

use crate::args::PlanArgs;
use crate::budget::Estimate;
use crate::causes;
use crate::devices::{self, Devices, Gpus};
use crate::fail::Fail;
use crate::format::{duration, table};
use crate::price::{self, Priced};
use crate::{output, project, spending};
use cache::Cost;
use runner::{Resolved, State};
use serde_json::{Value, json};
use spec::Plan;
use spec::plan::PlannedStage;
use std::collections::HashMap;

/// Exit code of `--detailed-exitcode` when something would run.
const WOULD_RUN: u8 = 7;

pub fn run(args: PlanArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let selection = project::selection(args.stages, args.select)?;
    let plan = Plan::new(recipe, &selection)?;
    let priced = price::training(&plan);
    if !args.gpus.is_empty() {
        return Ok(fits(&args.gpus, &args.gpu_memory, args.json, &priced));
    }
    let url = project::store(&args.store, project::folder(&args.recipe.recipe));
    let mut options = project::options(url, args.compute, &plan)?;
    if !options.offline {
        options.remote = project::remote(&args.remote, &options.store);
    }
    let stages = runner::resolve(&plan, &options)?;
    let estimate = Estimate::of(&plan, &stages, options.takes_gpus());
    if args.json {
        output::json(&as_json(&plan, &stages, &estimate, &priced));
    } else {
        output::line(as_text(&plan, &stages, &estimate));
        if !priced.is_empty() {
            output::line(format!("\n{}", devices::own_text(&priced)));
        }
    }
    for memory in &args.gpu_memory {
        refuse_what_cannot_fit(&priced, *memory)?;
    }
    let missing: Vec<&str> = stages
        .iter()
        .filter(|s| matches!(s.state, State::Missing))
        .map(|s| s.stage.as_str())
        .collect();
    if let Some(first) = missing.first() {
        return Err(Fail::not_stored(
            format!(
                "stage '{first}' is needed, but the selection does not let it run and the store has no result of it"
            ),
            "select it too",
        ));
    }
    let idle = stages
        .iter()
        .all(|s| matches!(s.state, State::Reuse(_) | State::Out));
    Ok(if args.detailed_exitcode && !idle {
        WOULD_RUN
    } else {
        0
    })
}

/// `--gpus`: where stages fit, and how.
fn fits(
    gpus: &[u32],
    memory: &[u64],
    as_json: bool,
    priced: &[(String, Result<Priced, String>)],
) -> u8 {
    let kinds = gpus.iter().flat_map(|count| {
        memory.iter().map(|memory| Gpus {
            count: *count as usize,
            memory: *memory,
        })
    });
    let devices = Devices::choose(priced, &kinds.collect::<Vec<_>>());
    if as_json {
        output::json(&devices.json());
    } else {
        output::line(devices.text());
    }
    0
}

/// A stage whose rank needs more than a GPU has is refused before anything starts.
fn refuse_what_cannot_fit(
    priced: &[(String, Result<Priced, String>)],
    memory: u64,
) -> Result<(), Fail> {
    let known = priced.iter().filter_map(|(_, priced)| priced.as_ref().ok());
    for priced in known {
        let (needs, usable) = (priced.memory().peak(), devices::usable(memory));
        if needs > usable {
            return Err(Fail::usage(
                format!(
                    "stage '{}' needs {:.1} GB on a rank; {:.1} GB of a GPU of {:.1} GB can be used",
                    priced.stage,
                    needs as f64 / 1e9,
                    usable as f64 / 1e9,
                    memory as f64 / 1e9
                ),
                format!(
                    "the smallest change that fits: stage.{}.resources: {}",
                    priced.stage,
                    priced.smallest_change(usable)
                ),
            ));
        }
    }
    Ok(())
}

/// One word per state.
fn word(state: &State) -> &'static str {
    match state {
        State::Reuse(_) => "reuse",
        State::Run(_) => "run",
        State::Undecided(_) => "undecided",
        State::Missing => "missing",
        State::Out => "out",
    }
}

/// The part of a stage's training that runs before it, of those that do the last: the stage goes on from there.
fn before<'p>(plan: &'p Plan, stages: &[Resolved], planned: &PlannedStage) -> Option<&'p str> {
    let parts = planned
        .after
        .iter()
        .filter(|i| runs(&stages[**i]))
        .map(|i| &plan.order[*i].stage);
    let last = parts.max_by_key(|part| part.with["until"].as_u64())?;
    Some(&last.name)
}

fn why(stage: &Resolved, before: Option<&str>, cause: Option<String>) -> String {
    let mut text = match &stage.state {
        State::Reuse(_) | State::Out => String::new(),
        State::Run(why) => why.to_string(),
        State::Undecided(waits) => {
            cause.unwrap_or_else(|| format!("depends on {}", waits.join(", ")))
        }
        State::Missing => "not selected, and not in the store".to_owned(),
    };
    if let Some(before) = before {
        text = format!("{text}; goes on from the end of {before}");
    } else if let Some(goes_on) = &stage.goes_on {
        text = format!("{text}; {goes_on}");
    }
    text
}

fn runs(stage: &Resolved) -> bool {
    matches!(stage.state, State::Run(_))
}

fn cost(stage: &Resolved) -> Option<f64> {
    stage.past.as_ref().and_then(|p| p.cost_seconds)
}

fn as_text(plan: &Plan, stages: &[Resolved], estimate: &Estimate) -> String {
    let mut rows = vec![
        ["stage", "kind", "", "last time", "why"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for ((planned, stage), cause) in plan
        .order
        .iter()
        .zip(stages)
        .zip(causes::first_of_each(plan, stages))
        .filter(|((_, s), _)| !matches!(s.state, State::Out))
    {
        rows.push(vec![
            stage.stage.clone(),
            planned.stage.kind.name.to_owned(),
            word(&stage.state).to_owned(),
            cost(stage).map_or_else(|| "-".to_owned(), duration),
            why(
                stage,
                before(plan, stages, planned).filter(|_| runs(stage)),
                cause,
            ),
        ]);
    }
    let count = |wanted: &str| stages.iter().filter(|s| word(&s.state) == wanted).count();
    let prices = &estimate.0;
    let price = match prices.iter().filter(|p| p.cost.is_some()).count() {
        _ if prices.is_empty() => String::new(),
        0 => "\nexpected cost: not known, none of them has run before".to_owned(),
        n => format!(
            "\nexpected cost: {}{}",
            spending::cost(&estimate.known()),
            match prices.len() - n {
                0 => String::new(),
                _ => format!(" for {n} of {}, not known for the others", prices.len()),
            }
        ),
    };
    format!(
        "{}\n\n{}: {} to run, {} undecided, {} reused{price}",
        table(&rows),
        plan.recipe.name,
        count("run"),
        count("undecided"),
        count("reuse")
    )
}

fn as_json(
    plan: &Plan,
    stages: &[Resolved],
    estimate: &Estimate,
    priced: &[(String, Result<Priced, String>)],
) -> Value {
    let memory = |stage: &str| {
        let found = priced.iter().find(|(name, _)| name == stage);
        let known = found.and_then(|(_, priced)| priced.as_ref().ok());
        known.map(|priced| (devices::memory_json(&priced.memory()), priced.step_flops()))
    };
    let prices = estimate.0.iter().map(|p| (p.stage.as_str(), p.cost));
    let expected: HashMap<&str, Option<Cost>> = prices.collect();
    let rows: Vec<Value> = plan
        .order
        .iter()
        .zip(stages)
        .zip(causes::first_of_each(plan, stages))
        .map(|((planned, stage), cause)| {
            json!({
                "stage": stage.stage,
                "kind": planned.stage.kind.name,
                "state": word(&stage.state),
                "why": match &stage.state { State::Run(why) => json!(why), _ => Value::Null },
                "depends_on": match &stage.state { State::Undecided(waits) => json!(waits), _ => Value::Null },
                "cause": cause,
                "key": stage.key.map(|k| k.hex()),
                "checkpoint": stage.goes_on.as_ref().map(|from| from.step),
                "goes_on": stage.goes_on,
                "after": before(plan, stages, planned).filter(|_| runs(stage)),
                "cost_seconds": cost(stage),
                "expected_cost": expected.get(stage.stage.as_str()).copied().flatten(),
                "memory": memory(&stage.stage).map(|m| m.0),
                "step_flops": memory(&stage.stage).map(|m| m.1),
            })
        })
        .collect();
    json!({
        "version": 1, "recipe": plan.recipe.name, "stages": rows, "expected_cost": estimate.known(),
    })
}
