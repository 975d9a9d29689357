//! `recipe get`: an artifact out of the store, with where it came from beside it.

use crate::args::GetArgs;
use crate::fail::Fail;
use crate::format::{bytes, plural};
use crate::{output, project};
use runner::State;
use serde_json::{Map, Value, json};
use spec::diagnostic::suggestion;
use spec::{Plan, Selection, SourceSpec};
use std::fmt::Write as _;
use std::path::Path;

/// The file in which the artifact's origin is told.
const PROVENANCE: &str = "provenance.json";
/// The line of a model card that the origin replaces; `export` writes it.
const CARD_MARK: &str = "<!-- recipe: provenance -->";

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
    let mut options = runner::Options::new(url.clone());
    options.remote = project::remote(&args.remote, &url);
    let stages = runner::resolve(&plan, &options)?;
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
    let Some(digest) = found.brief.outputs.get(&output) else {
        return Err(Fail::not_stored(
            format!("the result of stage '{stage}' has no '{output}'"),
            "run it again with --force",
        ));
    };
    let store = cache::Store::open_with(&url, options.remote.as_deref(), false)?;
    let link = if args.link {
        cache::Link::Hard
    } else {
        cache::Link::Reflink
    };
    let manifest = store.materialize(digest, &args.to, link)?;
    let ending = match resolved.key {
        Some(key) => store.ending(&key, found.brief.attempt)?,
        None => None,
    };
    let Some(cache::Ending::Result(record)) = ending else {
        return Err(Fail::not_stored(
            format!("the result of stage '{stage}' was removed meanwhile"),
            "run the recipe again",
        ));
    };
    let origin = json!({
        "version": 1,
        "recipe": plan.recipe.name,
        "artifact": { "stage": stage, "output": output, "digest": digest.hex() },
        "key": resolved.key.map(|k| k.hex()),
        "attempt": found.brief.attempt,
        "metrics": record.metrics,
        "numerics": record.numerics,
        "cost": record.cost,
        "provenance": record.provenance,
        "lineage": lineage(&stages),
    });
    let path = args.to.join(PROVENANCE);
    if manifest.file(PROVENANCE).is_some() {
        // the artifact's own, which with --link is the store's
        std::fs::remove_file(&path).map_err(|e| Fail::io("replace", &path, &e))?;
    }
    std::fs::write(&path, format!("{origin:#}\n")).map_err(|e| Fail::io("write", &path, &e))?;
    card(&args.to, &plan, &origin)?;
    output::line(format!(
        "{stage}.{output}: {}, {} in {}",
        plural(manifest.files.len(), "file"),
        bytes(manifest.bytes()),
        args.to.display()
    ));
    Ok(0)
}

/// Completes an exported model's card where it leaves room for its origin.
fn card(dir: &Path, plan: &Plan, origin: &Value) -> Result<(), Fail> {
    let path = dir.join("README.md");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    if !text.contains(CARD_MARK) {
        return Ok(());
    }
    let mut told = format!(
        "Made by the recipe `{}`:\n\n| stage | kind | key |\n|---|---|---|",
        plan.recipe.name
    );
    for (stage, made) in origin["lineage"].as_object().into_iter().flatten() {
        let _ = write!(
            told,
            "\n| {stage} | {} | `{}` |",
            made["kind"].as_str().unwrap_or(""),
            made["key"].as_str().unwrap_or("")
        );
    }
    let sources: Vec<String> = plan
        .recipe
        .sources
        .iter()
        .map(|(name, s)| format!("`{name}` from `{}`", shown(&s.from)))
        .collect();
    if !sources.is_empty() {
        let _ = write!(told, "\n\nSources: {}.", sources.join(", "));
    }
    let _ = write!(
        told,
        "\n\nDigests, configuration and metrics of every stage: `{PROVENANCE}`."
    );
    // a new file: with --link the old one is the store's own
    std::fs::remove_file(&path).map_err(|e| Fail::io("replace", &path, &e))?;
    std::fs::write(&path, text.replace(CARD_MARK, &told)).map_err(|e| Fail::io("write", &path, &e))
}

/// Where a source came from, without folders of this machine.
fn shown(from: &SourceSpec) -> String {
    match from {
        SourceSpec::Path(path) => path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned(),
        other => other.to_string(),
    }
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
