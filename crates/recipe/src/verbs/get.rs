//! `recipe get`: an artifact out of the store, with where it came from beside it.

use crate::args::GetArgs;
use crate::fail::Fail;
use crate::format::bytes;
use crate::{output, project};
use runner::State;
use serde_json::{Map, Value, json};
use spec::diagnostic::suggestion;
use spec::{Plan, Selection};

/// The file in which the artifact's origin is told.
const PROVENANCE: &str = "provenance.json";

pub fn run(args: GetArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let Some((stage, output)) = args.output.split_once('.') else {
        let known = recipe.stages.values().flat_map(|s| {
            s.outputs
                .iter()
                .map(move |o| format!("{}.{}", s.name, o.name))
        });
        let known: Vec<String> = known.collect();
        return Err(Fail::usage(
            format!("'{}' is not an output", args.output),
            suggestion(&args.output, known.iter().map(String::as_str)),
        ));
    };
    let (stage, output) = (stage.to_owned(), output.to_owned());
    let plan = Plan::new(
        recipe,
        &Selection {
            targets: vec![stage.clone()],
            ..Selection::default()
        },
    )?;
    let outputs = &plan.recipe.stages[&stage].outputs;
    if !outputs.iter().any(|o| o.name == output) {
        return Err(Fail::usage(
            format!("stage '{stage}' has no output '{output}'"),
            suggestion(&output, outputs.iter().map(|o| o.name.as_str())),
        ));
    }
    let url = project::store(&args.store, project::folder(&args.recipe.recipe));
    let stages = runner::resolve(&plan, &runner::Options::new(url.clone()))?;
    let found = stages
        .iter()
        .find(|s| s.stage == stage)
        .and_then(|s| match &s.state {
            State::Reuse(found) => Some((s, found)),
            _ => None,
        });
    let Some((resolved, found)) = found else {
        return Err(Fail::not_stored(
            format!("the store has no result of stage '{stage}' as the recipe is now"),
            format!(
                "compute it: recipe run {} {stage}",
                args.recipe.recipe.display()
            ),
        ));
    };
    let Some(digest) = found.record.outputs.get(&output) else {
        return Err(Fail::not_stored(
            format!("the result of stage '{stage}' has no '{output}'"),
            "run it again with --force",
        ));
    };
    let store = cache::Store::open(&url)?;
    let link = if args.link {
        cache::Link::Hard
    } else {
        cache::Link::Reflink
    };
    let manifest = store.materialize(digest, &args.to, link)?;
    let origin = json!({
        "version": 1,
        "recipe": plan.recipe.name,
        "artifact": { "stage": stage, "output": output, "digest": digest.hex() },
        "key": resolved.key.map(|k| k.hex()),
        "attempt": found.attempt,
        "metrics": found.record.metrics,
        "numerics": found.record.numerics,
        "cost": found.record.cost,
        "provenance": found.record.provenance,
        "lineage": lineage(&stages),
    });
    let path = args.to.join(PROVENANCE);
    std::fs::write(&path, format!("{origin:#}\n")).map_err(|e| Fail::io("write", &path, &e))?;
    output::line(format!(
        "{stage}.{output}: {} files, {} in {}",
        manifest.files.len(),
        bytes(manifest.bytes()),
        args.to.display()
    ));
    Ok(0)
}

/// Key, configuration and input digests of every stage that led here, in the order they ran.
fn lineage(stages: &[runner::Resolved]) -> Value {
    let all: Map<String, Value> = stages
        .iter()
        .filter_map(|s| {
            let preimage = s.preimage.as_ref()?;
            let key = s.key?.hex();
            Some((
                s.stage.clone(),
                json!({ "key": key, "kind": preimage.kind, "with": preimage.with, "inputs": preimage.inputs }),
            ))
        })
        .collect();
    Value::Object(all)
}
