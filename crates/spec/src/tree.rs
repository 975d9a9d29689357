//! A recipe's values before they have types: each knows the file and bytes it was written at.

use indexmap::IndexMap;

/// Bytes `start..end` of file number `file` in [`Files`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    pub file: u32,
    pub start: u32,
    pub end: u32,
}

/// A value and its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: Value,
    pub at: At,
}

/// What TOML can say, less dates.
#[derive(Clone, Debug)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    List(Vec<Node>),
    Table(Table),
}

/// Keys in the order they were written.
pub type Table = IndexMap<String, Entry>;

/// A table's entry: the key's place, and the value.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key_at: At,
    pub node: Node,
}

impl Value {
    /// The word for this type in messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Str(_) => "a string",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    /// The value as it would be written, shortened for messages.
    pub fn show(&self) -> String {
        let text = match self {
            Self::Bool(b) => b.to_string(),
            Self::Int(i) => i.to_string(),
            Self::Float(f) => format!("{f:?}"),
            Self::Str(s) => format!("{s:?}"),
            Self::List(items) => {
                let items: Vec<_> = items.iter().map(|n| n.value.show()).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Table(table) => {
                let items: Vec<_> = table
                    .iter()
                    .map(|(k, e)| format!("{k} = {}", e.node.value.show()))
                    .collect();
                format!("{{ {} }}", items.join(", "))
            }
        };
        match text.char_indices().nth(60) {
            Some((cut, _)) => format!("{}..", &text[..cut]),
            None => text,
        }
    }
}

impl Node {
    pub fn as_table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_table()?.get(key).map(|entry| &entry.node)
    }

    /// The deepest node on a path such as `with.environment[1].weight` (or its parent, where the
    /// path goes on beyond what was written).
    pub fn nearest(&self, path: &str) -> &Node {
        let mut node = self;
        for step in path.split(['.', '[']).filter(|s| !s.is_empty()) {
            let next = match &node.value {
                Value::List(items) => step
                    .trim_end_matches(']')
                    .parse::<usize>()
                    .ok()
                    .and_then(|i| items.get(i)),
                // a lone value stands for a list of one
                _ if step.ends_with(']') => Some(node),
                Value::Table(table) => table.get(step).map(|entry| &entry.node),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return node,
            }
        }
        node
    }
}

/// The texts that places point into.
#[derive(Clone, Debug, Default)]
pub struct Files(Vec<(String, String)>);

/// What messages show as the file of a `-S` setting.
pub const COMMAND_LINE: &str = "command line";

impl Files {
    /// Adds a text under the name that messages show.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> u32 {
        self.0.push((name.into(), text.into()));
        u32::try_from(self.0.len() - 1).expect("fewer than 2^32 files")
    }

    pub fn name(&self, file: u32) -> &str {
        &self.0[file as usize].0
    }

    /// Whether a text of any file holds `part`.
    pub fn any_contains(&self, part: &str) -> bool {
        self.0.iter().any(|(_, text)| text.contains(part))
    }

    /// All files with their texts, in the order they were read; `-S` settings are files named
    /// [`COMMAND_LINE`].
    pub fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
    }

    pub fn text(&self, file: u32) -> &str {
        &self.0[file as usize].1
    }
}
