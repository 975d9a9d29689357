//! From a recipe's `environment` to an [`Environment`]: names, strict options, mixtures.

use super::mixture::{Member, Mixture};
use super::{ENVIRONMENTS, Environment, Kind, Rows};
use crate::dataset::Dataset;
use crate::error::{Error, Result, quote};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Builds what a recipe's `environment` says: a name (`"addition"`), a table with options
/// (`{ name = "addition", digits = 2 }`), or a list of these mixed by `weight` (default 1), each
/// with an optional `label` for its metrics. Unknown names and options are errors that name the
/// nearest.
pub fn build(config: &Value, data: Rows) -> Result<Arc<dyn Environment>> {
    let Value::Array(items) = config else {
        return build_one(config, data).map(|member| member.environment);
    };
    if items.is_empty() {
        return Err(Error::Environment(
            "the list of environments is empty; name at least one".into(),
        ));
    }
    let members = (items.iter())
        .map(|item| build_one(item, data.clone()))
        .collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Mixture::new(members)?))
}

/// Checks a recipe's `environment` without its data: names and options. True where it needs a
/// data input.
pub fn check(config: &Value) -> Result<bool> {
    let items = match config {
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    };
    let mut needs_data = false;
    for item in items {
        match build_one(item, None) {
            Ok(_) => {}
            Err(Error::NoData { .. }) => needs_data = true,
            Err(e) => return Err(e),
        }
    }
    if items.is_empty() {
        build(config, None)?;
    }
    Ok(needs_data)
}

pub(super) fn build_one(config: &Value, data: Rows) -> Result<Member> {
    let mut map = match config {
        Value::String(name) => Map::from_iter([("name".to_string(), Value::from(name.clone()))]),
        Value::Object(map) => map.clone(),
        other => {
            return Err(Error::Environment(format!(
                "an environment is a name or a table with a name, got {}",
                quote(other)
            )));
        }
    };
    let name = match map.shift_remove("name") {
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(Error::Environment(format!(
                "name must be a string, got {}",
                quote(&other)
            )));
        }
        None => {
            return Err(Error::Environment(format!(
                "an environment needs a name, one of {}",
                names()
            )));
        }
    };
    let kind = find(&name)?;
    let mut options = Options { kind, map, data };
    let weight = options.float("weight", 1.0, 0.0, f64::MAX)?;
    let label = options.text("label", kind.name)?;
    let known = kind.options.iter().map(|(name, _)| *name);
    let known: Vec<&str> = known.chain(["weight", "label"]).collect();
    if let Some(unknown) = options
        .map
        .keys()
        .find(|key| !known.contains(&key.as_str()))
        && !kind.passes_options
    {
        return Err(Error::Environment(format!(
            "'{name}' has no option '{unknown}'; {}",
            suggest(unknown, &known)
        )));
    }
    options.map.shift_remove("weight");
    options.map.shift_remove("label");
    Ok(Member {
        environment: (kind.build)(options)?,
        weight,
        label,
    })
}

fn names() -> String {
    let names: Vec<&str> = ENVIRONMENTS.iter().map(|kind| kind.name).collect();
    names.join(", ")
}

fn find(name: &str) -> Result<&'static Kind> {
    let known: Vec<&str> = ENVIRONMENTS.iter().map(|kind| kind.name).collect();
    (ENVIRONMENTS.iter().find(|kind| kind.name == name)).ok_or_else(|| {
        Error::Environment(format!(
            "there is no environment '{name}'; {}",
            suggest(name, &known)
        ))
    })
}

/// The nearest of the known names by edit distance, or all of them.
fn suggest(wrong: &str, known: &[&str]) -> String {
    let near = known.iter().map(|k| (distance(wrong, k), *k)).min();
    match near {
        Some((d, name)) if d <= 1 + name.len() / 3 => format!("did you mean '{name}'?"),
        _ => format!("known: {}", known.join(", ")),
    }
}

/// Levenshtein distance in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = change.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A kind's options as the recipe gives them, and the data input.
pub struct Options {
    kind: &'static Kind,
    map: Map<String, Value>,
    data: Rows,
}

impl Options {
    fn wrong(&self, name: &str, value: &Value, want: &str) -> Error {
        Error::Environment(format!(
            "{}: {name} must be {want}, got {}",
            self.kind.name,
            quote(value)
        ))
    }

    pub fn integer(&self, name: &str, default: u64, low: u64, high: u64) -> Result<u64> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_u64() {
                Some(n) if (low..=high).contains(&n) => Ok(n),
                _ => Err(self.wrong(name, value, &format!("a whole number from {low} to {high}"))),
            },
        }
    }

    pub fn float(&self, name: &str, default: f64, low: f64, high: f64) -> Result<f64> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64() {
                Some(x) if x >= low && x <= high => Ok(x),
                _ if high == f64::MAX => {
                    Err(self.wrong(name, value, &format!("a number from {low} up")))
                }
                _ => Err(self.wrong(name, value, &format!("a number from {low} to {high}"))),
            },
        }
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    pub fn text(&self, name: &str, default: &str) -> Result<String> {
        Ok(self.optional_text(name)?.unwrap_or_else(|| default.into()))
    }

    pub fn optional_text(&self, name: &str) -> Result<Option<String>> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong(name, other, "a string")),
        }
    }

    /// The data input.
    pub fn data(&self) -> Result<Arc<Dataset>> {
        self.data.clone().ok_or(Error::NoData {
            environment: self.kind.name.into(),
        })
    }

    /// Takes this kind's own options out and leaves those of another environment, named by option
    /// `over`.
    pub fn inner(mut self, default: &str) -> Result<Member> {
        let over = self.text("over", default)?;
        if over == self.kind.name {
            return Err(Error::Environment(format!(
                "{} cannot be built over itself; set over to another environment",
                self.kind.name
            )));
        }
        for (name, _) in self.kind.options {
            self.map.shift_remove(*name);
        }
        self.map.insert("name".into(), over.into());
        build_one(&Value::Object(self.map), self.data)
    }

    /// Whether there is a data input.
    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }
}
