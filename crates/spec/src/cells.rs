//! Cells: the stages that a matrix makes of one, and how they are named.
//!
//! A cell's name is the stage's name and its place on every axis, `sft[lr=0.001,seed=2]`: the axes in the order they are
//! declared, those of a stage it follows first. A value is written one way however the recipe writes it (`1e-3` is
//! `0.001`), with characters that shells and file systems take as they are (zsh wants the brackets quoted).

use crate::diagnostic::suggestion;
use crate::tree::Value;
use indexmap::IndexMap;
use serde::Serialize;
use std::collections::HashMap;

/// A stage that a matrix, `foreach` or `replicas` made.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// The stage's name, `sft[lr=0.001,seed=2]`.
    pub name: String,
    /// The stage of the recipe that it is a cell of, `sft`.
    pub of: String,
    /// Its place on every axis.
    pub place: Vec<Coordinate>,
    /// What `${matrix.x}` stands for in it: its place, and what `include` adds.
    pub values: IndexMap<String, serde_json::Value>,
    /// The seed, where it is one of `replicas`.
    pub replica: Option<i64>,
}

/// Where a cell is on one axis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Coordinate {
    pub axis: String,
    /// The value as cells' names have it.
    pub label: String,
    /// The stage that declares the axis: a stage that follows another shares its axes.
    #[serde(skip)]
    pub declared_by: String,
}

/// The axis that `replicas` make.
pub const SEED: &str = "seed";

impl Cell {
    /// The name of what it is one replica of: the cell's without its seed; its own where it is no replica.
    pub fn group(&self) -> String {
        match self.replica {
            None => self.name.clone(),
            Some(_) => name(&self.of, self.place.iter().filter(|c| c.axis != SEED)),
        }
    }

    /// Whether this cell and `other` stand at the same place on the axes that both have.
    pub(crate) fn agrees(&self, other: &Cell) -> bool {
        self.place.iter().all(|mine| {
            let same = |c: &&Coordinate| c.axis == mine.axis && c.declared_by == mine.declared_by;
            other
                .place
                .iter()
                .find(same)
                .is_none_or(|c| c.label == mine.label)
        })
    }

    /// Whether `other` has all axes of this cell.
    pub(crate) fn is_within(&self, other: &Cell) -> bool {
        self.place.iter().all(|mine| {
            let same = |c: &Coordinate| c.axis == mine.axis && c.declared_by == mine.declared_by;
            other.place.iter().any(same)
        })
    }
}

/// `sft[lr=0.001,seed=2]`; the stage's name where there is no axis.
pub(crate) fn name<'a>(stage: &str, place: impl Iterator<Item = &'a Coordinate>) -> String {
    let place: Vec<String> = place.map(|c| format!("{}={}", c.axis, c.label)).collect();
    match place.is_empty() {
        true => stage.to_owned(),
        false => format!("{stage}[{}]", place.join(",")),
    }
}

/// Longest label of a string; a longer one ends in a digest of the whole.
const LABEL: usize = 40;

/// How a value is written in cells' names; none for a table, which has no short form.
pub(crate) fn label(value: &Value) -> Option<String> {
    Some(match value {
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Float(f) => format!("{f:?}"),
        Value::Str(text) => plain(text),
        Value::List(items) => {
            let items: Option<Vec<String>> = items.iter().map(|i| label(&i.value)).collect();
            items?.join("+")
        }
        Value::Table(_) => return None,
    })
}

/// A text as names have it.
pub(crate) fn plain(text: &str) -> String {
    let kept = |c: char| match c {
        c if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+') => c,
        _ => '-',
    };
    let label: String = text.chars().map(kept).collect();
    match label.len() {
        0 => "empty".to_owned(),
        n if n > LABEL => {
            let digest = blake3::hash(text.as_bytes()).to_hex();
            format!("{}~{}", &label[..LABEL - 9], &digest[..8])
        }
        _ => label,
    }
}

