//! `ro-crate-metadata.json` of a run: RO-Crate 1.1 with the profiles of workflow runs (Process Run Crate and
//! Workflow Run Crate 0.5).
//!
//! | here | in the graph |
//! |---|---|
//! | the recipe's file | the main workflow |
//! | the run | a CreateAction of the workflow: sources in, artifacts out |
//! | a stage | a CreateAction of its kind: configuration and inputs in, artifacts and metrics out |
//! | an artifact in the archive | a Dataset, its folder |
//! | another artifact, a source | a CreativeWork with its digest |

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::past::{Run, Stage};
use crate::verbs::runs::text;

/// What is told of a run beyond its record.
pub struct Facts<'a> {
    pub run: &'a Run,
    /// Files of the recipe in the crate, the main one first.
    pub recipe: Vec<String>,
    /// Other files in the crate, with what they are.
    pub files: Vec<(String, &'static str)>,
    /// Artifacts in the crate by digest: their folder.
    pub artifacts: BTreeMap<String, String>,
    /// By stage: configuration, and digests that it read by input.
    pub stages: BTreeMap<String, Details>,
    /// By name: where it is from, its digest, and a statement of who adopted it.
    pub sources: BTreeMap<String, (String, String, Option<runner::Adoption>)>,
    pub license: String,
}

#[derive(Default)]
pub struct Details {
    pub with: Value,
    pub inputs: BTreeMap<String, Vec<String>>,
    pub started: Option<String>,
    pub finished: Option<String>,
}

const PROFILES: [(&str, &str, &str); 3] = [
    (
        "https://w3id.org/ro/wfrun/process/0.5",
        "Process Run Crate",
        "0.5",
    ),
    (
        "https://w3id.org/ro/wfrun/workflow/0.5",
        "Workflow Run Crate",
        "0.5",
    ),
    (
        "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
        "Workflow RO-Crate",
        "1.0",
    ),
];
const LANGUAGE: &str = "#recipe-language";

/// Entities by id, in the order in which they were met.
struct Graph(Vec<(String, Value)>);

impl Graph {
    /// Adds an entity unless there is one; a reference to it.
    fn add(&mut self, id: &str, kind: Value, fields: Value) -> Value {
        if !self.0.iter().any(|(known, _)| known == id) {
            let mut entity = Map::new();
            entity.insert("@id".to_owned(), json!(id));
            entity.insert("@type".to_owned(), kind);
            if let Value::Object(fields) = fields {
                entity.extend(fields.into_iter().filter(|(_, v)| !v.is_null()));
            }
            self.0.push((id.to_owned(), Value::Object(entity)));
        }
        json!({ "@id": id })
    }
}

/// The whole file.
pub fn metadata(facts: &Facts) -> Value {
    let record = &facts.run.record;
    let mut graph = Graph(Vec::new());
    let name = text(record, "recipe");
    let main = &facts.recipe[0];
    let mut parts: Vec<Value> = Vec::new();
    let language = graph.add(
        LANGUAGE,
        json!("ComputerLanguage"),
        json!({ "name": "recipe", "description": "TOML files that `recipe` runs: stages of LLM post-training" }),
    );
    parts.push(graph.add(
        main,
        json!(["File", "SoftwareSourceCode", "ComputationalWorkflow"]),
        json!({ "name": name, "programmingLanguage": language, "encodingFormat": "application/toml" }),
    ));
    for file in &facts.recipe[1..] {
        let fields = json!({ "name": file, "encodingFormat": "application/toml" });
        parts.push(graph.add(file, json!("File"), fields));
    }
    for (file, what) in &facts.files {
        let format = match file.rsplit_once('.').map(|(_, e)| e) {
            Some("json") => "application/json",
            Some("jsonl") => "application/jsonl",
            _ => "text/plain",
        };
        let fields = json!({ "name": file, "description": what, "encodingFormat": format });
        parts.push(graph.add(&escaped(file), json!("File"), fields));
    }
    let sources: Vec<Value> = facts
        .sources
        .keys()
        .map(|s| source(&mut graph, facts, s))
        .collect();
    let mut made: Vec<Value> = Vec::new();
    let mut actions: Vec<Value> = Vec::new();
    for stage in &facts.run.stages {
        let outputs: Vec<Value> = stage
            .outputs
            .iter()
            .map(|(output, digest)| artifact(&mut graph, facts, &stage.stage, output, digest))
            .collect();
        made.extend(outputs.iter().cloned());
        if !matches!(stage.status.as_str(), "skipped" | "not_run") {
            actions.push(action(&mut graph, facts, stage, outputs));
        }
    }
    for folder in facts.artifacts.values() {
        let id = json!({ "@id": format!("{}/", escaped(folder)) });
        if !parts.contains(&id) {
            parts.push(id);
        }
    }
    let run = graph.add(
        &format!("#run-{}", facts.run.id),
        json!("CreateAction"),
        json!({
            "name": format!("run {} of {name}", facts.run.id),
            "instrument": { "@id": main },
            "object": sources,
            "result": made,
            "startTime": record["started"],
            "endTime": record["finished"],
            "actionStatus": status(record["exit_code"] == 0),
            "description": record["command"].as_array().map(|words| {
                let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
                format!("the command line: {}", words.join(" "))
            }),
        }),
    );
    let mut mentions = vec![run];
    mentions.extend(actions);
    let profiles: Vec<Value> = PROFILES
        .iter()
        .map(|(id, name, version)| {
            let fields = json!({ "name": name, "version": version });
            graph.add(id, json!("CreativeWork"), fields)
        })
        .collect();
    let when = match &record["finished"] {
        Value::Null => &record["started"],
        finished => finished,
    };
    let descriptor = json!({
        "@id": "ro-crate-metadata.json",
        "@type": "CreativeWork",
        "about": { "@id": "./" },
        "conformsTo": [
            { "@id": "https://w3id.org/ro/crate/1.1" }, { "@id": "https://w3id.org/workflowhub/workflow-ro-crate/1.0" },
        ],
    });
    let root = json!({
        "@id": "./",
        "@type": "Dataset",
        "name": format!("Run {} of the recipe {name}", facts.run.id),
        "description": format!(
            "What the recipe {name} made in run {}: its record, metrics, logs and artifacts.", facts.run.id
        ),
        "datePublished": when,
        "license": facts.license,
        "conformsTo": profiles,
        "mainEntity": { "@id": main },
        "mentions": mentions,
        "hasPart": parts,
    });
    let mut all = vec![descriptor, root];
    all.extend(graph.0.into_iter().map(|(_, entity)| entity));
    json!({ "@context": "https://w3id.org/ro/crate/1.1/context", "@graph": all })
}

