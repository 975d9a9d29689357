//! `recipe check`: parse, resolve, validate; no work.

use crate::args::CheckArgs;
use crate::fail::Fail;
use crate::format::plural;
use crate::{output, project};
use serde_json::{Map, Value, json};
use spec::{Diagnostic, Plan, Recipe, Selection, SourceSpec, codes};

pub fn run(args: CheckArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let plan = Plan::new(recipe, &Selection::default())?;
    sources(&plan.recipe)?;
    if args.json {
        output::json(&resolved(&plan));
        return Ok(0);
    }
    let Recipe {
        name,
        stages,
        sources,
        ..
    } = &plan.recipe;
    output::line(format!(
        "{name}: ok, {} and {}",
        plural(stages.len(), "stage"),
        plural(sources.len(), "source")
    ));
    Ok(0)
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
