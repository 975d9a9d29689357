//! Rules of the schema beyond types: what the parser tells when it is asked, and what a file that stands
//! alone must have. A file that includes others, or is included, may leave to them what is required.

use super::asked::{self, Asked};
use crate::kinds::{Invalid, KINDS, Kind};
use crate::{Assertion, Checkpoint, Resources, Retry, codes};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Adds to the definitions what the parser tells of them. What it tells of each kind's `with` is kept for
/// [`alone`].
pub fn ask(definitions: &mut Map<String, Value>) -> Vec<(&'static Kind, Asked)> {
    let mut told = Vec::new();
    for kind in KINDS {
        let name = definition_of(kind);
        let refuses = |with: &Value| kind.refuses(with);
        let asked = one(definitions, &name, kind.defaults(), "", &refuses);
        if let Some(definition) = definitions.get_mut(&name)
            && !asked.exclusive.is_empty()
        {
            let pairs = asked.exclusive.iter();
            let not = pairs.map(|pair| json!({ "not": { "required": pair } }));
            definition["allOf"] = not.collect();
        }
        told.push((kind, asked));
    }
    let resources = |table: &Value| refused(table, Resources::finish);
    let base = || json!(Resources::default());
    one(definitions, "Resources", base(), "", &resources);
    let mesh = |table: &Value| {
        let mut all = base();
        all["mesh"] = table.clone();
        resources(&all)
    };
    one(definitions, "Mesh", json!(base()["mesh"]), "mesh.", &mesh);
    let checkpoint = |table: &Value| refused(table, Checkpoint::finish);
    one(
        definitions,
        "Checkpoint",
        json!(Checkpoint::default()),
        "",
        &checkpoint,
    );
    retry(definitions);
    assertion(definitions);
    told
}

/// What a file must have that neither includes another nor is included: see the module.
pub fn alone(told: &[(&'static Kind, Asked)]) -> Value {
    let kinds: Vec<Value> = told
        .iter()
        .map(|(kind, asked)| {
            let inputs = kind.inputs.iter().filter(|p| p.required);
            let inputs: Vec<&str> = inputs.map(|p| p.name).collect();
            let mut rules: Vec<Value> = Vec::new();
            if !inputs.is_empty() {
                rules.push(
                    json!({ "required": ["in"], "properties": { "in": { "required": inputs } } }),
                );
            }
            if kind.open_inputs {
                rules.extend(asked.required.iter().map(|name| setting(name)));
            } else if !asked.required.is_empty() {
                let required = &asked.required;
                rules.push(
                    json!({ "required": ["with"], "properties": { "with": { "anyOf": [
                    { "type": "string" }, { "required": required },
                ] } } }),
                );
            }
            json!({
                "if": { "required": ["kind"], "properties": { "kind": { "const": kind.name } } },
                "then": { "allOf": rules },
            })
        })
        .filter(|rule| rule["then"]["allOf"] != json!([]))
        .collect();
    let places = ["path", "hf", "hf_dataset", "url", "adopted"];
    let places = places.map(|place| json!({ "required": [place] }));
    json!({
        "if": {
            "required": ["recipe"],
            "properties": { "recipe": { "type": "object", "not": { "required": ["include"] } } },
        },
        "then": {
            "required": ["stage"],
            "properties": {
                "source": { "additionalProperties": { "anyOf": places } },
                "stage": {
                    "minProperties": 1, "additionalProperties": { "required": ["kind"], "allOf": kinds },
                },
            },
        },
    })
}

/// A setting of a `command`, in `with` or beside it, and not in both.
fn setting(name: &str) -> Value {
    json!({ "oneOf": [
        { "required": [name] },
        { "required": ["with"], "properties": { "with": { "required": [name] } } },
    ] })
}

/// The name of the definition that a kind's `with` refers to.
fn definition_of(kind: &Kind) -> String {
    let mut generator = schemars::SchemaGenerator::default();
    let schema: Value = kind.schema(&mut generator).into();
    let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
    name.unwrap_or_default().to_owned()
}

fn one(
    definitions: &mut Map<String, Value>,
    name: &str,
    base: Value,
    prefix: &str,
    refuses: asked::Refuses,
) -> Asked {
    let Some(mut definition) = definitions.get(name).cloned() else {
        return Asked {
            required: Vec::new(),
            exclusive: Vec::new(),
        };
    };
    let asked = asked::ask(&mut definition, definitions, base, prefix, refuses);
    definitions.insert(name.to_owned(), definition);
    asked
}

/// What a placement's own check says of a table.
fn refused<T: DeserializeOwned>(
    table: &Value,
    finish: impl Fn(&mut T) -> Result<(), Invalid>,
) -> Option<Invalid> {
    let mut value: T = serde_json::from_value(table.clone()).ok()?;
    finish(&mut value).err()
}

/// Failures that a retry would repeat are no choice.
fn retry(definitions: &mut Map<String, Value>) {
    let all = definitions
        .get("FailureClass")
        .map(|schema| asked::choices(schema, definitions));
    let may = |class: &Value| refused(&json!({ "on": [class] }), Retry::finish).is_none();
    let classes: Vec<Value> = all.into_iter().flatten().filter(may).collect();
    if let Some(retry) = definitions.get_mut("Retry") {
        retry["properties"]["on"]["items"] = json!({ "enum": classes });
    }
}

/// An assertion asks something: with the metric's name alone the parser misses a bound, with one of these
/// it does not.
fn assertion(definitions: &mut Map<String, Value>) {
    let Some(properties) = definitions
        .get("Assertion")
        .and_then(|d| d["properties"].as_object())
    else {
        return;
    };
    let finish = |table: Value| {
        let read: Result<Assertion, _> = serde_json::from_value(table);
        read.ok().map(|a| a.finish().err())
    };
    let silent = |e: &Invalid| e.code == codes::MISSING && e.field.is_empty();
    let asks = |name: &String| {
        let samples = [
            json!(1),
            json!([1, 2]),
            json!("x"),
            json!("pin:x"),
            json!("falls"),
            json!("last"),
        ];
        let mut read = samples
            .into_iter()
            .filter_map(|v| finish(json!({ "metric": "x", name: v })))
            .peekable();
        read.peek().is_some() && read.all(|e| !e.as_ref().is_some_and(silent))
    };
    let mut ways: Vec<Value> = properties
        .keys()
        .filter(|name| !["metric", "digest"].contains(&name.as_str()) && asks(name))
        .map(|name| json!({ "required": ["metric", name] }))
        .collect();
    ways.push(json!({ "required": ["digest"] }));
    if let Some(definition) = definitions.get_mut("Assertion") {
        definition["anyOf"] = json!(ways);
    }
}
