//! A recipe's layers: included files, the file itself, the profile, and `-S`, in this order; later
//! layers win, tables merge, lists replace. Then parameters are filled in, and stages with a matrix become their cells.

use crate::diagnostic::Diagnostic;
use crate::tree::{Files, Node, Table, Value};
use crate::{Cells, codes, matrix, params, parse, read};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What the command line adds to a recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers {
    pub profile: Option<String>,
    /// `-S`, in order.
    pub settings: Vec<Setting>,
}

/// One `-S path=value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting(pub String);

/// A recipe with its layers merged and its parameters filled in.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    pub path: PathBuf,
    pub files: Files,
    /// Has `recipe`, `source` and `stage`, with a stage for each cell; `params` and `profile` are used up.
    pub root: Node,
    /// Names of all profiles.
    pub profiles: Vec<String>,
    pub cells: Cells,
}

const TOP: [&str; 6] = ["recipe", "params", "source", "stage", "track", "profile"];
const LAYERED: [&str; 4] = ["params", "source", "stage", "track"];

/// One layer as it was written.
pub(crate) struct Layer {
    /// The profile it is, if it is one.
    pub(crate) profile: Option<String>,
    pub(crate) root: Node,
}

/// Reads a recipe file and applies the layers.
pub fn read(path: &Path, layers: &Layers) -> Result<RecipeFile, Box<Diagnostic>> {
    stacked(path, layers, None)
}

/// The same; `stack` collects every layer, the lowest first.
pub(crate) fn stacked(
    path: &Path,
    layers: &Layers,
    mut stack: Option<&mut Vec<Layer>>,
) -> Result<RecipeFile, Box<Diagnostic>> {
    let mut files = Files::default();
    let mut used = BTreeSet::new();
    let mut root = file(
        &mut files,
        path,
        &mut Vec::new(),
        &mut used,
        codes::FILE,
        None,
        stack.as_deref_mut(),
    )?;
    // before anything is overridden: a parameter whose use a profile or `-S` replaces is not unused
    params::check_used(&files, &root, &used)?;
    check_profiles(&files, &root)?;
    let profiles = root.get("profile").and_then(Node::as_table);
    let profiles = profiles.into_iter().flatten();
    let profiles = profiles.map(|(name, _)| name.clone()).collect();
    let profile = apply_profile(&files, &mut root, layers.profile.as_deref())?;
    if let (Some(stack), Some(root)) = (&mut stack, profile) {
        let profile = layers.profile.clone();
        stack.push(Layer { profile, root });
    }
    for setting in &layers.settings {
        let root = apply_setting(&mut files, &mut root, setting)?;
        if let Some(stack) = &mut stack {
            stack.push(Layer {
                profile: None,
                root,
            });
        }
    }
    let cells = matrix::fill(&files, &mut root, files.any_contains("${"))?;
    Ok(RecipeFile {
        path: path.to_owned(),
        files,
        root,
        profiles,
        cells,
    })
}

/// A file with what it includes below it. `chain` holds the files being read; `used` collects the
/// parameters that any of them mentions.
fn file(
    files: &mut Files,
    path: &Path,
    chain: &mut Vec<PathBuf>,
    used: &mut BTreeSet<String>,
    code: &'static str,
    from: Option<crate::tree::At>,
    mut stack: Option<&mut Vec<Layer>>,
) -> Result<Node, Box<Diagnostic>> {
    let place = |d: Diagnostic, files: &Files| {
        Box::new(match from {
            Some(at) => d.at(files, at),
            None => d,
        })
    };
    let text = std::fs::read_to_string(path).map_err(|e| {
        let what = if code == codes::FILE {
            "the recipe"
        } else {
            "the included file"
        };
        let cause = match e.kind() {
            std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
            std::io::ErrorKind::InvalidData => "it is not UTF-8 text".to_owned(),
            std::io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
            _ => e.to_string(),
        };
        let help = match (e.kind(), from.is_some()) {
            (std::io::ErrorKind::IsADirectory, _) => "name the recipe file in it",
            (_, true) => "paths in `include` are relative to the file that names them",
            _ => "name a recipe file, such as recipes/sft-then-grpo.toml",
        };
        place(
            Diagnostic::new(
                code,
                format!("{what} '{}' cannot be read: {cause}", path.display()),
            )
            .help(help),
            files,
        )
    })?;
    let identity = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if chain.contains(&identity) {
        let d = Diagnostic::new(
            codes::INCLUDE_CYCLE,
            format!("'{}' includes itself", path.display()),
        );
        return Err(place(d.help("remove one of the includes"), files));
    }
    let number = files.add(path.display().to_string(), text);
    let node = parse::parse(files, number)?;
    // a recipe of thousands of stages is not walked for what its text does not hold
    if files.text(number).contains("${") {
        params::mentioned(&node, used);
    }
    let top = read::table(files, "the recipe", &node)?;
    read::only(files, "the recipe", top, &TOP)?;
    let mut merged: Option<Node> = None;
    if let Some(include) = node.get("recipe").and_then(|r| r.get("include")) {
        let paths: Vec<Node> = match &include.value {
            Value::List(items) if items.iter().all(|i| i.as_str().is_some()) => items.clone(),
            other => {
                return Err(Box::new(
                    Diagnostic::new(codes::TYPE, format!("'include' is {}", other.show()))
                        .at(files, include.at)
                        .help("it must be a list of file names: `include = [\"common.toml\"]`"),
                ));
            }
        };
        chain.push(identity);
        let folder = path.parent().unwrap_or(Path::new(""));
        for item in paths {
            let included = folder.join(item.as_str().unwrap_or_default());
            let (from, stack) = (Some(item.at), stack.as_deref_mut());
            let below = file(files, &included, chain, used, codes::INCLUDE, from, stack)?;
            merged = Some(match merged {
                Some(under) => merge(under, below),
                None => below,
            });
        }
        chain.pop();
    }
    if let Some(stack) = stack {
        stack.push(Layer {
            profile: None,
            root: node.clone(),
        });
    }
    Ok(match merged {
        Some(under) => merge(under, node),
        None => node,
    })
}

