//! The cells of every stage, also of those that follow others, and the stages that they become.

use super::axes::{self, Combination};
use super::*;
use crate::diagnostic::nearest;
use crate::tree::At;

/// The stages, with cells in the place of those that have them.
pub(super) fn expand<'f>(
    files: &'f Files,
    stages: &Table,
    params: &mut Params<'f>,
) -> Result<(Table, Cells)> {
    let mut grids = Grids {
        files,
        stages,
        params,
        done: IndexMap::new(),
    };
    for (name, entry) in stages {
        // cells' names are made, never written
        if !crate::recipe::is_name(name) {
            return Err(error(
                files,
                codes::NAME,
                entry.key_at,
                format!("'{name}' is not a name"),
                "use letters, digits, '_' and '-'",
            ));
        }
        grids.of(name, None, &mut Vec::new())?;
    }
    let Grids { params, done, .. } = grids;
    let mut table = Table::new();
    for (name, entry) in stages {
        let drafts = &done[name.as_str()];
        if drafts.is_empty() {
            let mut entry = entry.clone();
            params.fill(&mut entry.node, None)?;
            table.insert(name.clone(), entry);
        }
        for draft in drafts {
            let mut entry = entry.clone();
            if let Value::Table(stage) = &mut entry.node.value {
                let replicas = stage.get("replicas").map(|e| e.key_at);
                MAKES_CELLS
                    .iter()
                    .for_each(|key| drop(stage.shift_remove(*key)));
                if let (Some(at), Some(seed)) = (replicas, draft.cell.replica) {
                    set_seed(files, name, stage, seed, at)?;
                }
            }
            let values = CellValues {
                cell: &draft.cell.name,
                values: &draft.values,
            };
            params.fill(&mut entry.node, Some(values))?;
            if let Value::Table(stage) = &mut entry.node.value
                && let Some(inputs) = stage.get_mut("in")
            {
                take_own_cells(&mut inputs.node, &draft.cell, &done);
            }
            table.insert(draft.cell.name.clone(), entry);
        }
    }
    let cells = done
        .into_iter()
        .filter(|(_, drafts)| !drafts.is_empty())
        .map(|(name, drafts)| {
            let cells = drafts.into_iter().map(|d| d.cell);
            (name.to_owned(), cells.collect())
        });
    Ok((table, cells.collect()))
}

/// The cells of stages, as far as they are known. A stage by itself has none.
struct Grids<'a, 'p, 'f> {
    files: &'f Files,
    stages: &'a Table,
    params: &'p mut Params<'f>,
    done: IndexMap<&'a str, Vec<Draft>>,
}

impl<'a> Grids<'a, '_, '_> {
    /// Finds the cells of a stage and of those it follows. `chain` holds the stages whose cells are being found.
    fn of(&mut self, name: &'a str, asked: Option<At>, chain: &mut Vec<&'a str>) -> Result<()> {
        if self.done.contains_key(name) {
            return Ok(());
        }
        let owner = format!("stage '{name}'");
        let entry = &self.stages[name];
        if chain.contains(&name) {
            return Err(error(
                self.files,
                codes::CYCLE,
                asked.unwrap_or(entry.key_at),
                format!("stages follow each other: {} <- {name}", chain.join(" <- ")),
                "give one of them a matrix of its own",
            ));
        }
        let Some(table) = entry.node.as_table() else {
            // reported where stages are read
            self.done.insert(name, Vec::new());
            return Ok(());
        };
        let parents = match table.get("foreach") {
            Some(foreach) => {
                let leader = self.leader(&owner, foreach)?;
                chain.push(name);
                self.of(leader, Some(foreach.node.at), chain)?;
                chain.pop();
                let parents = self.done[leader].clone();
                if parents.is_empty() {
                    return Err(error(
                        self.files,
                        codes::MATRIX,
                        foreach.node.at,
                        format!("{owner} follows '{leader}', which has no cells"),
                        format!("give '{leader}' a `matrix` or `replicas`, or remove `foreach`"),
                    ));
                }
                parents
            }
            None if MAKES_CELLS.iter().any(|key| table.contains_key(*key)) => Vec::new(),
            None => {
                self.done.insert(name, Vec::new());
                return Ok(());
            }
        };
        let filled = |params: &mut Params<'_>, key: &str| -> Result<Option<Entry>> {
            let Some(mut entry) = table.get(key).cloned() else {
                return Ok(None);
            };
            params.fill(&mut entry.node, None)?;
            Ok(Some(entry))
        };
        let matrix = filled(self.params, "matrix")?;
        let replicas = filled(self.params, "replicas")?;
        let (own, names) = axes::read(self.files, &owner, matrix.as_ref(), replicas.as_ref())?;
        if let Some((axis, at)) = names
            .iter()
            .find(|(n, _)| parents.iter().any(|p| p.values.contains_key(*n)))
        {
            return Err(error(
                self.files,
                codes::DUPLICATE,
                *at,
                format!("{owner} has an axis '{axis}' of its own and one of the stage it follows"),
                "rename it",
            ));
        }
        self.all_used(name, &owner, table, &names)?;
        let alone = || Draft::new(name, Vec::new(), IndexMap::new());
        let parents = if parents.is_empty() {
            vec![alone()]
        } else {
            parents
        };
        let drafts: Vec<Draft> = parents
            .iter()
            .flat_map(|parent| own.iter().map(|one| join(name, parent, one)))
            .collect();
        if let Some(long) = drafts.iter().find(|d| d.cell.name.len() > LONGEST) {
            return Err(error(
                self.files,
                codes::NAME,
                entry.key_at,
                format!(
                    "the cell's name '{}' has more than {LONGEST} characters",
                    long.cell.name
                ),
                "shorten the names of axes and their values",
            ));
        }
        self.done.insert(name, drafts);
        Ok(())
    }

    /// The stage that `foreach` names.
    fn leader(&self, owner: &str, foreach: &Entry) -> Result<&'a str> {
        let node = &foreach.node;
        let Some(text) = node.as_str() else {
            return Err(error(
                self.files,
                codes::TYPE,
                node.at,
                format!("{owner}: 'foreach' is {}", node.value.show()),
                "name a stage that has cells: foreach = \"sft\"",
            ));
        };
        match self.stages.get_key_value(text) {
            Some((name, _)) => Ok(name),
            None => Err(Box::new(
                Diagnostic::new(
                    codes::NO_SUCH,
                    format!("{owner} follows '{text}', but there is no such stage"),
                )
                .at(self.files, node.at)
                .suggest(text, self.stages.keys().map(String::as_str)),
            )),
        }
    }

    /// Refuses what a matrix declares and neither the stage nor one that follows it uses: cells would be the same.
    fn all_used(&self, name: &str, owner: &str, table: &Table, names: &axes::Names) -> Result<()> {
        let mut followers = Vec::new();
        let mut leaders = vec![name];
        while let Some(leader) = leaders.pop() {
            for (follower, entry) in self.stages {
                let follows = entry.node.get("foreach").and_then(Node::as_str) == Some(leader);
                if follows && follower != name && !followers.contains(&follower.as_str()) {
                    followers.push(follower.as_str());
                    leaders.push(follower);
                }
            }
        }
        let used = used(self.stages, name, &followers);
        let replicas = |n: &str| n == SEED && table.contains_key("replicas");
        let help = |axis: &str| {
            let others = used.iter().filter(|u| !names.iter().any(|(n, _)| n == *u));
            match nearest(axis, others.map(String::as_str)) {
                Some(wrong) => {
                    format!("\"${{matrix.{wrong}}}\" is used: did you mean \"${{matrix.{axis}}}\"?")
                }
                None => format!("use it as \"${{matrix.{axis}}}\", or remove it"),
            }
        };
        match names
            .iter()
            .find(|(n, _)| !used.contains(*n) && !replicas(n))
        {
            None => Ok(()),
            Some((axis, at)) => Err(error(
                self.files,
                codes::MATRIX,
                *at,
                format!("{owner} does not use '{axis}' of its matrix"),
                help(axis),
            )),
        }
    }
}

