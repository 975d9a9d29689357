//! JSON Schema of the recipe file, from the same definitions as the parser. What types do not say is in
//! [`rules`], and what of it the parser is asked for in [`asked`].

mod asked;
mod rules;

use crate::kinds::{ArtifactKind, KINDS, Kind};
use crate::track::Track;
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
    let track = generator.subschema_for::<Track>();
    let mut definitions = generator.take_definitions(true);
    let told = rules::ask(&mut definitions);
    allow_params(&mut definitions);
    let layered = |stage: Value| {
        json!({
            "params": { "type": "object", "propertyNames": { "pattern": NAME }, "description": "values used as ${params.name}" },
            "source": { "type": "object", "propertyNames": { "pattern": NAME }, "additionalProperties": source() },
            "stage": {
                "type": "object",
                "propertyNames": { "pattern": NAME, "not": { "const": "source" } },
                "additionalProperties": stage,
            },
            "track": track,
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
    // a layer of another file, which says the kind
    let layer = json!({ "type": "object", "not": { "required": ["kind"] } });
    let stages = [stages, vec![layer]].concat();
    definitions.insert("stage".to_owned(), json!({ "oneOf": stages }));
    let alone = rules::alone(&told);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "recipe",
        "description": "a recipe: LLM post-training as a build",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "if": alone["if"],
        "then": alone["then"],
        "$defs": definitions,
    })
}

const NAME: &str = "^[A-Za-z0-9_-]+$";
/// `stage.output`, a cell's or all cells' (`sft[lr=0.1].model`), or text with something to fill in.
const REFERENCE: &str =
    r"\$\{|^[A-Za-z0-9_-]+(\[.*\])?\.[A-Za-z0-9_-]+(@(0*[1-9][0-9]*|(min|max)\(.+\)))?$";
const TIMEOUT: &str = r"\$\{|^([0-9]+[smhd])+$";

fn stage(kind: &Kind, generator: &mut SchemaGenerator) -> Value {
    let with: Value = kind.schema(generator).into();
    let mut properties = json!({
        "kind": { "const": kind.name, "description": kind.doc },
        "in": inputs(kind),
        "with": with,
        "resources": generator.subschema_for::<Resources>(),
        "matrix": matrix(),
        "replicas": {
            "type": "object",
            "description": "a cell for each seed, which becomes with.seed",
            "properties": { "seeds": { "type": "array", "minItems": 1, "uniqueItems": true, "items": { "type": "integer", "minimum": 0 } } },
            "required": ["seeds"],
            "additionalProperties": false,
        },
        "foreach": { "type": "string", "pattern": NAME, "description": "a cell for each cell of this stage; references to it are to that cell" },
        "retry": generator.subschema_for::<Retry>(),
        "timeout": { "type": "string", "pattern": TIMEOUT, "description": "wall time of one attempt, such as 12h" },
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
            for key in ["cmd", "out", "env", "secrets"] {
                let list = json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": key != "cmd" });
                map.insert(key.to_owned(), list);
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

/// `matrix`: axes, and cells to leave out or to add.
fn matrix() -> Value {
    let cells = json!({ "type": "array", "minItems": 1, "items": { "type": "object", "minProperties": 1 } });
    json!({
        "type": "object",
        "description": "axes; the stage becomes a cell for each of their combinations, with ${matrix.axis} filled in",
        "minProperties": 1,
        "properties": { "include": cells, "exclude": cells },
        "additionalProperties": { "type": "array", "minItems": 1, "uniqueItems": true },
    })
}

fn inputs(kind: &Kind) -> Value {
    let metric = json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]+\\..+$" });
    let select = |best: &str| json!({ "type": "object", "properties": { best: metric }, "required": [best], "additionalProperties": false });
    let one = json!({
        "anyOf": [
            { "type": "string", "pattern": REFERENCE },
            {
                "type": "object",
                "description": "the cell of a matrix with the best metric",
                "properties": { "of": { "type": "string" }, "select": { "oneOf": [select("max"), select("min")] } },
                "required": ["of", "select"],
                "additionalProperties": false,
            },
        ],
    });
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
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
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

/// A lone reference to a parameter or an axis.
const PARAM: &str = "^\\$\\{ *(params|matrix)\\.[A-Za-z0-9_-]+ *\\}$";

fn source() -> Value {
    let text = json!({ "type": "string", "minLength": 1 });
    let matching =
        |pattern: &str| json!({ "type": "string", "pattern": format!(r"\$\{{|{pattern}") });
    let repository = matching("^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$");
    let local =
        json!({ "not": { "anyOf": [{ "required": ["revision"] }, { "required": ["files"] }] } });
    let place = |name: &str, rest: &Value| json!({ "required": [name], "allOf": [rest] });
    let anything = json!({});
    json!({
        "type": "object",
        "properties": {
            "path": text, "hf": repository, "hf_dataset": repository, "url": matching("://"),
            "adopted": matching("^[0-9a-f]{64}$"), "revision": text,
            "files": { "type": "array", "items": text },
        },
        "oneOf": [
            place("path", &local), place("hf", &anything), place("hf_dataset", &anything), place("url", &local),
            place("adopted", &local),
            // a layer of another file, which says the place
            { "not": { "anyOf": [
                { "required": ["path"] }, { "required": ["hf"] }, { "required": ["hf_dataset"] },
                { "required": ["url"] }, { "required": ["adopted"] },
            ] } },
        ],
        "additionalProperties": false,
    })
}
