//! Where a value of a recipe comes from: which layers set it, which of them wins, and what it is made of.

use crate::layers::{Layer, stacked};
use crate::params;
use crate::tree::{Files, Node, Value as Written};
use crate::{Diagnostic, Layers, Place, Recipe, codes, resolve};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// A key and where its value comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Explained {
    /// `stage.sft.with.lr`.
    pub key: String,
    /// What it comes to.
    pub value: Value,
    /// The layers that set it, the lowest first: the last wins. None where the value is a default.
    pub set: Vec<Set>,
    /// The parameters and axes that the winning text uses.
    pub uses: Vec<Explained>,
}

/// A layer that sets a key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Set {
    /// `file`, `profile` or `command line`.
    pub layer: &'static str,
    /// The profile's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The file, or the text of the setting.
    pub file: String,
    pub line: usize,
    /// As it is written, shortened.
    pub text: String,
}

/// What `key` is in a recipe with these layers: `lr` (a parameter), `params.lr`, `stage.sft.with.lr`, `source.base.revision`;
/// a stage may be a cell.
pub fn explain(file: &Path, layers: &Layers, key: &str) -> Result<Explained, Box<Diagnostic>> {
    let mut stack = Vec::new();
    let read = stacked(file, layers, Some(&mut stack))?;
    let files = read.files.clone();
    let recipe = resolve::resolve(read)?;
    Explainer {
        files,
        stack,
        recipe,
    }
    .key(key)
}

struct Explainer {
    files: Files,
    stack: Vec<Layer>,
    recipe: Recipe,
}

impl Explainer {
    fn key(&self, key: &str) -> Result<Explained, Box<Diagnostic>> {
        let path = match key.contains('.') {
            true => key.to_owned(),
            false => format!("params.{key}"),
        };
        let (steps, cell) = steps(&path);
        let set = self.set(&steps);
        let winner = set.last().map(|(_, node)| *node);
        let value = match (steps[0].as_str(), winner) {
            // parameters have no other value than what is written
            ("params", Some(node)) => self.filled(node),
            ("params", None) => return Err(self.unknown(key, &steps)),
            _ => self
                .value(&steps, cell.as_deref(), winner)
                .ok_or_else(|| self.unknown(key, &steps))?,
        };
        let mut uses = Vec::new();
        if let Some(node) = winner {
            let (mut names, mut axes) = (BTreeSet::new(), BTreeSet::new());
            params::mentioned(node, &mut names);
            params::mentioned_axes(node, &mut axes);
            for name in names {
                uses.push(self.key(&format!("params.{name}"))?);
            }
            for axis in axes {
                uses.extend(self.axis(&steps[1], cell.as_deref(), &axis));
            }
        }
        Ok(Explained {
            key: path,
            value,
            set: set.into_iter().map(|(set, _)| set).collect(),
            uses,
        })
    }

    /// The layers that set a key, with what they say.
    fn set(&self, steps: &[String]) -> Vec<(Set, &Node)> {
        let found = self.stack.iter().filter_map(|layer| {
            let node = below(&layer.root, steps)?;
            let place = Place::of(&self.files, node.at);
            let command = place.file == "command line";
            let set = Set {
                layer: match (&layer.profile, command) {
                    (Some(_), _) => "profile",
                    (None, true) => "command line",
                    (None, false) => "file",
                },
                profile: layer.profile.clone(),
                file: if command { place.text } else { place.file },
                line: place.line,
                text: node.value.show(),
            };
            Some((set, node))
        });
        found.collect()
    }

    /// An axis of a stage's matrix, or of one it follows.
    fn axis(&self, stage: &str, cell: Option<&str>, axis: &str) -> Option<Explained> {
        let base = stage.split('[').next().unwrap_or(stage);
        let cells = self.recipe.cells.of(base);
        let place = cells.first()?.place.iter().find(|c| c.axis == axis);
        let by = place.map_or(base, |c| c.declared_by.as_str());
        let steps = |keys: [&str; 2]| ["stage", by, keys[0], keys[1]].map(str::to_owned).to_vec();
        let mut keys = ["matrix", axis];
        if self.set(&steps(keys)).is_empty() {
            keys = match axis {
                crate::cells::SEED => ["replicas", "seeds"],
                _ => ["matrix", "include"],
            };
        }
        let value = match cell.and_then(|name| self.recipe.cells.get(name)) {
            Some(cell) => cell.values.get(axis).cloned().unwrap_or_default(),
            None => cells
                .iter()
                .filter_map(|c| c.values.get(axis).cloned())
                .collect(),
        };
        Some(Explained {
            key: steps(keys).join("."),
            value,
            set: self
                .set(&steps(keys))
                .into_iter()
                .map(|(set, _)| set)
                .collect(),
            uses: Vec::new(),
        })
    }

