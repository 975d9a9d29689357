//! `[stage.x.matrix]` and `[stage.x.replicas]`: the places of a stage's own axes.

use super::{MOST, Result, SEED, error};
use crate::cells::label;
use crate::diagnostic::suggestion;
use crate::tree::{At, Entry, Files, Node, Table, Value};
use crate::{codes, read};
use indexmap::IndexMap;

/// One place on a stage's own axes.
#[derive(Clone, Default)]
pub(super) struct Combination {
    /// By axis: the value, and its label.
    pub(super) place: IndexMap<String, (Value, String)>,
    /// What `include` adds to it.
    pub(super) extra: IndexMap<String, Value>,
    /// The seed, where it is one of `replicas`.
    pub(super) replica: Option<i64>,
}

/// The names that a matrix declares, each with its place in the file: axes, and what `include` adds.
pub(super) type Names = IndexMap<String, At>;

/// A stage's own combinations, in order, the last axis fastest; one without axes where it has neither matrix nor
/// replicas.
pub(super) fn read(
    files: &Files,
    owner: &str,
    matrix: Option<&Entry>,
    replicas: Option<&Entry>,
) -> Result<(Vec<Combination>, Names)> {
    let reader = Reader { files, owner };
    let (mut all, mut names) = match matrix {
        Some(entry) => reader.matrix(entry)?,
        None => (vec![Combination::default()], Names::new()),
    };
    if let Some(entry) = replicas {
        let seeds = reader.seeds(entry)?;
        if let Some(at) = names.get(SEED) {
            return Err(error(
                files,
                codes::CONFLICT,
                *at,
                format!("{owner} has both `replicas` and an axis '{SEED}'"),
                "keep one of them",
            ));
        }
        reader.count(all.len(), seeds.len(), entry.node.at)?;
        all = all
            .iter()
            .flat_map(|one| {
                seeds.iter().map(move |seed| {
                    let mut one = one.clone();
                    let value = (Value::Int(*seed), seed.to_string());
                    one.place.insert(SEED.to_owned(), value);
                    one.replica = Some(*seed);
                    one
                })
            })
            .collect();
        names.insert(SEED.to_owned(), entry.key_at);
    }
    Ok((all, names))
}

struct Reader<'a> {
    files: &'a Files,
    owner: &'a str,
}

