//! `recipe check`: parse, resolve, validate; no work.

use crate::args::CheckArgs;
use crate::fail::Fail;
use crate::format::plural;
use crate::{output, project};
use serde_json::{Map, Value, json};
use spec::explain::Explained;
use spec::{Diagnostic, Plan, Recipe, Selection, SourceSpec, codes};
use std::fmt::Write as _;

pub fn run(args: CheckArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    if let Some(key) = &args.explain {
        let layers = project::layers(&args.recipe);
        let explained = spec::explain::explain(&args.recipe.recipe, &layers, key)?;
        if args.json {
            output::json(&json!({ "version": 1, "explained": explained }));
        } else {
            let mut text = String::new();
            say(&explained, 0, &mut text);
            output::line(text.trim_end());
        }
        return Ok(0);
    }
    let plan = Plan::new(recipe, &Selection::default())?;
    sources(&plan.recipe)?;
    if args.json {
        output::json(&resolved(&plan));
        return Ok(0);
    }
    let Recipe { name, sources, .. } = &plan.recipe;
    output::line(format!(
        "{name}: ok, {} and {}",
        counted(&plan.recipe),
        plural(sources.len(), "source")
    ));
    Ok(0)
}

/// `25 stages (12 cells of train, 12 of eval)`.
fn counted(recipe: &Recipe) -> String {
    let mut cells: Vec<String> = recipe
        .cells
        .stages()
        .map(|stage| format!("{} of {stage}", recipe.cells.of(stage).len()))
        .collect();
    if let Some(first) = cells.first_mut() {
        *first = first.replacen(" of ", " cells of ", 1);
    }
    let stages = plural(recipe.stages.len(), "stage");
    match cells.is_empty() {
        true => stages,
        false => format!("{stages} ({})", cells.join(", ")),
    }
}

/// A key, the layers that set it with the winner first, and below it what its text uses.
fn say(explained: &Explained, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let _ = writeln!(out, "{indent}{} = {}", explained.key, explained.value);
    if explained.set.is_empty() {
        let _ = writeln!(out, "{indent}  the default");
    }
    for (i, set) in explained.set.iter().rev().enumerate() {
        let place = match (set.layer, &set.profile) {
            ("command line", _) => format!("-S {}", set.file),
            (_, Some(name)) => format!("profile '{name}', {}:{}", set.file, set.line),
            _ => format!("{}:{}", set.file, set.line),
        };
        let verb = if i == 0 { "set by" } else { "over" };
        let _ = writeln!(out, "{indent}  {verb} {place}: {}", set.text);
    }
    for used in &explained.uses {
        say(used, depth + 1, out);
    }
}

/// Refuses local sources that are not there.
fn sources(recipe: &Recipe) -> Result<(), Fail> {
    for source in recipe.sources.values() {
        let SourceSpec::Path(path) = &source.from else {
            continue;
        };
        if path.exists() {
            continue;
        }
        let mut diagnostic = Diagnostic::new(
            codes::SOURCE,
            format!(
                "source '{}': '{}' does not exist",
                source.name,
                path.display()
            ),
        )
        .help("name a file or directory; it is relative to the recipe's folder");
        diagnostic.place = Some(recipe.place(&format!("source.{}.path", source.name)));
        return Err(Fail::Recipe(Box::new(diagnostic)));
    }
    Ok(())
}

/// The resolved recipe: what every stage will be asked to do, defaults filled in.
fn resolved(plan: &Plan) -> Value {
    let sources: Map<String, Value> = plan
        .recipe
        .sources
        .iter()
        .map(|(name, s)| (name.clone(), json!(s.from.to_string())))
        .collect();
    let stages: Vec<Value> = plan
        .order
        .iter()
        .map(|planned| {
            let stage = &planned.stage;
            let inputs: Map<String, Value> = stage
                .inputs
                .iter()
                .map(|(name, refs)| {
                    (
                        name.clone(),
                        json!(refs.iter().map(ToString::to_string).collect::<Vec<_>>()),
                    )
                })
                .collect();
            json!({
                "stage": stage.name,
                "kind": stage.kind.name,
                "part_of": stage.part_of.as_ref().map(|part| &part.stage),
                "in": inputs,
                "with": stage.with,
                "out": stage.outputs.iter().map(|o| o.name.clone()).collect::<Vec<_>>(),
                "resources": stage.placement.resources,
                "checkpoint": stage.placement.checkpoint,
                "retry": stage.placement.retry,
                "timeout_seconds": stage.placement.timeout.map(|t| t.as_secs()),
                "assert": stage.assertions,
                "needs_assert": stage.needs_assert,
            })
        })
        .collect();
    json!({ "version": 1, "recipe": plan.recipe.name, "sources": sources, "stages": stages })
}
