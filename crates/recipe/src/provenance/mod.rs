//! Where an artifact comes from, told when it is taken out of the store: by the recipe it is taken out
//! through, so that two recipes which share its bits each tell their own story.
//!
//! | written beside the artifact | what | for |
//! |---|---|---|
//! | `provenance.json` | the whole story | any artifact |
//! | `provenance.intoto.json` | an in-toto v1 statement with SLSA v1 provenance (`statement.rs`) | models |
//! | `README.md` | the model card, where it leaves room for its origin (`card.rs`) | exported models |
//!
//! A run as a whole is described by [`crate_graph`], in an archive of its own.

mod card;
pub mod crate_graph;
mod statement;

use std::path::Path;

use cache::{Digest, Manifest, ResultRecord, Store};
use runner::{Adoption, Resolved, State};
use serde_json::{Map, Value, json};
use spec::{ArtifactKind, Plan, Preimage, Reference, SourceSpec};

use crate::fail::Fail;

/// The file in which the artifact's origin is told.
const STORY: &str = "provenance.json";
const STATEMENT: &str = "provenance.intoto.json";

/// Where an artifact comes from.
pub struct Story<'a> {
    plan: &'a Plan,
    stage: String,
    output: String,
    kind: ArtifactKind,
    digest: Digest,
    attempt: u32,
    /// The result that holds it; its provenance is of the run that computed it, which may have been
    /// another recipe's.
    record: ResultRecord,
    /// The stages that led here, in the order they ran, and this one.
    made: Vec<Made>,
    sources: Vec<Entered>,
    evaluations: Vec<Evaluation>,
}

/// A stage on the way.
struct Made {
    stage: String,
    key: String,
    preimage: Preimage,
}

/// A source that went in.
struct Entered {
    name: String,
    from: SourceSpec,
    digest: String,
    /// Of a repository on the hub.
    commit: Option<String>,
    adoption: Option<Adoption>,
}

/// What an `evaluate` stage of the recipe says of the artifact, or of the model it was exported from.
struct Evaluation {
    stage: String,
    /// What it was evaluated on: (name, the hub's name or the name again).
    on: (String, String),
    metrics: Map<String, Value>,
    report: Option<Digest>,
}

/// The stages of a recipe that evaluate an output, or what it was exported from.
pub fn evaluating(recipe: &spec::Recipe, stage: &str, output: &str) -> Vec<String> {
    let itself = Reference::Stage {
        stage: stage.to_owned(),
        output: output.to_owned(),
    };
    let mut models = vec![&itself];
    if let Some(exported) = recipe.stages.get(stage).filter(|s| s.kind.name == "export") {
        models.extend(exported.inputs.get("model").into_iter().flatten());
    }
    let reads = |s: &spec::Stage| {
        let mut read = s.inputs.get("model").into_iter().flatten();
        s.kind.name == "evaluate" && read.any(|r| models.contains(&r))
    };
    let found = recipe.stages.values().filter(|s| reads(s));
    found.map(|s| s.name.clone()).collect()
}

