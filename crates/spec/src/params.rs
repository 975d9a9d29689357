//! `${params.x}`: the only interpolation. `$${` stands for `${`. A string that is one reference
//! and nothing else takes the parameter's type.

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::read;
use crate::tree::{At, Files, Node, Table, Value};
use indexmap::IndexMap;
use std::collections::BTreeSet;

/// A piece of a string.
enum Piece<'a> {
    Text(String),
    Param(&'a str),
}

/// Replaces every reference in `root`, if there are `any`, and removes `params`.
pub fn fill(files: &Files, root: &mut Node, any: bool) -> Result<(), Box<Diagnostic>> {
    let Value::Table(top) = &mut root.value else {
        return Ok(());
    };
    let declared = match top.shift_remove("params") {
        Some(entry) => read::table(files, "'params'", &entry.node)?.clone(),
        None => Table::new(),
    };
    let mut params = Params {
        files,
        declared: &declared,
        done: IndexMap::new(),
    };
    for (key, entry) in top.iter_mut() {
        if any && key != "recipe" {
            params.node(&mut entry.node, &mut Vec::new())?;
        }
    }
    Ok(())
}

/// Collects the names of the parameters that a tree mentions.
pub fn mentioned(node: &Node, names: &mut BTreeSet<String>) {
    match &node.value {
        Value::Str(text) => {
            // a malformed reference is reported when it is filled in
            for piece in split(text).unwrap_or_default() {
                if let Piece::Param(name) = piece {
                    names.insert(name.to_owned());
                }
            }
        }
        Value::List(items) => items.iter().for_each(|item| mentioned(item, names)),
        Value::Table(table) => table
            .values()
            .for_each(|entry| mentioned(&entry.node, names)),
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

struct Params<'a> {
    files: &'a Files,
    declared: &'a Table,
    /// Parameters whose own references are filled in.
    done: IndexMap<String, Node>,
}

impl Params<'_> {
    fn node(&mut self, node: &mut Node, chain: &mut Vec<String>) -> Result<(), Box<Diagnostic>> {
        match &mut node.value {
            Value::Str(text) if text.contains("${") => {
                node.value = self.string(text, node.at, chain)?
            }
            Value::List(items) => {
                for item in items {
                    self.node(item, chain)?;
                }
            }
            Value::Table(table) => {
                for entry in table.values_mut() {
                    self.node(&mut entry.node, chain)?;
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
        chain: &mut Vec<String>,
    ) -> Result<Value, Box<Diagnostic>> {
        let pieces = split(text).map_err(|(message, help)| {
            Box::new(
                Diagnostic::new(codes::INTERPOLATION, message)
                    .at(self.files, at)
                    .help(help),
            )
        })?;
        if let [Piece::Param(name)] = pieces[..] {
            return self.param(name, at, chain);
        }
        let mut out = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push_str(&text),
                Piece::Param(name) => {
                    match self.param(name, at, chain)? {
                        Value::Str(text) => out.push_str(&text),
                        value @ (Value::Int(_) | Value::Float(_) | Value::Bool(_)) => {
                            out.push_str(&value.show())
                        }
                        value => {
                            return Err(Box::new(
                            Diagnostic::new(
                                codes::INTERPOLATION,
                                format!("parameter '{name}' is {}, which has no place inside a string", value.type_name()),
                            )
                            .at(self.files, at)
                            .help(format!("use it alone: \"${{params.{name}}}\"")),
                        ));
                        }
                    }
                }
            }
        }
        Ok(Value::Str(out))
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
        self.node(&mut node, chain)?;
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
        match inside.strip_prefix("params.") {
            Some(name) if crate::recipe::is_name(name) => {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.push(Piece::Param(name));
            }
            _ => {
                return Err((
                    format!("'${{{inside}}}' is not a reference to a parameter"),
                    "only `${params.name}` is filled in; write `$${` for a plain `${`",
                ));
            }
        }
        rest = &rest[start + end + 1..];
    }
    plain.push_str(rest);
    if !plain.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}
