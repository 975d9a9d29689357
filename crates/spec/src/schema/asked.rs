//! What the parser says of single values, found by asking it: bounds of numbers, settings that a table
//! cannot do without, settings that exclude each other. So the schema cannot say otherwise than the parser,
//! whatever is added to it.
//!
//! A bound is written down only where the parser refuses the value whatever the table's switches and choices
//! are set to; what depends on other settings is left to `recipe check`.

use crate::codes;
use crate::kinds::Invalid;
use serde_json::{Map, Value, json};

/// Says what is wrong with a table.
pub type Refuses<'a> = &'a dyn Fn(&Value) -> Option<Invalid>;

/// What a table's definition lacks, as far as the parser tells.
pub struct Asked {
    /// Settings without which the table is refused.
    pub required: Vec<String>,
    /// Pairs of which a table has one at most.
    pub exclusive: Vec<[String; 2]>,
}

/// Adds bounds to the properties of a definition, and tells the rest. `prefix` is where the parser's errors
/// say that the table lies. `base` is what an empty table stands for;
pub fn ask(
    definition: &mut Value,
    definitions: &Map<String, Value>,
    base: Value,
    prefix: &str,
    refuses: Refuses,
) -> Asked {
    let none = Map::new();
    let properties = definition["properties"].as_object().unwrap_or(&none);
    let mut asked = Asked {
        required: Vec::new(),
        exclusive: Vec::new(),
    };
    let Some((base, missing)) = complete(base, properties, definitions, refuses) else {
        return asked;
    };
    let variants = variants(&base, properties, definitions, refuses);
    let with = |table: &Value, name: &str, value: &Value| {
        let mut table = table.clone();
        table[name] = value.clone();
        refuses(&table)
    };
    // refused whatever else is chosen, for this setting's own sake
    let out = |name: &str, value: Value, code: &[&str]| {
        let field = format!("{prefix}{name}");
        let own = |table: &Value| {
            with(table, name, &value).is_some_and(|e| e.field == field && code.contains(&e.code))
        };
        variants.iter().all(own)
    };
    let either = [codes::RANGE, codes::UNSUPPORTED];
    let mut bounds: Vec<(String, &str, Value)> = Vec::new();
    for (name, schema) in properties {
        let is = |kind: &str| types(schema).any(|t| t == kind);
        if is("integer") {
            let least = (0..3).find(|n| !out(name, json!(n), &either));
            if let Some(least @ 1..) = least {
                bounds.push((name.clone(), "minimum", json!(least)));
            }
            if out(name, json!(2), &[codes::UNSUPPORTED]) && !out(name, json!(1), &either) {
                bounds.push((name.clone(), "maximum", json!(1)));
            }
        } else if is("number") {
            let range = |value: f64| out(name, json!(value), &[codes::RANGE]);
            match (range(-1.0), range(0.0)) {
                (true, true) if !range(0.5) || !range(1.0) => {
                    bounds.push((name.clone(), "exclusiveMinimum", json!(0)));
                }
                (true, false) => bounds.push((name.clone(), "minimum", json!(0))),
                _ => {}
            }
            match (range(0.5), range(1.0), range(2.0)) {
                (false, true, true) => bounds.push((name.clone(), "exclusiveMaximum", json!(1))),
                (false, false, true) => bounds.push((name.clone(), "maximum", json!(1))),
                _ => {}
            }
        }
    }
    for name in missing {
        let mut others = properties.iter().filter(|(other, _)| **other != name);
        let mut without = base.clone();
        remove(&mut without, &name);
        // another setting may stand in for it
        let stands_in = |(other, schema): (&String, &Value)| {
            let values = samples(schema, definitions);
            let helps = |v: &Value| with(&without, other, v).is_none();
            values.iter().any(helps)
        };
        if !others.any(stands_in) {
            asked.required.push(name);
        }
    }
    let absent: Vec<(&String, &Value)> = properties
        .iter()
        .filter(|(_, schema)| types(schema).any(|t| t == "null"))
        .collect();
    for (i, (a, of_a)) in absent.iter().enumerate() {
        for (b, of_b) in &absent[i + 1..] {
            let mut neither = base.clone();
            remove(&mut neither, a);
            remove(&mut neither, b);
            let (sample_a, sample_b) = (samples(of_a, definitions), samples(of_b, definitions));
            let (Some(x), Some(y)) = (sample_a.first(), sample_b.first()) else {
                continue;
            };
            let mut both = neither.clone();
            (both[a.as_str()], both[b.as_str()]) = (x.clone(), y.clone());
            let alone = with(&neither, a, x).is_none() && with(&neither, b, y).is_none();
            if alone && refuses(&both).is_some_and(|e| e.code == codes::CONFLICT) {
                asked.exclusive.push([(*a).clone(), (*b).clone()]);
            }
        }
    }
    for (name, bound, value) in bounds {
        definition["properties"][&name][bound] = value;
    }
    asked
}