/// `over` wins; tables merge, everything else replaces.
fn merge(under: Node, over: Node) -> Node {
    match (under.value, over.value) {
        (Value::Table(mut below), Value::Table(above)) => {
            for (key, entry) in above {
                match below.get_mut(&key) {
                    Some(old) => {
                        let node = std::mem::replace(
                            &mut old.node,
                            Node {
                                value: Value::Bool(false),
                                at: over.at,
                            },
                        );
                        *old = crate::tree::Entry {
                            key_at: entry.key_at,
                            node: merge(node, entry.node),
                        };
                    }
                    None => {
                        below.insert(key, entry);
                    }
                }
            }
            Node {
                value: Value::Table(below),
                at: over.at,
            }
        }
        (_, value) => Node { value, at: over.at },
    }
}

/// Every profile, chosen or not, may only change what exists.
fn check_profiles(files: &Files, root: &Node) -> Result<(), Box<Diagnostic>> {
    let Some(profiles) = root.get("profile") else {
        return Ok(());
    };
    for (name, entry) in read::table(files, "'profile'", profiles)? {
        let owner = format!("profile '{name}'");
        let profile = read::table(files, &owner, &entry.node)?;
        read::only(files, &owner, profile, &LAYERED)?;
        for (section, body) in profile {
            let base = root.get(section).and_then(Node::as_table);
            let singular = section.trim_end_matches('s');
            for (key, inner) in read::table(files, &format!("{owner}: '{section}'"), &body.node)? {
                if base.is_none_or(|b| !b.contains_key(key)) {
                    let known = base
                        .map(|b| b.keys().map(String::as_str).collect::<Vec<_>>())
                        .unwrap_or_default();
                    return Err(Box::new(
                        Diagnostic::new(
                            codes::UNKNOWN_KEY,
                            format!("{owner} changes {singular} '{key}', which does not exist"),
                        )
                        .at(files, inner.key_at)
                        .suggest(key, known),
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Applies a profile; what it says.
fn apply_profile(
    files: &Files,
    root: &mut Node,
    name: Option<&str>,
) -> Result<Option<Node>, Box<Diagnostic>> {
    let Value::Table(top) = &mut root.value else {
        return Ok(None);
    };
    let profiles = top.shift_remove("profile");
    let Some(name) = name else { return Ok(None) };
    let known: Table = profiles
        .and_then(|p| match p.node.value {
            Value::Table(table) => Some(table),
            _ => None,
        })
        .unwrap_or_default();
    let Some(entry) = known.get(name) else {
        let names = known.keys().map(String::as_str);
        return Err(Box::new(
            Diagnostic::new(
                codes::PROFILE,
                format!("'{}' has no profile '{name}'", files.name(0)),
            )
            .suggest(name, names),
        ));
    };
    let at = root.at;
    let base = std::mem::replace(
        root,
        Node {
            value: Value::Bool(false),
            at,
        },
    );
    *root = merge(base, entry.node.clone());
    root.at = at;
    Ok(Some(entry.node.clone()))
}

/// `-S name=value` sets a parameter, `-S a.b.c=value` any path. The setting as a layer of its own.
fn apply_setting(
    files: &mut Files,
    root: &mut Node,
    setting: &Setting,
) -> Result<Node, Box<Diagnostic>> {
    let text = setting.0.as_str();
    let Some((key, value)) = text.split_once('=') else {
        return Err(Box::new(
            Diagnostic::new(codes::SETTING, format!("'-S {text}' sets nothing"))
                .help("write it as `-S name=value`"),
        ));
    };
    let path: Vec<&str> = key.trim().split('.').collect();
    if path.iter().any(|step| !crate::recipe::is_name(step)) {
        return Err(Box::new(
            Diagnostic::new(codes::SETTING, format!("'-S {text}' has no valid path"))
                .help("write a parameter (`-S lr=1e-4`) or a path (`-S stage.sft.with.lr=1e-4`)"),
        ));
    }
    let path: Vec<&str> = if path.len() == 1 {
        vec!["params", path[0]]
    } else {
        path
    };
    let known = |table: Option<&Table>| -> Vec<String> {
        table
            .map(|t| t.keys().cloned().collect())
            .unwrap_or_default()
    };
    // What is named before the last step of a path must exist: a parameter, a stage, a source.
    let (found, level) = existing(root, &path);
    let required = match path[0] {
        "params" => 2,
        "stage" | "source" => 2.min(path.len()),
        // a tracker may be asked for that the file does not name
        "track" => 0,
        _ => 1,
    };
    if found < required || !TOP.contains(&path[0]) || path[0] == "profile" {
        let wrong = path[found.min(path.len() - 1)];
        let what = match (path[0], found) {
            ("params", _) => format!("'-S {text}': the recipe has no parameter '{wrong}'"),
            (section @ ("stage" | "source"), 1) => {
                format!("'-S {text}': the recipe has no {section} '{wrong}'")
            }
            _ => format!("'-S {text}': the recipe has no key '{wrong}'"),
        };
        let names = known(level);
        return Err(Box::new(
            Diagnostic::new(codes::SETTING, what).suggest(wrong, names.iter().map(String::as_str)),
        ));
    }
    // a lone reference has its parameter's type, whatever that is
    let was_string = found == path.len()
        && root
            .nearest(&path.join("."))
            .as_str()
            .is_some_and(|old| !(old.starts_with("${") && old.ends_with('}')));
    let number = files.add(crate::tree::COMMAND_LINE, text);
    let offset = text.len() - value.len();
    let mut node = setting_value(files, number, value.trim(), was_string);
    node.at = crate::tree::At {
        file: number,
        start: offset as u32,
        end: text.len() as u32,
    };
    let key_at = crate::tree::At {
        file: number,
        start: 0,
        end: key.len() as u32,
    };
    let mut layer = Node {
        value: Value::Table(Table::new()),
        at: node.at,
    };
    set(&mut layer, &path, key_at, node.clone());
    set(root, &path, key_at, node);
    Ok(layer)
}

/// A TOML value, or else the text itself. What was a string stays one, unless quoted as such.
fn setting_value(files: &mut Files, number: u32, value: &str, was_string: bool) -> Node {
    let plain = Node {
        value: Value::Str(value.to_owned()),
        at: crate::tree::At {
            file: number,
            start: 0,
            end: 0,
        },
    };
    if was_string && !value.starts_with(['"', '\'', '[', '{']) {
        return plain;
    }
    let mut scratch = Files::default();
    let file = scratch.add(files.name(number), format!("v = {value}"));
    match parse::parse(&scratch, file) {
        Ok(Node {
            value: Value::Table(mut table),
            ..
        }) if table.len() == 1 => {
            let mut node = table.shift_remove("v").map_or(plain, |entry| entry.node);
            relocate(&mut node, number);
            node
        }
        _ => plain,
    }
}

/// Points a value parsed from a scratch text at the `-S` text it came from.
fn relocate(node: &mut Node, file: u32) {
    node.at = crate::tree::At {
        file,
        start: 0,
        end: 0,
    };
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|i| relocate(i, file)),
        Value::Table(table) => table.values_mut().for_each(|e| {
            e.key_at = crate::tree::At {
                file,
                start: 0,
                end: 0,
            };
            relocate(&mut e.node, file);
        }),
        _ => {}
    }
}

/// How many steps of a path exist, and the table in which the next one is missing.
fn existing<'a>(root: &'a Node, path: &[&str]) -> (usize, Option<&'a Table>) {
    let mut node = root;
    for (i, step) in path.iter().enumerate() {
        match node.get(step) {
            Some(next) => node = next,
            None => return (i, node.as_table()),
        }
    }
    (path.len(), None)
}

fn set(node: &mut Node, path: &[&str], key_at: crate::tree::At, value: Node) {
    if !matches!(node.value, Value::Table(_)) {
        node.value = Value::Table(Table::new());
    }
    let Value::Table(table) = &mut node.value else {
        return;
    };
    let entry = table
        .entry(path[0].to_owned())
        .or_insert_with(|| crate::tree::Entry {
            key_at,
            node: Node {
                value: Value::Table(Table::new()),
                at: key_at,
            },
        });
    if path.len() == 1 {
        *entry = crate::tree::Entry {
            key_at,
            node: value,
        };
    } else {
        set(&mut entry.node, &path[1..], key_at, value);
    }
}
