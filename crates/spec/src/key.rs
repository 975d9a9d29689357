//! A stage's key: the name of its result in the store.
//!
//! | hashed | why |
//! |---|---|
//! | `domain`, `schema` | keys of another purpose or schema never collide with these |
//! | `kind` as `name@version` | the kind's meaning; raised when a configuration starts to mean something else |
//! | `with` | the canonical configuration after params, profiles, includes and defaults; seeds are part of it |
//! | `inputs`: name -> list of content digests | what the stage reads, in order; never where it came from |
//! | `trainer`: `libtorch`, `sources` | what computes it; `sources` only in a build from a checkout; absent for kinds that run no trainer |
//! | `environment`: name -> value | the variables a `command` declares |
//!
//! Not hashed: paths, URLs, times, names of stages, sources and recipes, attempt numbers, map
//! order, comments, and placement (`resources`, `checkpoint`, `retry`, `timeout`, device, launcher,
//! store), which has types of its own that no preimage takes.
//!
//! The key is blake3 over the canonical JSON text of the preimage, all 256 bits, in hex.

use crate::{SCHEMA, canonical, kinds};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

const DOMAIN: &str = "recipe.key";

/// 64 hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(String);

impl Key {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `recipe-worker identity` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trainer {
    /// Version of the worker; recorded, not hashed: kinds carry their own versions.
    pub version: String,
    pub libtorch: String,
    /// Digest of the sources the worker was built from; empty in a release.
    #[serde(default)]
    pub sources: String,
}

impl Trainer {
    /// What of it enters a key.
    pub fn hashed(&self) -> HashedTrainer {
        HashedTrainer {
            libtorch: self.libtorch.clone(),
            sources: self.sources.clone(),
        }
    }
}

/// The trainer as it enters a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashedTrainer {
    pub libtorch: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sources: String,
}

/// Everything a key is made of. Stored with the result; [`Preimage::key`] of what was stored is
/// the key it is stored under.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preimage {
    pub domain: String,
    pub schema: u32,
    pub kind: String,
    pub with: Value,
    pub inputs: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainer: Option<HashedTrainer>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

impl Preimage {
    /// The preimage of a stage whose inputs have these content digests. `trainer` is ignored for
    /// kinds that run no trainer.
    pub fn new(
        kind: &kinds::Kind,
        with: &Value,
        inputs: BTreeMap<String, Vec<String>>,
        trainer: &Trainer,
        environment: BTreeMap<String, String>,
    ) -> Self {
        let hashed = trainer.hashed();
        Self {
            domain: DOMAIN.to_owned(),
            schema: SCHEMA,
            kind: kind.versioned(),
            with: with.clone(),
            inputs,
            trainer: kind.trainer.then_some(hashed),
            environment,
        }
    }

    /// The text that is hashed, and stored: [`canonical::text`] of the preimage as JSON.
    pub fn text(&self) -> String {
        write(
            (&self.domain, self.schema, &self.kind),
            &self.with,
            &self.inputs,
            self.trainer.as_ref(),
            &self.environment,
        )
    }

    /// [`Preimage::text`] of what [`Preimage::new`] would make.
    pub fn text_of(
        kind: &kinds::Kind,
        with: &Value,
        inputs: &BTreeMap<String, Vec<String>>,
        trainer: &HashedTrainer,
        environment: &BTreeMap<String, String>,
    ) -> String {
        let trainer = kind.trainer.then_some(trainer);
        write(
            (DOMAIN, SCHEMA, &kind.versioned()),
            with,
            inputs,
            trainer,
            environment,
        )
    }

    pub fn key(&self) -> Key {
        Key(blake3::hash(self.text().as_bytes()).to_hex().to_string())
    }

    /// Reads a stored preimage.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The fields that differ from an earlier preimage, sorted by path.
    pub fn diff(&self, earlier: &Self) -> Vec<Difference> {
        let json = |preimage| {
            serde_json::to_value(preimage).expect("a preimage holds only what JSON holds")
        };
        difference(&json(earlier), &json(self))
    }
}

/// The leaves that differ between two JSON values, sorted by path.
pub fn difference(before: &Value, now: &Value) -> Vec<Difference> {
    let (before, now) = (flatten(before), flatten(now));
    let mut fields: Vec<&String> = now.keys().chain(before.keys()).collect();
    fields.sort();
    fields.dedup();
    fields
        .into_iter()
        .filter(|f| now.get(*f) != before.get(*f))
        .map(|f| Difference {
            field: f.clone(),
            before: before.get(f).cloned(),
            now: now.get(f).cloned(),
        })
        .collect()
}

/// A preimage's text, written without making the JSON value first. Fields are in the order of their names.
fn write(
    (domain, schema, kind): (&str, u32, &str),
    with: &Value,
    inputs: &BTreeMap<String, Vec<String>>,
    trainer: Option<&HashedTrainer>,
    environment: &BTreeMap<String, String>,
) -> String {
    let mut out = String::with_capacity(512);
    out.push_str("{\"domain\":");
    canonical::string(domain, &mut out);
    if !environment.is_empty() {
        out.push_str(",\"environment\":");
        table(environment, &mut out, |value, out| {
            canonical::string(value, out);
        });
    }
    out.push_str(",\"inputs\":");
    table(inputs, &mut out, |digests, out| {
        out.push('[');
        for (i, digest) in digests.iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            canonical::string(digest, out);
        }
        out.push(']');
    });
    out.push_str(",\"kind\":");
    canonical::string(kind, &mut out);
    out.push_str(&format!(",\"schema\":{schema}"));
    if let Some(trainer) = trainer {
        out.push_str(",\"trainer\":{\"libtorch\":");
        canonical::string(&trainer.libtorch, &mut out);
        if !trainer.sources.is_empty() {
            out.push_str(",\"sources\":");
            canonical::string(&trainer.sources, &mut out);
        }
        out.push('}');
    }
    out.push_str(",\"with\":");
    canonical::write(with, &mut out);
    out.push('}');
    out
}

/// A table whose names are sorted by their bytes, as a `BTreeMap`'s are.
fn table<V>(entries: &BTreeMap<String, V>, out: &mut String, value: impl Fn(&V, &mut String)) {
    out.push('{');
    for (i, (name, entry)) in entries.iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        canonical::string(name, out);
        out.push(':');
        value(entry, out);
    }
    out.push('}');
}

/// One field of two preimages.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Path such as `with.lr`, `inputs.data[0]` or `trainer.sources`.
    pub field: String,
    /// Absent where the earlier preimage has no such field.
    pub before: Option<Value>,
    pub now: Option<Value>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |v: &Option<Value>| {
            v.as_ref()
                .map_or_else(|| "(absent)".to_owned(), canonical::text)
        };
        write!(
            f,
            "{} {} -> {}",
            self.field,
            show(&self.before),
            show(&self.now)
        )
    }
}

fn flatten(value: &Value) -> BTreeMap<String, Value> {
    fn walk(path: String, value: &Value, out: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    walk(path, value, out);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (i, value) in items.iter().enumerate() {
                    walk(format!("{path}[{i}]"), value, out);
                }
            }
            leaf => {
                out.insert(path, leaf.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(String::new(), value, &mut out);
    out
}