/// A stage as an action.
fn action(graph: &mut Graph, facts: &Facts, stage: &Stage, mut result: Vec<Value>) -> Value {
    let tool = graph.add(
        &format!("#kind-{}", stage.kind),
        json!("SoftwareApplication"),
        json!({
            "name": format!("recipe's stage kind {}", stage.kind),
            "softwareVersion": env!("CARGO_PKG_VERSION"),
            "description": spec::kind(&stage.kind).map(|k| k.doc),
        }),
    );
    let id = escaped(&stage.stage);
    let none = Details::default();
    let details = facts.stages.get(&stage.stage).unwrap_or(&none);
    let mut object: Vec<Value> = Vec::new();
    for digest in details.inputs.values().flatten() {
        let from = facts.sources.iter().find(|(_, s)| s.1 == *digest);
        let made_by = facts.run.stages.iter().find_map(|s| {
            let output = s.outputs.iter().find(|(_, d)| *d == digest)?;
            Some((s.stage.clone(), output.0.clone()))
        });
        object.push(match (from, made_by) {
            (Some((name, _)), _) => source(graph, facts, name),
            (None, Some((stage, output))) => artifact(graph, facts, &stage, &output, digest),
            (None, None) => artifact(graph, facts, "another run", "artifact", digest),
        });
    }
    for (name, value) in details.with.as_object().into_iter().flatten() {
        let value = match value {
            Value::Object(_) | Value::Array(_) => json!(value.to_string()),
            plain => plain.clone(),
        };
        object.push(graph.add(
            &format!("#with-{id}-{}", escaped(name)),
            json!("PropertyValue"),
            json!({ "name": name, "value": value }),
        ));
    }
    for (name, value) in &stage.metrics {
        result.push(graph.add(
            &format!("#metric-{id}-{}", escaped(name)),
            json!("PropertyValue"),
            json!({ "name": name, "value": value }),
        ));
    }
    let has_result = !stage.outputs.is_empty();
    graph.add(
        &format!("#stage-{id}"),
        json!("CreateAction"),
        json!({
            "name": format!("stage {}: {}", stage.stage, stage.status.replace('_', " ")),
            "instrument": tool,
            "object": object,
            "result": result,
            "startTime": details.started,
            "endTime": details.finished,
            "actionStatus": status(has_result),
            "error": stage.error.as_ref().filter(|_| !has_result).map(|e| &e.message),
        }),
    )
}

fn artifact(graph: &mut Graph, facts: &Facts, stage: &str, output: &str, digest: &str) -> Value {
    let name = format!("{stage}.{output}");
    match facts.artifacts.get(digest) {
        Some(folder) => graph.add(
            &format!("{}/", escaped(folder)),
            json!("Dataset"),
            json!({
                "name": name, "identifier": digest, "description": format!("the output {output} of the stage {stage}"),
            }),
        ),
        None => graph.add(
            &format!("#artifact-{digest}"),
            json!("CreativeWork"),
            json!({ "name": name, "identifier": digest, "description": "not in this archive; named by its digest" }),
        ),
    }
}

fn source(graph: &mut Graph, facts: &Facts, name: &str) -> Value {
    let (from, digest, adoption) = &facts.sources[name];
    let mut description = format!("the source {name}, from {from}");
    if let Some(a) = adoption {
        description += &format!(
            "; adopted by {} from {} at {}: {}",
            a.by, a.from, a.at, a.why
        );
    }
    graph.add(
        &format!("#source-{}", escaped(name)),
        json!("CreativeWork"),
        json!({ "name": name, "identifier": digest, "description": description }),
    )
}

fn status(completed: bool) -> Value {
    let word = if completed { "Completed" } else { "Failed" };
    json!({ "@id": format!("http://schema.org/{word}ActionStatus") })
}

/// A name as a part of a URI; `/` stays.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                out.push(b as char);
            }
            b => out += &format!("%{b:02X}"),
        }
    }
    out
}