impl Reader<'_> {
    fn error(
        &self,
        code: &'static str,
        at: At,
        message: String,
        help: &str,
    ) -> Box<crate::Diagnostic> {
        error(
            self.files,
            code,
            at,
            format!("{}: {message}", self.owner),
            help,
        )
    }

    fn matrix(&self, entry: &Entry) -> Result<(Vec<Combination>, Names)> {
        let owner = format!("{}: 'matrix'", self.owner);
        let table = read::table(self.files, &owner, &entry.node)?;
        let mut names = Names::new();
        let mut all = vec![Combination::default()];
        for (axis, entry) in table {
            if axis == "include" || axis == "exclude" {
                continue;
            }
            let values = self.axis(axis, entry)?;
            self.count(all.len(), values.len(), entry.node.at)?;
            all = all
                .iter()
                .flat_map(|one| {
                    values.iter().map(move |value| {
                        let mut one = one.clone();
                        one.place.insert(axis.clone(), value.clone());
                        one
                    })
                })
                .collect();
            names.insert(axis.clone(), entry.key_at);
        }
        if names.is_empty() {
            if !table.contains_key("include") {
                return Err(self.error(
                    codes::MATRIX,
                    entry.key_at,
                    "'matrix' has no axes".to_owned(),
                    "name at least one: `matrix.lr = [1e-3, 2e-3]`",
                ));
            }
            all.clear();
        }
        for item in self.tables(table, "exclude")? {
            self.exclude(item, &names, &mut all)?;
        }
        let axes: Vec<String> = names.keys().cloned().collect();
        for item in self.tables(table, "include")? {
            self.include(item, &axes, &mut names, &mut all)?;
        }
        if all.is_empty() {
            return Err(self.error(
                codes::MATRIX,
                entry.key_at,
                "no cell of the matrix is left".to_owned(),
                "let `exclude` name fewer",
            ));
        }
        Ok((all, names))
    }

    /// Values of an axis with their labels.
    fn axis(&self, axis: &str, entry: &Entry) -> Result<Vec<(Value, String)>> {
        self.name(axis, entry.key_at)?;
        let Value::List(items) = &entry.node.value else {
            let found = entry.node.value.show();
            return Err(self.error(
                codes::TYPE,
                entry.node.at,
                format!("axis '{axis}' is {found}"),
                &format!("write its values as a list: {axis} = [{found}, ..]"),
            ));
        };
        if items.is_empty() {
            return Err(self.error(
                codes::MATRIX,
                entry.node.at,
                format!("axis '{axis}' has no values"),
                "give it at least one, or remove it",
            ));
        }
        let mut values: Vec<(Value, String)> = Vec::with_capacity(items.len());
        for item in items {
            let label = self.label(axis, item)?;
            if values.iter().any(|(_, known)| *known == label) {
                return Err(self.error(
                    codes::DUPLICATE,
                    item.at,
                    format!(
                        "two values of axis '{axis}' are both called '{label}' in cells' names"
                    ),
                    "remove one, or let them differ in letters, digits, '.', '_', '+' or '-'",
                ));
            }
            values.push((item.value.clone(), label));
        }
        Ok(values)
    }

    fn name(&self, name: &str, at: At) -> Result<()> {
        if crate::recipe::is_name(name) {
            return Ok(());
        }
        Err(self.error(
            codes::NAME,
            at,
            format!("'{name}' is not a name"),
            "use letters, digits, '_' and '-'",
        ))
    }

    fn label(&self, axis: &str, node: &Node) -> Result<String> {
        label(&node.value).ok_or_else(|| {
            self.error(
                codes::TYPE,
                node.at,
                format!("a value of axis '{axis}' holds a table, which cells cannot be named by"),
                "use a name as the axis' value, and add the rest with `include`",
            )
        })
    }

    /// The tables of `include` or `exclude`.
    fn tables<'t>(&self, table: &'t Table, key: &str) -> Result<Vec<&'t Node>> {
        let Some(entry) = table.get(key) else {
            return Ok(Vec::new());
        };
        match &entry.node.value {
            Value::List(items)
                if !items.is_empty()
                    && items
                        .iter()
                        .all(|i| i.as_table().is_some_and(|t| !t.is_empty())) =>
            {
                Ok(items.iter().collect())
            }
            other => Err(self.error(
                codes::TYPE,
                entry.node.at,
                format!("'{key}' is {}", other.show()),
                &format!("it must be a list of tables: {key} = [{{ axis = value }}]"),
            )),
        }
    }

    fn exclude(&self, item: &Node, names: &Names, all: &mut Vec<Combination>) -> Result<()> {
        let table = read::table(self.files, self.owner, item)?;
        let mut place = Vec::new();
        for (axis, entry) in table {
            if !names.contains_key(axis) {
                return Err(self.error(
                    codes::UNKNOWN_NAME,
                    entry.key_at,
                    format!("'exclude' names axis '{axis}', which the matrix does not have"),
                    &suggestion(axis, names.keys().map(String::as_str)),
                ));
            }
            place.push((axis.as_str(), self.label(axis, &entry.node)?));
        }
        let before = all.len();
        all.retain(|one| !at(one, &place));
        if all.len() == before {
            return Err(self.nothing("exclude", item));
        }
        Ok(())
    }

    /// Values beside the axes for the cells that match, or one more cell.
    fn include(
        &self,
        item: &Node,
        axes: &[String],
        names: &mut Names,
        all: &mut Vec<Combination>,
    ) -> Result<()> {
        let table = read::table(self.files, self.owner, item)?;
        let (mut place, mut extra) = (IndexMap::new(), IndexMap::new());
        for (key, entry) in table {
            self.name(key, entry.key_at)?;
            if axes.is_empty() || axes.contains(key) {
                let label = self.label(key, &entry.node)?;
                place.insert(key.clone(), (entry.node.value.clone(), label));
            } else {
                extra.insert(key.clone(), entry.node.value.clone());
            }
            names.entry(key.clone()).or_insert(entry.key_at);
        }
        let wanted: Vec<(&str, String)> = place
            .iter()
            .map(|(k, (_, l))| (k.as_str(), l.clone()))
            .collect();
        let whole = axes.iter().all(|a| place.contains_key(a));
        let mut matched = false;
        for one in all.iter_mut().filter(|one| at(one, &wanted)) {
            matched = true;
            one.extra.extend(extra.clone());
        }
        match (matched, whole) {
            (true, _) if extra.is_empty() => Err(self.error(
                codes::DUPLICATE,
                item.at,
                format!(
                    "'include' adds a cell that is there already: {}",
                    shown(&wanted)
                ),
                "remove it, or add a value beside the axes to it",
            )),
            (true, _) => Ok(()),
            (false, true) => {
                if let Some(other) = all.first().filter(|o| {
                    o.place.len() != place.len() || !o.place.keys().all(|k| place.contains_key(k))
                }) {
                    let keys: Vec<&str> = other.place.keys().map(String::as_str).collect();
                    return Err(self.error(
                        codes::MATRIX,
                        item.at,
                        "without axes, each table of 'include' is a cell, and all must have the same keys".to_owned(),
                        &format!("give it exactly {}", keys.join(", ")),
                    ));
                }
                // in the axes' order, so that names have one form
                let order: Vec<String> = match all.first() {
                    Some(first) if axes.is_empty() => first.place.keys().cloned().collect(),
                    _ if axes.is_empty() => place.keys().cloned().collect(),
                    _ => axes.to_vec(),
                };
                place.sort_by_cached_key(|k, _| order.iter().position(|o| o == k));
                all.push(Combination {
                    place,
                    extra,
                    replica: None,
                });
                Ok(())
            }
            (false, false) if extra.is_empty() => {
                let missing: Vec<&str> = axes
                    .iter()
                    .filter(|a| !place.contains_key(*a))
                    .map(String::as_str)
                    .collect();
                Err(self.error(
                    codes::MATRIX,
                    item.at,
                    "this table of 'include' is neither a whole cell nor has it a value beside the axes".to_owned(),
                    &format!("a further cell needs {} too", missing.join(", ")),
                ))
            }
            (false, false) => Err(self.nothing("include", item)),
        }
    }

    fn nothing(&self, key: &str, item: &Node) -> Box<crate::Diagnostic> {
        self.error(
            codes::MATRIX,
            item.at,
            format!("no cell matches {} of '{key}'", item.value.show()),
            "write values as the axes have them, or remove it",
        )
    }

    /// The seeds of `replicas`.
    fn seeds(&self, entry: &Entry) -> Result<Vec<i64>> {
        let owner = format!("{}: 'replicas'", self.owner);
        let table = read::table(self.files, &owner, &entry.node)?;
        read::only(self.files, &owner, table, &["seeds"])?;
        let items = match table.get("seeds").map(|e| &e.node.value) {
            Some(Value::List(items)) if !items.is_empty() => items,
            other => {
                let found = other.map_or_else(|| "missing".to_owned(), Value::show);
                return Err(self.error(
                    codes::MATRIX,
                    table.get("seeds").map_or(entry.key_at, |e| e.node.at),
                    format!("'replicas.seeds' is {found}"),
                    "list at least one seed: replicas.seeds = [1, 2, 3]",
                ));
            }
        };
        let mut seeds = Vec::with_capacity(items.len());
        for item in items {
            match item.value {
                Value::Int(seed) if seed >= 0 && !seeds.contains(&seed) => seeds.push(seed),
                Value::Int(seed) if seed >= 0 => {
                    return Err(self.error(
                        codes::DUPLICATE,
                        item.at,
                        format!("seed {seed} is listed twice"),
                        "remove one",
                    ));
                }
                _ => {
                    return Err(self.error(
                        codes::TYPE,
                        item.at,
                        format!("a seed is {}", item.value.show()),
                        "it must be a whole number, 0 or more",
                    ));
                }
            }
        }
        Ok(seeds)
    }

    fn count(&self, so_far: usize, times: usize, at: At) -> Result<()> {
        let cells = so_far.saturating_mul(times);
        if cells <= MOST {
            return Ok(());
        }
        Err(self.error(
            codes::MATRIX,
            at,
            format!("the matrix has {cells} cells and more"),
            &format!("a stage has at most {MOST}"),
        ))
    }
}

/// Whether a combination is at these labels.
fn at(one: &Combination, place: &[(&str, String)]) -> bool {
    !one.place.is_empty()
        && place
            .iter()
            .all(|(axis, label)| one.place.get(*axis).is_some_and(|(_, l)| l == label))
}

fn shown(place: &[(&str, String)]) -> String {
    let parts: Vec<String> = place
        .iter()
        .map(|(axis, label)| format!("{axis}={label}"))
        .collect();
    parts.join(",")
}
