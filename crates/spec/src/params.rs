//! `${params.x}`, and in a stage with cells `${matrix.x}`: the only interpolation. `$${` stands for `${`. A string that
//! is one reference and nothing else takes the type of what it stands for.

use crate::codes;
use crate::diagnostic::Diagnostic;

use crate::tree::{At, Files, Node, Table, Value};
use indexmap::IndexMap;
use std::collections::BTreeSet;

/// A piece of a string.
enum Piece<'a> {
    Text(String),
    Name(Space, &'a str),
}

/// Where a name is looked up.
#[derive(Clone, Copy, PartialEq)]
enum Space {
    Params,
    Matrix,
}

impl Space {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Params => "params",
            Self::Matrix => "matrix",
        }
    }
}

/// What names stand for in a cell.
#[derive(Clone, Copy)]
pub struct CellValues<'a> {
    /// The cell's name, for messages.
    pub cell: &'a str,
    pub values: &'a IndexMap<String, Value>,
}

/// Collects the names of the parameters that a tree mentions.
pub fn mentioned(node: &Node, names: &mut BTreeSet<String>) {
    collect(node, Space::Params, names);
}

/// Collects the names of a matrix that a tree mentions.
pub fn mentioned_axes(node: &Node, names: &mut BTreeSet<String>) {
    collect(node, Space::Matrix, names);
}

fn collect(node: &Node, space: Space, names: &mut BTreeSet<String>) {
    match &node.value {
        Value::Str(text) => {
            // a malformed reference is reported when it is filled in
            for piece in split(text).unwrap_or_default() {
                if let Piece::Name(of, name) = piece
                    && of == space
                {
                    names.insert(name.to_owned());
                }
            }
        }
        Value::List(items) => items.iter().for_each(|item| collect(item, space, names)),
        Value::Table(table) => table
            .values()
            .for_each(|entry| collect(&entry.node, space, names)),
        _ => {}
    }
}

/// Refuses a declared parameter that no layer mentions.
pub fn check_used(
    files: &Files,
    root: &Node,
    used: &BTreeSet<String>,
) -> Result<(), Box<Diagnostic>> {
    let Some(declared) = root.get("params").and_then(Node::as_table) else {
        return Ok(());
    };
    if let Some((name, entry)) = declared.iter().find(|(name, _)| !used.contains(*name)) {
        return Err(Box::new(
            Diagnostic::new(
                codes::UNUSED_PARAM,
                format!("parameter '{name}' is never used"),
            )
            .at(files, entry.key_at)
            .help(format!("use it as \"${{params.{name}}}\", or remove it")),
        ));
    }
    Ok(())
}

/// Fills in names, with the parameters of one recipe.
pub struct Params<'a> {
    files: &'a Files,
    declared: &'a Table,
    /// Parameters whose own references are filled in.
    done: IndexMap<String, Node>,
}

impl<'a> Params<'a> {
    pub fn new(files: &'a Files, declared: &'a Table) -> Self {
        Self {
            files,
            declared,
            done: IndexMap::new(),
        }
    }

    /// Replaces every reference in a tree.
    pub fn fill(
        &mut self,
        node: &mut Node,
        cell: Option<CellValues<'_>>,
    ) -> Result<(), Box<Diagnostic>> {
        self.node(node, cell, &mut Vec::new())
    }