/// Values that pass, for settings that the parser refuses when they are left out; and which those are.
fn complete(
    mut base: Value,
    properties: &Map<String, Value>,
    definitions: &Map<String, Value>,
    refuses: Refuses,
) -> Option<(Value, Vec<String>)> {
    let mut missing = Vec::new();
    while let Some(error) = refuses(&base) {
        let name = error.field.clone();
        let schema = properties.get(&name)?;
        if missing.contains(&name) {
            return None;
        }
        let better = samples(schema, definitions).into_iter().find_map(|value| {
            let mut table = base.clone();
            table[&name] = value;
            let now = refuses(&table);
            now.is_none_or(|e| e.field != name).then_some(table)
        });
        base = better?;
        missing.push(name);
    }
    Some((base, missing))
}

/// The base, and the base with each switch and choice set to each of its values, as far as that passes.
fn variants(
    base: &Value,
    properties: &Map<String, Value>,
    definitions: &Map<String, Value>,
    refuses: Refuses,
) -> Vec<Value> {
    let mut all = vec![base.clone()];
    for (name, schema) in properties {
        for value in choices(schema, definitions) {
            let mut table = base.clone();
            table[name] = value;
            if refuses(&table).is_none() {
                all.push(table);
            }
        }
    }
    all
}

/// What a definition is, behind its reference.
fn behind<'a>(schema: &'a Value, definitions: &'a Map<String, Value>) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|r| r.rsplit('/').next());
    name.and_then(|n| definitions.get(n)).unwrap_or(schema)
}

fn types(schema: &Value) -> impl Iterator<Item = &str> {
    let one = schema["type"].as_str();
    let many = schema["type"].as_array().into_iter().flatten();
    one.into_iter().chain(many.filter_map(Value::as_str))
}

/// The values of a switch or a choice.
pub fn choices(schema: &Value, definitions: &Map<String, Value>) -> Vec<Value> {
    let schema = behind(schema, definitions);
    if types(schema).any(|t| t == "boolean") {
        return vec![json!(true), json!(false)];
    }
    let mut all = Vec::new();
    all.extend(schema["enum"].as_array().into_iter().flatten().cloned());
    all.extend(schema.get("const").cloned());
    for one in schema["oneOf"].as_array().into_iter().flatten() {
        all.extend(choices(one, definitions));
    }
    all
}

/// Values of the right type to try.
fn samples(schema: &Value, definitions: &Map<String, Value>) -> Vec<Value> {
    let mut all = choices(schema, definitions);
    for kind in types(behind(schema, definitions)) {
        match kind {
            "integer" => all.extend([json!(1), json!(2), json!(4), json!(64)]),
            "number" => all.extend([json!(1.0), json!(0.5)]),
            "string" => all.push(json!("x")),
            "array" => all.push(json!(["x"])),
            _ => {}
        }
    }
    if all.is_empty() {
        all.extend([json!("x"), json!(["x"])]);
    }
    all
}

fn remove(table: &mut Value, name: &str) {
    if let Value::Object(map) = table {
        map.shift_remove(name);
    }
}