/// A value as JSON.
pub(crate) fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(b) => (*b).into(),
        Value::Int(i) => (*i).into(),
        Value::Float(f) => (*f).into(),
        Value::Str(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(|i| json(&i.value)).collect(),
        Value::Table(table) => table
            .iter()
            .map(|(k, e)| (k.clone(), json(&e.node.value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// All cells of a recipe, by the stage they are cells of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cells {
    of: IndexMap<String, Vec<Cell>>,
    /// Stage and position of a cell.
    by_name: HashMap<String, (usize, usize)>,
}

/// Why a name does not find cells: what is wrong, and the fix.
#[derive(Clone, Debug, PartialEq)]
pub struct NoCell {
    pub message: String,
    pub help: String,
}

impl FromIterator<(String, Vec<Cell>)> for Cells {
    fn from_iter<I: IntoIterator<Item = (String, Vec<Cell>)>>(stages: I) -> Self {
        let of: IndexMap<String, Vec<Cell>> = stages.into_iter().collect();
        let positions = of.values().enumerate().flat_map(|(stage, cells)| {
            let names = cells.iter().map(|c| c.name.clone()).enumerate();
            names.map(move |(at, name)| (name, (stage, at)))
        });
        let by_name = positions.collect();
        Self { of, by_name }
    }
}

impl Cells {
    /// The cells of a stage, in their order; none where it is a stage by itself.
    pub fn of(&self, stage: &str) -> &[Cell] {
        self.of.get(stage).map_or(&[], Vec::as_slice)
    }

    /// The cell of this name.
    pub fn get(&self, name: &str) -> Option<&Cell> {
        let (stage, at) = self.by_name.get(name)?;
        self.of.get_index(*stage)?.1.get(*at)
    }

    /// Adds a cell to those of what it is a cell of.
    pub(crate) fn add(&mut self, cell: Cell) {
        let entry = self.of.entry(cell.of.clone());
        let stage = entry.index();
        let cells = entry.or_default();
        self.by_name.insert(cell.name.clone(), (stage, cells.len()));
        cells.push(cell);
    }

    /// Stages that have cells.
    pub fn stages(&self) -> impl Iterator<Item = &str> {
        self.of.keys().map(String::as_str)
    }

    /// The cells that `sft[lr=0.001]` names: those at this place on these axes, in their order; `sft[*]` names all.
    pub fn matching(&self, stage: &str, place: &str) -> Result<Vec<&Cell>, NoCell> {
        let cells = self.of(stage);
        let Some(first) = cells.first() else {
            return Err(NoCell {
                message: format!("stage '{stage}' has no cells"),
                help: format!("write '{stage}'; cells come from `matrix`, `foreach` or `replicas`"),
            });
        };
        let mut found: Vec<&Cell> = cells.iter().collect();
        if place.trim() == "*" {
            return Ok(found);
        }
        for part in place.split(',') {
            let axes = || first.place.iter().map(|c| c.axis.as_str());
            let Some((axis, value)) = part.split_once('=') else {
                return Err(NoCell {
                    message: format!(
                        "'{}' in '{stage}[{place}]' is no place on an axis",
                        part.trim()
                    ),
                    help: format!(
                        "write it like '{}', or '{stage}[*]' for all cells",
                        first.name
                    ),
                });
            };
            let (axis, value) = (axis.trim(), value.trim());
            if !axes().any(|a| a == axis) {
                return Err(NoCell {
                    message: format!("stage '{stage}' has no axis '{axis}'"),
                    help: suggestion(axis, axes()),
                });
            }
            let wanted = written(value);
            let at = |c: &Cell| {
                let label = c
                    .place
                    .iter()
                    .find(|c| c.axis == axis)
                    .map(|c| c.label.clone());
                label.unwrap_or_default()
            };
            if !cells.iter().any(|c| at(c) == wanted) {
                let mut labels: Vec<String> = cells.iter().map(at).collect();
                let mut seen = std::collections::HashSet::new();
                labels.retain(|l| seen.insert(l.clone()));
                return Err(NoCell {
                    message: format!("no cell of '{stage}' has {axis} = {value}"),
                    help: suggestion(value, labels.iter().map(String::as_str)),
                });
            }
            found.retain(|c| at(c) == wanted);
        }
        if found.is_empty() {
            return Err(NoCell {
                message: format!("no cell of '{stage}' is at '{place}'"),
                help: suggestion(
                    &format!("{stage}[{place}]"),
                    cells.iter().map(|c| c.name.as_str()),
                ),
            });
        }
        Ok(found)
    }
}

/// The label that a value typed by a person has: `1e-3` is `0.001`.
fn written(value: &str) -> String {
    let mut files = crate::tree::Files::default();
    let file = files.add("", format!("v = {value}"));
    let parsed = crate::parse::parse(&files, file).ok();
    let label = parsed.and_then(|node| label(&node.get("v")?.value));
    label.unwrap_or_else(|| plain(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_one_for_a_value_and_safe_everywhere() {
        for (value, wanted) in [
            (Value::Float(1e-3), "0.001"),
            (Value::Float(1e-5), "1e-5"),
            (Value::Float(2.0), "2.0"),
            (Value::Int(2), "2"),
            (Value::Bool(true), "true"),
            (Value::Str("Qwen/Qwen3 0.6B".into()), "Qwen-Qwen3-0.6B"),
            (Value::Str(String::new()), "empty"),
        ] {
            assert_eq!(label(&value).as_deref(), Some(wanted));
        }
        for text in ["1e-3", "0.001", "0.0010"] {
            assert_eq!(written(text), "0.001");
        }
        assert_eq!(written("Qwen/Qwen3"), "Qwen-Qwen3");
        let long = plain(&"ä".repeat(200));
        assert_eq!(long.len(), LABEL);
        assert_ne!(long, plain(&"ä".repeat(201)));
    }
}