impl<'a> Story<'a> {
    /// Of an output that has a result, from a plan that was resolved with what evaluates it.
    pub fn of(
        plan: &'a Plan,
        resolved: &[Resolved],
        store: &Store,
        stage: &str,
        output: &str,
    ) -> Result<Option<Story<'a>>, Fail> {
        let found = |name: &str| {
            let one = resolved.iter().find(|s| s.stage == name)?;
            match &one.state {
                State::Reuse(found) => Some((one, found)),
                _ => None,
            }
        };
        let planned = &plan.recipe.stages[stage];
        let Some((own, brief)) = found(stage) else {
            return Ok(None);
        };
        let attempt = brief.brief.attempt;
        let key = brief.accepted.or(own.key);
        let ending = key.map(|key| store.ending(&key, attempt)).transpose()?;
        let (Some(Some(cache::Ending::Result(record))), Some(digest)) =
            (ending, brief.brief.outputs.get(output))
        else {
            return Ok(None);
        };
        let kind = planned.outputs.iter().find(|o| o.name == output);
        let above = above(plan, stage);
        let made: Vec<Made> = resolved
            .iter()
            .filter(|s| above.contains(&s.stage.as_str()))
            .filter_map(|s| {
                Some(Made {
                    stage: s.stage.clone(),
                    key: s.key?.hex(),
                    preimage: s.preimage.clone()?,
                })
            })
            .collect();
        let mut story = Story {
            plan,
            stage: stage.to_owned(),
            output: output.to_owned(),
            kind: kind.map_or(ArtifactKind::Files, |o| o.artifact),
            digest: *digest,
            attempt,
            record: *record,
            sources: entered(plan, &made, store)?,
            made,
            evaluations: Vec::new(),
        };
        for name in evaluating(&plan.recipe, stage, output) {
            if let Some((_, result)) = found(&name) {
                story.evaluations.push(Evaluation {
                    on: on(plan, &name),
                    metrics: result.brief.metrics.clone(),
                    report: result.brief.outputs.get("report").copied(),
                    stage: name,
                });
            }
        }
        Ok(Some(story))
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Writes the story beside the artifact that was taken out to `dir`.
    pub fn write(&self, dir: &Path, manifest: &Manifest) -> Result<(), Fail> {
        let own = self.json();
        put(dir, manifest, STORY, &format!("{own:#}\n"))?;
        card::complete(self, dir)?;
        if self.kind == ArtifactKind::Weights {
            // last: it names the bytes that lie there
            let statement = statement::of(self, dir)?;
            put(dir, manifest, STATEMENT, &format!("{statement:#}\n"))?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let lineage: Map<String, Value> = self
            .made
            .iter()
            .map(|made| (made.stage.clone(), made.json()))
            .collect();
        let sources: Map<String, Value> = self
            .sources
            .iter()
            .map(|source| (source.name.clone(), source.json()))
            .collect();
        let evaluations: Map<String, Value> = self
            .evaluations
            .iter()
            .map(|e| {
                (
                    e.stage.clone(),
                    json!({ "on": e.on.0, "metrics": e.metrics }),
                )
            })
            .collect();
        json!({
            "version": 1,
            "recipe": self.plan.recipe.name,
            "artifact": { "stage": self.stage, "output": self.output, "digest": self.digest.hex() },
            "key": self.key(),
            "attempt": self.attempt,
            "metrics": self.record.metrics,
            "evaluations": evaluations,
            "numerics": self.record.numerics,
            "cost": self.record.cost,
            "provenance": self.record.provenance,
            "lineage": lineage,
            "sources": sources,
        })
    }

    /// The key of the stage that made it.
    fn key(&self) -> Option<&str> {
        let own = self.made.iter().find(|m| m.stage == self.stage);
        own.map(|m| m.key.as_str())
    }
}

impl Made {
    fn json(&self) -> Value {
        let p = &self.preimage;
        json!({ "key": self.key, "kind": p.kind, "with": p.with, "inputs": p.inputs })
    }
}

impl Entered {
    fn json(&self) -> Value {
        let mut value = json!({ "from": self.from.told(), "digest": self.digest });
        if let Some(commit) = &self.commit {
            value["commit"] = json!(commit);
        }
        if let Some(adoption) = &self.adoption {
            value["adopted"] = json!(adoption);
        }
        value
    }
}

/// A stage and all above it.
fn above<'p>(plan: &'p Plan, stage: &str) -> Vec<&'p str> {
    let mut wanted = vec![false; plan.order.len()];
    for (i, planned) in plan.order.iter().enumerate().rev() {
        if wanted[i] || planned.stage.name == stage {
            wanted[i] = true;
            planned.upstream.iter().for_each(|up| wanted[*up] = true);
        }
    }
    let all = plan.order.iter().zip(wanted);
    all.filter(|(_, wanted)| *wanted)
        .map(|(planned, _)| planned.stage.name.as_str())
        .collect()
}

/// The sources that stages read, with the digests that entered their keys.
fn entered(plan: &Plan, made: &[Made], store: &Store) -> Result<Vec<Entered>, Fail> {
    let mut all: Vec<Entered> = Vec::new();
    for one in made {
        for (input, references) in &plan.recipe.stages[&one.stage].inputs {
            let digests = one.preimage.inputs.get(input).into_iter().flatten();
            for (reference, digest) in references.iter().zip(digests) {
                let Reference::Source(name) = reference else {
                    continue;
                };
                if all.iter().any(|e| e.name == *name) {
                    continue;
                }
                let parsed = digest.parse::<Digest>().ok();
                let adoption = parsed.map(|d| Adoption::of(store, &d)).transpose()?;
                all.push(Entered {
                    name: name.clone(),
                    from: plan.recipe.sources[name].from.clone(),
                    digest: digest.clone(),
                    commit: runner::commit(&plan.recipe, name)?,
                    adoption: adoption.flatten(),
                });
            }
        }
    }
    Ok(all)
}

/// What an `evaluate` stage evaluates on.
fn on(plan: &Plan, stage: &str) -> (String, String) {
    let stage = &plan.recipe.stages[stage];
    let environments = stage.with["environment"].as_array();
    let names: Vec<&str> = environments
        .into_iter()
        .flatten()
        .filter_map(|e| e["name"].as_str())
        .collect();
    let data = stage.inputs.get("data").and_then(|list| list.first());
    match (data, &names[..]) {
        (Some(Reference::Source(name)), names) => {
            let hub = match &plan.recipe.sources[name].from {
                SourceSpec::HfDataset { repo, .. } => repo.clone(),
                _ => name.clone(),
            };
            let shown = if names.is_empty() {
                name
            } else {
                &names.join("+")
            };
            (shown.clone(), hub)
        }
        (Some(other), []) => (other.to_string(), other.to_string()),
        (_, names) => (names.join("+"), names.join("+")),
    }
}

/// Writes a file beside the artifact's own, whole or with an error.
fn put(dir: &Path, manifest: &Manifest, name: &str, text: &str) -> Result<(), Fail> {
    let path = dir.join(name);
    if manifest.file(name).is_some() {
        // the artifact's own, which with --link is the store's
        std::fs::remove_file(&path).map_err(|e| Fail::io("replace", &path, &e))?;
    }
    std::fs::write(&path, text).map_err(|e| Fail::io("write", &path, &e))
}