/// The cell at `parent`'s place and one of the stage's own.
fn join(stage: &str, parent: &Draft, own: &Combination) -> Draft {
    let mut place = parent.cell.place.clone();
    place.extend(own.place.iter().map(|(axis, (_, label))| Coordinate {
        axis: axis.clone(),
        label: label.clone(),
        declared_by: stage.to_owned(),
    }));
    let mut values = parent.values.clone();
    values.extend(
        own.place
            .iter()
            .map(|(axis, (value, _))| (axis.clone(), value.clone())),
    );
    values.extend(own.extra.clone());
    let mut draft = Draft::new(stage, place, values);
    draft.cell.replica = own.replica.or(parent.cell.replica);
    draft
}

/// A replica's seed becomes `with.seed`, unless the stage says where else it goes.
fn set_seed(files: &Files, name: &str, stage: &mut Table, seed: i64, at: At) -> Result<()> {
    let mut mentioned = BTreeSet::new();
    stage
        .values()
        .for_each(|e| params::mentioned_axes(&e.node, &mut mentioned));
    if mentioned.contains(SEED) {
        return Ok(());
    }
    let with = stage.entry("with".to_owned()).or_insert_with(|| Entry {
        key_at: at,
        node: Node {
            value: Value::Table(Table::new()),
            at,
        },
    });
    let Value::Table(with) = &mut with.node.value else {
        return Ok(());
    };
    if let Some(given) = with.get(SEED) {
        return Err(error(
            files,
            codes::CONFLICT,
            given.key_at,
            format!("stage '{name}' has both `with.seed` and `replicas`"),
            "remove `with.seed`: each replica has its own",
        ));
    }
    let node = Node {
        value: Value::Int(seed),
        at,
    };
    with.insert(SEED.to_owned(), Entry { key_at: at, node });
    Ok(())
}

/// `sft.model` in a cell that shares all axes of `sft` is that of sft's cell at the same place.
fn take_own_cells(inputs: &mut Node, cell: &Cell, grids: &IndexMap<&str, Vec<Draft>>) {
    match &mut inputs.value {
        Value::Str(text) => {
            let Some((stage, output)) = text.split_once('.') else {
                return;
            };
            let drafts = grids.get(stage).map_or(&[][..], Vec::as_slice);
            let own = drafts
                .iter()
                .find(|d| d.cell.is_within(cell) && d.cell.agrees(cell));
            if let Some(own) = own {
                *text = format!("{}.{output}", own.cell.name);
            }
        }
        Value::List(items) => items
            .iter_mut()
            .for_each(|item| take_own_cells(item, cell, grids)),
        Value::Table(table) if table.contains_key("of") => {}
        Value::Table(table) => table
            .values_mut()
            .for_each(|entry| take_own_cells(&mut entry.node, cell, grids)),
        _ => {}
    }
}
