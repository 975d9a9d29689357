//! The in-toto v1 statement of a model's files, with SLSA v1 provenance as its predicate.
//!
//! It is not signed: it says what happened (SLSA build level 1). Who wants to vouch for it signs this file, as
//! `cosign attest-blob` does with a statement.
//!
//! | SLSA | here |
//! |---|---|
//! | subject | every file, with sha256 for consumers of in-toto and blake3 as the store has it |
//! | externalParameters | what the recipe says: stage, output, configuration and inputs of each stage that led here |
//! | internalParameters | what it was computed on (numerics), and the run that computed it |
//! | resolvedDependencies | the recipe's files; the sources, with hub commits; an adopted one with its statement |
//! | byproducts | evaluations of the model |

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use spec::SourceSpec;

use super::{Entered, STATEMENT, Story};
use crate::digests::{self, Digests};
use crate::fail::Fail;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// What `externalParameters` mean; described at the top of this file.
const BUILD_TYPE: &str = "urn:recipe:stage:v1";
/// A runner on somebody's machine, which nobody vouches for.
const BUILDER: &str = "urn:recipe:runner:v1";
/// The blake3 of an artifact's manifest, which names every file of it: see `cache::Manifest`.
const MANIFEST: &str = "blake3Manifest";

/// The statement of what lies in `dir`.
pub fn of(story: &Story, dir: &Path) -> Result<Value, Fail> {
    let stages: Map<String, Value> = story
        .made
        .iter()
        .map(|made| (made.stage.clone(), made.json()))
        .collect();
    let recipe = &story.plan.recipe;
    let settings: Vec<&str> = recipe.settings().collect();
    let mut dependencies: Vec<Value> = recipe
        .texts()
        .map(|(name, text)| {
            let digest = json!({
                "sha256": digests::sha256(text.as_bytes()), "blake3": cache::Digest::of(text.as_bytes()).hex(),
            });
            json!({ "name": base(name), "digest": digest })
        })
        .collect();
    dependencies.extend(story.sources.iter().map(dependency));
    let byproducts: Vec<Value> = story
        .evaluations
        .iter()
        .map(|e| {
            let mut value = json!({
                "name": format!("{}.report", e.stage),
                "annotations": { "metrics": e.metrics, "on": e.on.0 },
            });
            if let Some(report) = &e.report {
                value["digest"] = json!({ MANIFEST: report.hex() });
            }
            value
        })
        .collect();
    let made = story.made.iter().find(|m| m.stage == story.stage);
    let trainer = made.and_then(|m| m.preimage.trainer.as_ref());
    let mut version = json!({ "recipe": env!("CARGO_PKG_VERSION") });
    if let Some(Value::Object(trainer)) = trainer.and_then(|t| serde_json::to_value(t).ok()) {
        for (name, value) in trainer {
            if let Some(text) = value.as_str().filter(|t| !t.is_empty()) {
                version[format!("trainer.{name}")] = json!(text);
            }
        }
    }
    let by = &story.record.provenance;
    let mut metadata = Map::new();
    for (name, from) in [
        ("invocationId", "run"),
        ("startedOn", "started"),
        ("finishedOn", "finished"),
    ] {
        if let Some(value) = by.get(from) {
            metadata.insert(name.to_owned(), value.clone());
        }
    }
    Ok(json!({
        "_type": STATEMENT_TYPE,
        "subject": subjects(dir)?,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "recipe": recipe.name, "settings": settings, "stage": story.stage,
                    "output": story.output, "stages": stages,
                },
                "internalParameters": {
                    "key": story.key(), "attempt": story.attempt, "numerics": story.record.numerics,
                    "computedBy": { "recipe": by.get("recipe"), "stage": by.get("stage"), "run": by.get("run") },
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": { "id": BUILDER, "version": version },
                "metadata": metadata,
                "byproducts": byproducts,
            },
        },
    }))
}

fn dependency(source: &Entered) -> Value {
    let mut digest = json!({ MANIFEST: source.digest });
    if let Some(commit) = &source.commit {
        digest["gitCommit"] = json!(commit);
    }
    let mut value = json!({ "name": format!("source.{}", source.name), "digest": digest });
    let at = source
        .commit
        .as_ref()
        .map_or(String::new(), |commit| format!("@{commit}"));
    match &source.from {
        SourceSpec::Hf { repo, .. } => value["uri"] = json!(format!("pkg:huggingface/{repo}{at}")),
        SourceSpec::HfDataset { repo, .. } => {
            value["uri"] = json!(format!("https://huggingface.co/datasets/{repo}"));
        }
        SourceSpec::Url(url) => value["uri"] = json!(url),
        from @ (SourceSpec::Path(_) | SourceSpec::Adopted(_)) => {
            value["annotations"] = json!({ "from": from.told() });
        }
    }
    if let Some(adoption) = &source.adoption {
        value["annotations"] = json!({ "adopted": adoption });
    }
    value
}

/// Every file below `dir` with its digests, sorted by path.
fn subjects(dir: &Path) -> Result<Vec<Value>, Fail> {
    let mut files = digests::files(dir).map_err(|e| Fail::io("list", dir, &e))?;
    files.retain(|file| file != &dir.join(STATEMENT));
    let subject = |path: &PathBuf| {
        let Digests { sha256, blake3 } =
            Digests::of(path).map_err(|e| Fail::io("read", path, &e))?;
        let name = path.strip_prefix(dir).unwrap_or(path).to_string_lossy();
        Ok(json!({ "name": name, "digest": { "sha256": sha256, "blake3": blake3 } }))
    };
    files.par_iter().map(subject).collect()
}

/// A file's name without folders of this machine.
fn base(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}
