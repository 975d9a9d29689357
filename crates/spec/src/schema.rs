//! JSON Schema of the recipe file, from the same definitions as the parser.

use crate::kinds::{ArtifactKind, KINDS, Kind};
use crate::{Assertion, Checkpoint, Resources, Retry, SCHEMA};
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

/// The schema of a whole recipe file.
pub fn recipe() -> Value {
    let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let stages: Vec<Value> = KINDS
        .iter()
        .map(|kind| stage(kind, &mut generator))
        .collect();
    let mut definitions = generator.take_definitions(true);
    allow_params(&mut definitions);
    let layered = |stage: Value| {
        json!({
            "params": { "type": "object", "description": "values used as ${params.name}" },
            "source": { "type": "object", "additionalProperties": source() },
            "stage": { "type": "object", "additionalProperties": stage },
        })
    };
    let mut properties = layered(json!({ "$ref": "#/$defs/stage" }));
    let profile = json!({
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": layered(json!({ "type": "object" })),
            "additionalProperties": false,
        },
        "description": "layers chosen with --profile",
    });
    if let Value::Object(map) = &mut properties {
        map.insert("profile".to_owned(), profile);
        map.insert(
            "recipe".to_owned(),
            json!({
                "type": "object",
                "required": ["name", "schema"],
                "additionalProperties": false,
                "properties": {
                    "name": { "type": "string", "pattern": NAME },
                    "schema": { "const": SCHEMA },
                    "include": { "type": "array", "items": { "type": "string" } },
                },
            }),
        );
    }
    definitions.insert("stage".to_owned(), json!({ "oneOf": stages }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "recipe",
        "description": "a recipe: LLM post-training as a build",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "$defs": definitions,
    })
}

const NAME: &str = "^[A-Za-z0-9_-]+$";

fn stage(kind: &Kind, generator: &mut SchemaGenerator) -> Value {
    let with: Value = kind.schema(generator).into();
    let mut properties = json!({
        "kind": { "const": kind.name, "description": kind.doc },
        "in": inputs(kind),
        "with": with,
        "resources": generator.subschema_for::<Resources>(),
        "retry": generator.subschema_for::<Retry>(),
        "timeout": { "type": "string", "description": "wall time of one attempt, such as 12h" },
        "assert": {
            "type": "array",
            "items": generator.subschema_for::<Assertion>(),
            "description": "what must be so of the result; where it is not, the result is kept and the run exits 3",
        },
        "needs_assert": {
            "type": "boolean",
            "default": false,
            "description": "run only where all assertions of the stages above hold",
        },
    });
    if let Value::Object(map) = &mut properties {
        if kind.checkpoints {
            map.insert(
                "checkpoint".to_owned(),
                generator.subschema_for::<Checkpoint>().into(),
            );
        }
        if kind.open_inputs {
            for key in ["cmd", "out", "env"] {
                map.insert(
                    key.to_owned(),
                    json!({ "type": "array", "items": { "type": "string" } }),
                );
            }
        }
    }
    json!({
        "type": "object",
        "description": kind.doc,
        "required": ["kind"],
        "properties": properties,
        "additionalProperties": false,
    })
}

fn inputs(kind: &Kind) -> Value {
    let one = json!({ "type": "string" });
    let list = json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] });
    if kind.open_inputs {
        return json!({ "type": "object", "additionalProperties": list });
    }
    let properties: Map<String, Value> = kind
        .inputs
        .iter()
        .map(|port| {
            let mut schema = if port.many { list.clone() } else { one.clone() };
            schema["description"] = json!(format!("{} ({})", port.doc, artifact(port.artifact)));
            (port.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<&str> = kind
        .inputs
        .iter()
        .filter(|p| p.required)
        .map(|p| p.name)
        .collect();
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

fn artifact(kind: ArtifactKind) -> &'static str {
    kind.name()
}

/// Lets every property of the definitions be a parameter instead of a value.
fn allow_params(definitions: &mut Map<String, Value>) {
    for definition in definitions.values_mut() {
        let Some(Value::Object(properties)) = definition.get_mut("properties") else {
            continue;
        };
        for schema in properties.values_mut() {
            let described = schema.get("description").cloned();
            let default = schema.get("default").cloned();
            let mut either =
                json!({ "anyOf": [schema.take(), { "type": "string", "pattern": PARAM }] });
            for (key, value) in [("description", described), ("default", default)] {
                if let Some(value) = value {
                    either[key] = value;
                }
            }
            *schema = either;
        }
    }
}

/// A lone reference to a parameter.
const PARAM: &str = "^\\$\\{ *params\\.[A-Za-z0-9_-]+ *\\}$";

fn source() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "type": "object",
        "properties": { "path": text, "hf": text, "hf_dataset": text, "url": text, "revision": text, "files": { "type": "array", "items": text } },
        "oneOf": [
            { "required": ["path"] }, { "required": ["hf"] }, { "required": ["hf_dataset"] }, { "required": ["url"] }
        ],
        "additionalProperties": false,
    })
}