    /// What a parameter's text comes to.
    fn filled(&self, node: &Node) -> Value {
        let mut root = Node {
            value: Written::Table(crate::tree::Table::new()),
            at: node.at,
        };
        let declared = self
            .stack
            .iter()
            .fold(crate::tree::Table::new(), |mut all, layer| {
                if let Some(params) = layer.root.get("params").and_then(Node::as_table) {
                    all.extend(params.clone());
                }
                all
            });
        root.value = node.value.clone();
        // the recipe resolved, so every parameter does
        let _ = params::Params::new(&self.files, &declared).fill(&mut root, None);
        crate::cells::json(&root.value)
    }

    /// What a key of a source or stage comes to, defaults included.
    fn value(&self, steps: &[String], cell: Option<&str>, winner: Option<&Node>) -> Option<Value> {
        let all = match (steps.first()?.as_str(), steps.get(1)) {
            ("stage", Some(name)) => {
                let first = || self.recipe.cells.of(name).first().map(|c| c.name.as_str());
                let name = cell.or_else(first).unwrap_or(name);
                let stage = self.recipe.stages.get(name)?;
                let inputs: serde_json::Map<String, Value> = stage
                    .inputs
                    .iter()
                    .map(|(name, list)| {
                        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
                        (name.clone(), json!(list))
                    })
                    .collect();
                let mut value = json!({
                    "kind": stage.kind.name,
                    "in": inputs,
                    "with": stage.with,
                    "resources": stage.placement.resources,
                    "checkpoint": stage.placement.checkpoint,
                    "retry": stage.placement.retry,
                    "timeout": stage.placement.timeout.map(|t| format!("{}s", t.as_secs())),
                    "assert": stage.assertions,
                });
                if stage.kind.name == "command" {
                    for key in ["cmd", "out", "env", "secrets"] {
                        value[key] = stage.with[key].clone();
                    }
                }
                value
            }
            ("source", Some(name)) => {
                let source = self.recipe.sources.get(name.as_str())?;
                use crate::SourceSpec as S;
                match &source.from {
                    S::Path(path) => json!({ "path": path }),
                    S::Url(url) => json!({ "url": url }),
                    S::Adopted(digest) => json!({ "adopted": digest }),
                    S::Hf {
                        repo,
                        revision,
                        files,
                    } => json!({ "hf": repo, "revision": revision, "files": files }),
                    S::HfDataset {
                        repo,
                        revision,
                        files,
                    } => json!({ "hf_dataset": repo, "revision": revision, "files": files }),
                }
            }
            ("recipe", _) => return Some(crate::cells::json(&winner?.value)),
            _ => return None,
        };
        let found = steps[2.min(steps.len())..]
            .iter()
            .try_fold(&all, |value, step| value.get(step));
        match found {
            Some(value) => Some(value.clone()),
            // such as a matrix, which is used up
            None => winner.map(|node| crate::cells::json(&node.value)),
        }
    }

    fn unknown(&self, key: &str, steps: &[String]) -> Box<Diagnostic> {
        // the names beside the first step that is not there
        let mut known = BTreeSet::new();
        let mut wrong = key;
        for (i, step) in steps.iter().enumerate() {
            let tables = self
                .stack
                .iter()
                .filter_map(|layer| below(&layer.root, &steps[..i])?.as_table());
            known = tables.flat_map(|table| table.keys().cloned()).collect();
            let value = self.value(&steps[..i], None, None);
            let defaults = value.iter().filter_map(Value::as_object);
            known.extend(defaults.flat_map(|all| all.keys().cloned()));
            wrong = step.as_str();
            if !known.contains(step) {
                break;
            }
        }
        let known = known.iter().map(String::as_str);
        Box::new(
            Diagnostic::new(
                codes::SETTING,
                format!("the recipe has no key '{key}', and no default for it"),
            )
            .suggest(wrong, known),
        )
    }
}

/// The node at a path of keys.
fn below<'n>(root: &'n Node, steps: &[String]) -> Option<&'n Node> {
    steps.iter().try_fold(root, |node, step| node.get(step))
}

/// The steps of a key, and the cell it is about: `stage.sft[lr=0.001].with.lr` is looked up as `stage.sft.with.lr`.
fn steps(path: &str) -> (Vec<String>, Option<String>) {
    let split = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let cell = path.strip_prefix("stage.").and_then(|rest| {
        let (stage, inside) = rest.split_once('[')?;
        let (place, below) = inside.split_once(']')?;
        Some((
            stage,
            format!("{stage}[{place}]"),
            below.trim_start_matches('.'),
        ))
    });
    match cell {
        Some((stage, cell, below)) => {
            let mut steps = vec!["stage".to_owned(), stage.to_owned()];
            steps.extend(split(below).into_iter().filter(|s| !s.is_empty()));
            (steps, Some(cell))
        }
        None => (split(path), None),
    }
}
