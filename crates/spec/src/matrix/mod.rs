//! From stages with `matrix`, `replicas` or `foreach` to one stage for each cell, before anything else looks at them.
//!
//! ```toml
//! [stage.sft.matrix]
//! lr = [1e-3, 2e-3]                        # axes; `${matrix.lr}` in the stage's tables
//! exclude = [{ lr = 2e-3, wd = 0.1 }]      # cells to leave out
//! include = [{ lr = 5e-3, wd = 0.0 }]      # further cells, or values beside the axes for the cells that match
//! [stage.sft.replicas]
//! seeds = [1, 2, 3]                        # the axis `seed`, which sets `with.seed`
//! [stage.eval]
//! foreach = "sft"                          # a cell for each of sft's; "sft.model" is that of the same cell
//! ```

mod axes;
mod follow;

use crate::cells::{self, Cell, Cells, Coordinate, SEED};
use crate::diagnostic::Diagnostic;
use crate::params::{self, CellValues, Params};
use crate::tree::{Entry, Files, Node, Table, Value};
use crate::{codes, read};
use indexmap::IndexMap;
use std::collections::BTreeSet;

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// Longest name of a cell: names of logs are made of it.
const LONGEST: usize = 180;
/// Most cells of a stage: more are a mistake in the axes.
const MOST: usize = 10_000;

/// What makes a stage one of cells.
const MAKES_CELLS: [&str; 3] = ["matrix", "replicas", "foreach"];

/// Fills in parameters and puts cells in the place of stages that have them; `params` is used up. `any` says whether
/// anything is to be filled in.
pub fn fill(files: &Files, root: &mut Node, any: bool) -> Result<Cells> {
    let Value::Table(top) = &mut root.value else {
        return Ok(Cells::default());
    };
    let declared = match top.shift_remove("params") {
        Some(entry) => read::table(files, "'params'", &entry.node)?.clone(),
        None => Table::new(),
    };
    let mut params = Params::new(files, &declared);
    let has_cells = |stage: &Entry| MAKES_CELLS.iter().any(|key| stage.node.get(key).is_some());
    let expand = top
        .get("stage")
        .and_then(|s| s.node.as_table())
        .is_some_and(|stages| stages.values().any(has_cells));
    for (key, entry) in top.iter_mut() {
        if any && key != "recipe" && !(expand && key == "stage") {
            params.fill(&mut entry.node, None)?;
        }
    }
    match top.get_mut("stage") {
        Some(Entry {
            node:
                Node {
                    value: Value::Table(stages),
                    ..
                },
            ..
        }) if expand => {
            let (table, cells) = follow::expand(files, stages, &mut params)?;
            *stages = table;
            Ok(cells)
        }
        _ => Ok(Cells::default()),
    }
}

/// A cell before its stage is made.
#[derive(Clone)]
struct Draft {
    cell: Cell,
    values: IndexMap<String, Value>,
}

impl Draft {
    fn new(stage: &str, place: Vec<Coordinate>, values: IndexMap<String, Value>) -> Self {
        let json = |(k, v): (&String, &Value)| (k.clone(), cells::json(v));
        let replica = None;
        let cell = Cell {
            name: cells::name(stage, place.iter()),
            of: stage.to_owned(),
            place,
            values: values.iter().map(json).collect(),
            replica,
        };
        Self { cell, values }
    }
}

/// What says that `${matrix.x}` is used: the stage itself or one that follows it.
fn used(stages: &Table, stage: &str, followers: &[&str]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for name in followers.iter().chain([&stage]) {
        if let Some(entry) = stages.get(*name) {
            params::mentioned_axes(&entry.node, &mut names);
        }
    }
    names
}

fn error(
    files: &Files,
    code: &'static str,
    at: crate::tree::At,
    message: String,
    help: impl Into<String>,
) -> Box<Diagnostic> {
    Box::new(Diagnostic::new(code, message).at(files, at).help(help))
}
