//! The model card of an exported model, completed: evaluation results in the `model-index` of its front
//! matter, as the Hugging Face hub reads them, and how it was made where `export` left room for it.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use spec::SourceSpec;

use super::{Evaluation, STATEMENT, STORY, Story};
use crate::fail::Fail;

/// The line of a model card that the origin replaces; `export` writes it.
const MARK: &str = "<!-- recipe: provenance -->";

/// Completes the card in `dir`, if there is one that leaves room.
pub fn complete(story: &Story, dir: &Path) -> Result<(), Fail> {
    let path = dir.join("README.md");
    let Ok(text) = std::fs::read_to_string(&path) else {
        return Ok(());
    };
    if !text.contains(MARK) {
        return Ok(());
    }
    let text = text.replace(MARK, &origin(story));
    let text = match text
        .strip_prefix("---\n")
        .and_then(|t| t.split_once("\n---\n"))
    {
        Some((front, body)) => format!("---\n{front}\n{}---\n{body}", front_matter(story)),
        None => text,
    };
    // a new file: with --link the old one is the store's own
    std::fs::remove_file(&path).map_err(|e| Fail::io("replace", &path, &e))?;
    std::fs::write(&path, text).map_err(|e| Fail::io("write", &path, &e))
}

/// Lines of YAML. Values are JSON, which is YAML as well.
fn front_matter(story: &Story) -> String {
    let mut out = String::new();
    // writing to a String does not fail
    let mut line = |key: &str, value: Value| {
        let _ = writeln!(out, "{key}: {value}");
    };
    let repositories = |of: fn(&SourceSpec) -> Option<&String>| -> Vec<&String> {
        story.sources.iter().filter_map(|s| of(&s.from)).collect()
    };
    let bases = repositories(|from| match from {
        SourceSpec::Hf { repo, .. } => Some(repo),
        _ => None,
    });
    if !bases.is_empty() {
        line("base_model", json!(bases));
    }
    let datasets = repositories(|from| match from {
        SourceSpec::HfDataset { repo, .. } => Some(repo),
        _ => None,
    });
    if !datasets.is_empty() {
        line("datasets", json!(datasets));
    }
    let results: Vec<Value> = story.evaluations.iter().flat_map(results).collect();
    if !results.is_empty() {
        let name = format!("{}/{}", story.plan.recipe.name, story.stage);
        line("model-index", json!([{ "name": name, "results": results }]));
    }
    out
}

/// A result for each data set: metrics of one environment of a mix are named `<environment>/<metric>`, and
/// where there is one environment they are the same as those of the whole.
fn results(evaluation: &Evaluation) -> Vec<Value> {
    let mut sets: Vec<(&str, &str)> = vec![(&evaluation.on.0, &evaluation.on.1)];
    for name in evaluation.metrics.keys() {
        if let Some((set, _)) = name.split_once('/')
            && !sets.iter().any(|(name, _)| *name == set)
        {
            sets.push((set, set));
        }
    }
    let numbers = |set: &str| -> Vec<Value> {
        let all = evaluation.metrics.iter();
        all.filter_map(|(name, value)| {
            let metric = match name.split_once('/') {
                Some((of, metric)) if of == set && set != evaluation.on.0 => metric,
                None if set == evaluation.on.0 => name,
                _ => return None,
            };
            value.is_number().then(
                || json!({ "type": metric, "name": metric, "value": value, "verified": false }),
            )
        })
        .collect()
    };
    let result = |(name, kind): (&str, &str)| {
        let metrics = numbers(name);
        (!metrics.is_empty()).then(|| {
            json!({
                "task": { "type": "text-generation", "name": "Text Generation" },
                "dataset": { "name": name, "type": kind },
                "metrics": metrics,
            })
        })
    };
    sets.into_iter().filter_map(result).collect()
}

fn origin(story: &Story) -> String {
    let mut out = format!(
        "Made by the recipe `{}`:\n\n| stage | kind | key |\n|---|---|---|",
        story.plan.recipe.name
    );
    for made in &story.made {
        let kind = &made.preimage.kind;
        let _ = write!(out, "\n| {} | {kind} | `{}` |", made.stage, made.key);
    }
    let sources: Vec<String> = story
        .sources
        .iter()
        .map(|s| {
            let mut text = format!("`{}` from `{}`", s.name, s.from.told());
            if let Some(a) = &s.adoption {
                let _ = write!(
                    text,
                    " (adopted by {} from {}: {})",
                    plain(&a.by),
                    plain(&a.from),
                    plain(&a.why)
                );
            }
            text
        })
        .collect();
    if !sources.is_empty() {
        let _ = write!(out, "\n\nSources: {}.", sources.join(", "));
    }
    let _ = write!(
        out,
        "\n\nDigests, configuration and metrics of every stage: `{STORY}`; an in-toto statement of the files: \
         `{STATEMENT}`."
    );
    out
}

/// A person's words in a line of Markdown.
fn plain(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let text = words.join(" ");
    text.replace('<', "&lt;").replace('`', "'")
}