    fn node(
        &mut self,
        node: &mut Node,
        cell: Option<CellValues<'_>>,
        chain: &mut Vec<String>,
    ) -> Result<(), Box<Diagnostic>> {
        match &mut node.value {
            Value::Str(text) if text.contains("${") => {
                node.value = self.string(text, node.at, cell, chain)?
            }
            Value::List(items) => {
                for item in items {
                    self.node(item, cell, chain)?;
                }
            }
            Value::Table(table) => {
                for entry in table.values_mut() {
                    self.node(&mut entry.node, cell, chain)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn string(
        &mut self,
        text: &str,
        at: At,
        cell: Option<CellValues<'_>>,
        chain: &mut Vec<String>,
    ) -> Result<Value, Box<Diagnostic>> {
        let pieces = split(text).map_err(|(message, help)| {
            Box::new(
                Diagnostic::new(codes::INTERPOLATION, message)
                    .at(self.files, at)
                    .help(help),
            )
        })?;
        let mut value = |space, name: &str| match space {
            Space::Params => self.param(name, at, chain),
            Space::Matrix => self.place(name, at, cell, chain.as_slice()),
        };
        if let [Piece::Name(space, name)] = pieces[..] {
            return value(space, name);
        }
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(&text),
                Piece::Name(space, name) => match value(space, name)? {
                    Value::Str(text) => out.push_str(&text),
                    value @ (Value::Int(_) | Value::Float(_) | Value::Bool(_)) => {
                        out.push_str(&value.show())
                    }
                    value => {
                        let what = match space {
                            Space::Params => "parameter",
                            Space::Matrix => "axis",
                        };
                        let (kind, prefix) = (value.type_name(), space.prefix());
                        return Err(Box::new(
                            Diagnostic::new(
                                codes::INTERPOLATION,
                                format!(
                                    "{what} '{name}' is {kind}, which has no place inside a string"
                                ),
                            )
                            .at(self.files, at)
                            .help(format!("use it alone: \"${{{prefix}.{name}}}\"")),
                        ));
                    }
                },
            }
        }
        Ok(Value::Str(out))
    }

    /// What `${matrix.name}` stands for.
    fn place(
        &self,
        name: &str,
        at: At,
        cell: Option<CellValues<'_>>,
        chain: &[String],
    ) -> Result<Value, Box<Diagnostic>> {
        let error =
            |message: String| Diagnostic::new(codes::INTERPOLATION, message).at(self.files, at);
        if let Some(param) = chain.last() {
            let message =
                format!("parameter '{param}' is one value for all cells, and uses 'matrix.{name}'");
            let help = "use the axis in the stage itself";
            return Err(Box::new(error(message).help(help)));
        }
        let Some(CellValues { cell, values }) = cell else {
            let message = format!("'${{matrix.{name}}}' stands where there are no cells");
            let help = "it is filled in for stages that have `matrix`, `replicas` or `foreach`";
            return Err(Box::new(error(message).help(help)));
        };
        values.get(name).cloned().ok_or_else(|| {
            let message = format!("cell '{cell}' has no value for '{name}'");
            Box::new(error(message).suggest(name, values.keys().map(String::as_str)))
        })
    }

    fn param(
        &mut self,
        name: &str,
        at: At,
        chain: &mut Vec<String>,
    ) -> Result<Value, Box<Diagnostic>> {
        if let Some(node) = self.done.get(name) {
            return Ok(node.value.clone());
        }
        if chain.iter().any(|n| n == name) {
            chain.push(name.to_owned());
            return Err(Box::new(
                Diagnostic::new(
                    codes::PARAM_CYCLE,
                    format!(
                        "parameter '{name}' depends on itself: {}",
                        chain.join(" -> ")
                    ),
                )
                .at(self.files, at)
                .help("give one of them a value"),
            ));
        }
        let Some(entry) = self.declared.get(name) else {
            return Err(Box::new(
                Diagnostic::new(
                    codes::UNKNOWN_PARAM,
                    format!("there is no parameter '{name}'"),
                )
                .at(self.files, at)
                .suggest(name, self.declared.keys().map(String::as_str)),
            ));
        };
        let mut node = entry.node.clone();
        chain.push(name.to_owned());
        self.node(&mut node, None, chain)?;
        chain.pop();
        self.done.insert(name.to_owned(), node.clone());
        Ok(node.value)
    }
}

fn split(text: &str) -> Result<Vec<Piece<'_>>, (String, &'static str)> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            plain.push_str(&rest[..start - 1]);
            plain.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        plain.push_str(&rest[..start]);
        let Some(end) = rest[start..].find('}') else {
            return Err((
                format!("'{}' has no closing '}}'", &rest[start..]),
                "close it, or write `$${` for a plain `${`",
            ));
        };
        let inside = rest[start + 2..start + end].trim();
        let spaces = [Space::Params, Space::Matrix].into_iter();
        let name = spaces.filter_map(|space| {
            let name = inside.strip_prefix(space.prefix())?.strip_prefix('.')?;
            crate::recipe::is_name(name).then_some((space, name))
        });
        let Some((space, name)) = { name }.next() else {
            return Err((
                format!("'${{{inside}}}' is not a reference to a parameter"),
                "only `${params.name}`, and `${matrix.axis}` in cells, are filled in; write `$${` for a plain `${`",
            ));
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Name(space, name));
        rest = &rest[start + end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}
