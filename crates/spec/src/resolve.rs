//! From a merged tree to a [`Recipe`]: types, defaults, references.

use crate::diagnostic::{Diagnostic, suggestion};
use crate::kinds::{ArtifactKind, Invalid, KINDS, Kind, kind};
use crate::layers::RecipeFile;
use crate::placement::{Checkpoint, Placement, Retry, parse_duration};
use crate::recipe::{Output, Recipe, Reference, Source, SourceSpec, Stage, is_name};
use crate::tree::{At, Entry, Files, Node, Table, Value};
use crate::{Assertion, SCHEMA, codes, read};
use indexmap::IndexMap;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// `[recipe]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    name: String,
    schema: i64,
    #[serde(default)]
    #[allow(
        dead_code,
        reason = "read by the layers; here so that it is a known key"
    )]
    include: Vec<String>,
}

const STAGE_KEYS: [&str; 8] = [
    "kind",
    "in",
    "with",
    "resources",
    "checkpoint",
    "retry",
    "timeout",
    "assert",
];
/// What a `command` may say beside `in`; it is read as part of `with`.
const COMMAND_KEYS: [&str; 3] = ["cmd", "out", "env"];

pub fn resolve(file: RecipeFile) -> Result<Recipe> {
    let RecipeFile { path, files, root } = file;
    let resolver = Resolver { files: &files };
    let head = resolver.head(&path, &root)?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let sources = resolver.sources(&folder, &root)?;
    let drafts = resolver.drafts(&root)?;
    let stages = resolver.link(&sources, drafts)?;
    resolver.refuse_cycles(&root, &stages)?;
    Ok(Recipe {
        name: head.name,
        file: path,
        folder,
        sources,
        stages,
        files,
        root,
    })
}

struct Resolver<'a> {
    files: &'a Files,
}

/// A stage whose own values are read, and whose references are not yet looked up.
struct Draft<'a> {
    name: &'a str,
    kind: &'static Kind,
    with: serde_json::Value,
    with_node: Node,
    outputs: Vec<Output>,
    inputs: Vec<(&'a str, &'a Entry)>,
    placement: Placement,
    assertions: Vec<Assertion>,
    key_at: At,
}

impl<'a> Resolver<'a> {
    fn error(
        &self,
        code: &'static str,
        at: At,
        message: String,
        help: impl Into<String>,
    ) -> Box<Diagnostic> {
        Box::new(Diagnostic::new(code, message).at(self.files, at).help(help))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, owner: &str, node: &Node) -> Result<T> {
        read::from_node(node).map_err(|e| Box::new(e.explain(self.files, owner, node)))
    }

    fn invalid(&self, owner: &str, node: &Node, invalid: Invalid) -> Box<Diagnostic> {
        Box::new(read::Error::Invalid(invalid).explain(self.files, owner, node))
    }

    fn head(&self, path: &Path, root: &Node) -> Result<Head> {
        let Some(node) = root.get("recipe") else {
            return Err(Box::new(
                Diagnostic::new(
                    codes::MISSING,
                    format!("{}: '[recipe]' is missing", path.display()),
                )
                .help("begin with:\n  [recipe]\n  name = \"my-recipe\"\n  schema = 1"),
            ));
        };
        let head: Head = self.read("'recipe'", node)?;
        if !is_name(&head.name) {
            return Err(self.error(
                codes::NAME,
                node.nearest("name").at,
                format!("'{}' is not a name", head.name),
                "use letters, digits, '_' and '-'",
            ));
        }
        if head.schema != i64::from(SCHEMA) {
            return Err(self.error(
                codes::SCHEMA_VERSION,
                node.nearest("schema").at,
                format!("schema {} is not supported", head.schema),
                format!("this version reads `schema = {SCHEMA}`"),
            ));
        }
        Ok(head)
    }

    /// Entries of a top-level table, with checked names.
    fn section(&self, root: &'a Node, section: &str) -> Result<Vec<(&'a str, &'a Entry)>> {
        let Some(node) = root.get(section) else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for (name, entry) in read::table(self.files, &format!("'{section}'"), node)? {
            if !is_name(name) {
                return Err(self.error(
                    codes::NAME,
                    entry.key_at,
                    format!("'{name}' is not a name"),
                    "use letters, digits, '_' and '-'",
                ));
            }
            all.push((name.as_str(), entry));
        }
        Ok(all)
    }

    fn sources(&self, folder: &Path, root: &'a Node) -> Result<IndexMap<String, Source>> {
        self.section(root, "source")?
            .into_iter()
            .map(|(name, entry)| Ok((name.to_owned(), self.source(folder, name, &entry.node)?)))
            .collect()
    }

    fn source(&self, folder: &Path, name: &str, node: &Node) -> Result<Source> {
        const PLACES: [&str; 4] = ["path", "hf", "hf_dataset", "url"];
        let owner = format!("source '{name}'");
        let table = read::table(self.files, &owner, node)?;
        read::only(
            self.files,
            &owner,
            table,
            &["path", "hf", "hf_dataset", "url", "revision", "files"],
        )?;
        let given: Vec<_> = PLACES.iter().filter(|p| table.contains_key(**p)).collect();
        let place = match given[..] {
            [place] => *place,
            [] => {
                return Err(self.error(
                    codes::MISSING,
                    node.at,
                    format!("{owner} does not say where it comes from"),
                    "add one of `path`, `hf`, `hf_dataset`, `url`",
                ));
            }
            [first, second, ..] => {
                return Err(self.error(
                    codes::CONFLICT,
                    table[*second].key_at,
                    format!("{owner} has both '{first}' and '{second}'"),
                    "keep one of them",
                ));
            }
        };
        let value = &table[place].node;
        let text = match value.as_str() {
            Some(text) if !text.trim().is_empty() => text.to_owned(),
            Some(_) => {
                return Err(self.error(
                    codes::RANGE,
                    value.at,
                    format!("{owner}: '{place}' is empty"),
                    "say where it is",
                ));
            }
            None => {
                let found = value.value.show();
                return Err(self.error(
                    codes::TYPE,
                    value.at,
                    format!("{owner}: '{place}' is {found}"),
                    "it must be a string",
                ));
            }
        };
        for key in ["revision", "files"] {
            if let Some(entry) = table.get(key)
                && !place.starts_with("hf")
            {
                return Err(self.error(
                    codes::CONFLICT,
                    entry.key_at,
                    format!("{owner}: '{key}' is for repositories of the Hugging Face hub, not for a '{place}'"),
                    "remove it: the content is pinned by digest in recipe.lock",
                ));
            }
        }
        let files: Vec<String> = match table.get("files") {
            Some(entry) => read::from_node(&entry.node).map_err(|e| {
                Box::new(e.explain(self.files, &format!("{owner}: files"), &entry.node))
            })?,
            None => Vec::new(),
        };
        let revision = match table.get("revision") {
            Some(entry) => match entry.node.as_str() {
                Some(text) if !text.is_empty() => text.to_owned(),
                _ => {
                    let found = entry.node.value.show();
                    return Err(self.error(
                        codes::TYPE,
                        entry.node.at,
                        format!("{owner}: 'revision' is {found}"),
                        "it must be a branch, tag or commit, in quotes",
                    ));
                }
            },
            None => "main".to_owned(),
        };
        let repository = |text: &str| {
            let parts: Vec<_> = text.split('/').collect();
            let valid = |p: &&str| is_name(&p.replace('.', "-"));
            if parts.len() <= 2 && parts.iter().all(valid) {
                Ok(text.to_owned())
            } else {
                Err(self.error(
                    codes::RANGE,
                    value.at,
                    format!("{owner}: '{text}' is not a repository of the Hugging Face hub"),
                    "write it as \"owner/name\"",
                ))
            }
        };
        let (from, artifact) = match place {
            "path" => (SourceSpec::Path(folder.join(text)), ArtifactKind::Files),
            "hf" => (
                SourceSpec::Hf {
                    repo: repository(&text)?,
                    revision,
                    files,
                },
                ArtifactKind::Weights,
            ),
            "hf_dataset" => (
                SourceSpec::HfDataset {
                    repo: repository(&text)?,
                    revision,
                    files,
                },
                ArtifactKind::Dataset,
            ),
            _ if text.contains("://") => (SourceSpec::Url(text), ArtifactKind::Files),
            _ => {
                return Err(self.error(
                    codes::RANGE,
                    value.at,
                    format!("{owner}: '{text}' is not a URL"),
                    "write it like \"s3://bucket/path\", or use `path` for a local file",
                ));
            }
        };
        Ok(Source {
            name: name.to_owned(),
            from,
            artifact,
        })
    }

    fn drafts(&self, root: &'a Node) -> Result<Vec<Draft<'a>>> {
        let stages = self.section(root, "stage")?;
        if stages.is_empty() {
            return Err(Box::new(
                Diagnostic::new(
                    codes::MISSING,
                    format!("{}: the recipe has no stages", self.files.name(0)),
                )
                .help("add one: [stage.base]\n  kind = \"init\""),
            ));
        }
        stages
            .into_iter()
            .map(|(name, entry)| self.draft(name, entry))
            .collect()
    }

    fn draft(&self, name: &'a str, entry: &'a Entry) -> Result<Draft<'a>> {
        let owner = format!("stage '{name}'");
        if name == "source" {
            return Err(self.error(
                codes::NAME,
                entry.key_at,
                "a stage cannot be called 'source'".to_owned(),
                "references such as `source.data` would have two meanings",
            ));
        }
        let table = read::table(self.files, &owner, &entry.node)?;
        let kind = self.kind(&owner, entry, table)?;
        let command = kind.name == "command";
        let known: Vec<&str> = STAGE_KEYS
            .iter()
            .chain(COMMAND_KEYS.iter().filter(|_| command))
            .copied()
            .collect();
        self.stage_keys(&owner, kind, table, &known)?;

        let with_node = with_node(table, entry, command);
        let with_owner = format!("{owner}: with");
        let form = |e: read::Error| Box::new(e.explain(self.files, &owner, &with_node));
        self.refuse_placement(
            &owner,
            kind,
            read::table(self.files, &with_owner, &with_node)?,
        )?;
        let with = kind.read(&with_node).map_err(form)?;
        let inputs = match table.get("in") {
            Some(entry) => read::table(self.files, &format!("{owner}: 'in'"), &entry.node)?
                .iter()
                .map(|(k, e)| (k.as_str(), e))
                .collect(),
            None => Vec::new(),
        };
        Ok(Draft {
            name,
            kind,
            outputs: kind.outputs_of(&with),
            with,
            with_node,
            inputs,
            placement: self.placement(&owner, kind, table)?,
            assertions: self.assertions(&owner, table)?,
            key_at: entry.key_at,
        })
    }

    fn kind(&self, owner: &str, entry: &Entry, table: &Table) -> Result<&'static Kind> {
        let names = || KINDS.iter().map(|k| k.name);
        let Some(node) = table.get("kind").map(|e| &e.node) else {
            let list = names().collect::<Vec<_>>().join(", ");
            return Err(self.error(
                codes::MISSING,
                entry.key_at,
                format!("{owner}: 'kind' is missing"),
                format!("say what it does: kind = \"..\", one of {list}"),
            ));
        };
        let Some(text) = node.as_str() else {
            let found = node.value.show();
            return Err(self.error(
                codes::TYPE,
                node.at,
                format!("{owner}: 'kind' is {found}"),
                "it must be a string",
            ));
        };
        kind(text).ok_or_else(|| {
            self.error(
                codes::UNKNOWN_NAME,
                node.at,
                format!("{owner}: there is no stage kind '{text}'"),
                suggestion(text, names()),
            )
        })
    }

    /// Unknown keys of a stage; one that belongs in `with` or `resources` says so.
    fn stage_keys(&self, owner: &str, kind: &Kind, table: &Table, known: &[&str]) -> Result<()> {
        let unknown = |(key, _): &(&String, &Entry)| !known.contains(&key.as_str());
        let Some((key, entry)) = table.iter().find(unknown) else {
            return Ok(());
        };
        let message = format!("{owner} has no key '{key}'");
        let help = belongs(kind, key).unwrap_or_else(|| suggestion(key, known.iter().copied()));
        Err(self.error(codes::UNKNOWN_KEY, entry.key_at, message, help))
    }

    /// Placement written among the settings that make up a stage's identity.
    fn refuse_placement(&self, owner: &str, kind: &Kind, with: &Table) -> Result<()> {
        for (key, entry) in with {
            if !is_setting(kind, key) && RESOURCES.contains(&key.as_str()) {
                return Err(self.error(
                    codes::UNKNOWN_KEY,
                    entry.key_at,
                    format!("{owner} has no key '{key}'"),
                    belongs(kind, key).unwrap_or_default(),
                ));
            }
        }
        Ok(())
    }

    fn placement(&self, owner: &str, kind: &Kind, table: &Table) -> Result<Placement> {
        let mut placement = Placement::default();
        if let Some(Entry { node, .. }) = table.get("resources") {
            placement.resources = self.read(&format!("{owner}: resources"), node)?;
        }
        let (node, owner_of) = (
            |key: &str| table.get(key).map(|e| &e.node),
            |key: &str| format!("{owner}: {key}"),
        );
        let fallback = Node {
            value: Value::Table(Table::new()),
            at: At::default(),
        };
        placement.resources.finish().map_err(|e| {
            self.invalid(
                &owner_of("resources"),
                node("resources").unwrap_or(&fallback),
                e,
            )
        })?;
        if placement.resources.ranks > 1 && !kind.accelerated {
            let at = node("resources").map_or(At::default(), |n| n.nearest("ranks").at);
            return Err(self.error(
                codes::UNSUPPORTED,
                at,
                format!("{owner}: kind '{}' runs on one rank", kind.name),
                "remove `ranks`",
            ));
        }
        if let Some(node) = node("checkpoint") {
            if !kind.checkpoints {
                return Err(self.error(
                    codes::UNKNOWN_KEY,
                    table["checkpoint"].key_at,
                    format!("{owner}: kind '{}' takes no checkpoints", kind.name),
                    "remove it: only sft, dpo and grpo save their progress",
                ));
            }
            placement.checkpoint = self.read(&owner_of("checkpoint"), node)?;
            placement
                .checkpoint
                .finish()
                .map_err(|e| self.invalid(&owner_of("checkpoint"), node, e))?;
        } else {
            placement.checkpoint = Checkpoint::default();
        }
        if let Some(node) = node("retry") {
            let mut retry: Retry = self.read(&owner_of("retry"), node)?;
            retry
                .finish()
                .map_err(|e| self.invalid(&owner_of("retry"), node, e))?;
            placement.retry = retry;
        }
        if let Some(node) = node("timeout") {
            let Some(text) = node.as_str() else {
                let message = format!("{owner}: 'timeout' is {}", node.value.show());
                return Err(self.error(
                    codes::TYPE,
                    node.at,
                    message,
                    "write it like \"90s\", \"30m\" or \"12h\"",
                ));
            };
            let duration = parse_duration(text).map_err(|e| {
                self.error(e.code, node.at, format!("{owner}: {}", e.message), e.help)
            })?;
            placement.timeout = Some(duration);
        }
        Ok(placement)
    }

    fn assertions(&self, owner: &str, table: &Table) -> Result<Vec<Assertion>> {
        let Some(Entry { node, .. }) = table.get("assert") else {
            return Ok(Vec::new());
        };
        let Value::List(items) = &node.value else {
            let message = format!("{owner}: 'assert' is {}", node.value.type_name());
            return Err(self.error(
                codes::TYPE,
                node.at,
                message,
                "write each assertion as [[stage.NAME.assert]]",
            ));
        };
        items
            .iter()
            .map(|item| {
                let owner = format!("{owner}: assert");
                let assertion: Assertion = self.read(&owner, item)?;
                match (assertion.min, assertion.max) {
                    (None, None) => Err(self.error(
                        codes::MISSING,
                        item.at,
                        format!("{owner}: metric '{}' has no bound", assertion.metric),
                        "add `min`, `max`, or both",
                    )),
                    (Some(min), Some(max)) if min > max => Err(self.error(
                        codes::CONFLICT,
                        item.nearest("max").at,
                        format!("{owner}: no value is at least {min} and at most {max}"),
                        "exchange `min` and `max`",
                    )),
                    _ => Ok(assertion),
                }
            })
            .collect()
    }

    /// Looks up every reference and checks inputs against the kinds' ports.
    fn link(
        &self,
        sources: &IndexMap<String, Source>,
        drafts: Vec<Draft<'a>>,
    ) -> Result<IndexMap<String, Stage>> {
        let outputs: IndexMap<&str, &[Output]> = drafts
            .iter()
            .map(|d| (d.name, d.outputs.as_slice()))
            .collect();
        let mut linked = Vec::with_capacity(drafts.len());
        for draft in &drafts {
            let owner = format!("stage '{}'", draft.name);
            let mut inputs = BTreeMap::new();
            for &(input, entry) in &draft.inputs {
                inputs.insert(
                    input.to_owned(),
                    self.input(&owner, draft, input, entry, sources, &outputs)?,
                );
            }
            for port in draft.kind.inputs.iter().filter(|p| p.required) {
                if !inputs.contains_key(port.name) {
                    return Err(self.error(
                        codes::MISSING_INPUT,
                        draft.key_at,
                        format!("{owner}: input '{}' is missing", port.name),
                        format!("add `in.{} = \"..\"`: {}", port.name, port.doc),
                    ));
                }
            }
            let names: Vec<&str> = inputs.keys().map(String::as_str).collect();
            draft
                .kind
                .check_inputs(&draft.with, &names)
                .map_err(|e| self.invalid(&owner, &draft.with_node, e))?;
            linked.push(inputs);
        }
        Ok(drafts
            .into_iter()
            .zip(linked)
            .map(|(draft, inputs)| {
                let environment = match draft.with.get("env") {
                    Some(names) if draft.kind.name == "command" => {
                        serde_json::from_value(names.clone()).expect("the kind's own configuration")
                    }
                    _ => Vec::new(),
                };
                let stage = Stage {
                    name: draft.name.to_owned(),
                    kind: draft.kind,
                    with: draft.with,
                    inputs,
                    outputs: draft.outputs,
                    placement: draft.placement,
                    assertions: draft.assertions,
                    environment,
                };
                (stage.name.clone(), stage)
            })
            .collect())
    }

    fn input(
        &self,
        owner: &str,
        draft: &Draft<'_>,
        input: &str,
        entry: &Entry,
        sources: &IndexMap<String, Source>,
        outputs: &IndexMap<&str, &[Output]>,
    ) -> Result<Vec<Reference>> {
        let port = draft.kind.inputs.iter().find(|p| p.name == input);
        if port.is_none() && !draft.kind.open_inputs {
            return Err(self.error(
                codes::UNKNOWN_INPUT,
                entry.key_at,
                format!("{owner}: kind '{}' has no input '{input}'", draft.kind.name),
                suggestion(input, draft.kind.inputs.iter().map(|p| p.name)),
            ));
        }
        if !is_name(input) {
            let message = format!("{owner}: '{input}' is not a name");
            return Err(self.error(
                codes::NAME,
                entry.key_at,
                message,
                "use letters, digits, '_' and '-'",
            ));
        }
        let many = port.is_none_or(|p| p.many);
        let nodes: Vec<&Node> = match &entry.node.value {
            Value::List(_) if !many => {
                let message = format!("{owner}: input '{input}' takes one artifact, not a list");
                return Err(self.error(
                    codes::NOT_A_LIST,
                    entry.node.at,
                    message,
                    "name one `stage.output` or `source.name`",
                ));
            }
            Value::List(items) if items.is_empty() => {
                let message = format!("{owner}: input '{input}' is an empty list");
                return Err(self.error(
                    codes::MISSING_INPUT,
                    entry.node.at,
                    message,
                    "name at least one artifact, or remove it",
                ));
            }
            Value::List(items) => items.iter().collect(),
            _ => vec![&entry.node],
        };
        let wanted = port.map_or(ArtifactKind::Files, |p| p.artifact);
        nodes
            .into_iter()
            .map(|node| {
                let (reference, given) = self.reference(owner, input, node, sources, outputs)?;
                if wanted.accepts(given) {
                    return Ok(reference);
                }
                let message = format!(
                    "{owner}: input '{input}' takes {}, but '{reference}' is {}",
                    article(wanted),
                    article(given)
                );
                let fitting = fitting(wanted, sources, outputs, draft.name);
                let help = if fitting.is_empty() {
                    format!("nothing in this recipe makes {}", article(wanted))
                } else {
                    format!("these fit: {}", fitting.join(", "))
                };
                Err(self.error(codes::WRONG_ARTIFACT, node.at, message, help))
            })
            .collect()
    }

    fn reference(
        &self,
        owner: &str,
        input: &str,
        node: &Node,
        sources: &IndexMap<String, Source>,
        outputs: &IndexMap<&str, &[Output]>,
    ) -> Result<(Reference, ArtifactKind)> {
        const FORM: &str = "write `stage.output` or `source.name`";
        let Some(text) = node.as_str() else {
            let message = format!("{owner}: input '{input}' is {}", node.value.show());
            return Err(self.error(codes::REFERENCE, node.at, message, FORM));
        };
        let (left, right) = match text.split_once('.') {
            Some((left, right)) if is_name(left) && is_name(right) => (left, right),
            _ => {
                let help = match outputs.get(text).and_then(|o| o.first()) {
                    Some(output) => format!("did you mean '{text}.{}'?", output.name),
                    None if sources.contains_key(text) => format!("did you mean 'source.{text}'?"),
                    None => FORM.to_owned(),
                };
                let message = format!("{owner}: '{text}' is not a reference");
                return Err(self.error(codes::REFERENCE, node.at, message, help));
            }
        };
        if left == "source" {
            return match sources.get(right) {
                Some(source) => Ok((Reference::Source(right.to_owned()), source.artifact)),
                None => Err(self.error(
                    codes::NO_SUCH,
                    node.at,
                    format!("{owner} reads 'source.{right}', but there is no such source"),
                    qualified_suggestion(text, sources.keys().map(|n| format!("source.{n}"))),
                )),
            };
        }
        let Some(made) = outputs.get(left) else {
            let all = outputs
                .iter()
                .flat_map(|(stage, made)| made.iter().map(move |o| format!("{stage}.{}", o.name)));
            let all = all.chain(sources.keys().map(|n| format!("source.{n}")));
            return Err(self.error(
                codes::NO_SUCH,
                node.at,
                format!("{owner} reads '{text}', but there is no stage '{left}'"),
                qualified_suggestion(text, all),
            ));
        };
        match made.iter().find(|o| o.name == right) {
            Some(output) => {
                let reference = Reference::Stage {
                    stage: left.to_owned(),
                    output: right.to_owned(),
                };
                Ok((reference, output.artifact))
            }
            None => Err(self.error(
                codes::NO_OUTPUT,
                node.at,
                format!("{owner} has no output '{text}'"),
                qualified_suggestion(text, made.iter().map(|o| format!("{left}.{}", o.name))),
            )),
        }
    }

    fn refuse_cycles(&self, root: &Node, stages: &IndexMap<String, Stage>) -> Result<()> {
        // 0 unseen, 1 on the current path, 2 done; an explicit stack, since chains may be long
        let mut state = vec![0u8; stages.len()];
        let upstream: Vec<Vec<usize>> = stages
            .values()
            .map(|s| {
                s.upstream()
                    .into_iter()
                    .filter_map(|u| stages.get_index_of(u))
                    .collect()
            })
            .collect();
        for start in 0..stages.len() {
            let mut path = Vec::new();
            if state[start] == 0 {
                state[start] = 1;
                path.push((start, 0));
            }
            while let Some((stage, next)) = path.last_mut() {
                let Some(&up) = upstream[*stage].get(*next) else {
                    state[*stage] = 2;
                    path.pop();
                    continue;
                };
                *next += 1;
                if state[up] == 0 {
                    state[up] = 1;
                    path.push((up, 0));
                } else if state[up] == 1 {
                    let from = path.iter().position(|&(s, _)| s == up).unwrap_or(0);
                    let name = |i: usize| stages.get_index(i).map_or("", |(n, _)| n.as_str());
                    let mut ring: Vec<&str> = path[from..].iter().map(|&(s, _)| name(s)).collect();
                    ring.push(name(up));
                    let at = root.nearest(&format!("stage.{}.in", name(up))).at;
                    return Err(self.error(
                        codes::CYCLE,
                        at,
                        format!("stages depend on each other: {}", ring.join(" <- ")),
                        "remove one of these inputs",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Fields of [`crate::Resources`].
const RESOURCES: [&str; 9] = [
    "ranks",
    "nodes",
    "threads",
    "mesh",
    "rollout_mesh",
    "microbatch_tokens",
    "activation_checkpointing",
    "head_chunk",
    "offload",
];

/// Whether `with` of this kind has the key. `steps` and `epochs` have no default.
fn is_setting(kind: &Kind, key: &str) -> bool {
    kind.defaults().get(key).is_some() || kind.checkpoints && matches!(key, "steps" | "epochs")
}

/// Where a key belongs that stands in the wrong table.
fn belongs(kind: &Kind, key: &str) -> Option<String> {
    let table = if is_setting(kind, key) {
        "with"
    } else if RESOURCES.contains(&key) {
        "resources"
    } else {
        return None;
    };
    Some(format!(
        "'{key}' belongs in `{table}`: {table} = {{ {key} = .. }}"
    ))
}

/// `with`, and what a command says beside it.
fn with_node(table: &Table, entry: &Entry, command: bool) -> Node {
    let mut node = match table.get("with") {
        Some(with) => with.node.clone(),
        None => Node {
            value: Value::Table(Table::new()),
            at: entry.key_at,
        },
    };
    if command && let Value::Table(with) = &mut node.value {
        for key in COMMAND_KEYS {
            if let Some(beside) = table.get(key) {
                with.insert(key.to_owned(), beside.clone());
            }
        }
    }
    node
}

fn article(artifact: ArtifactKind) -> &'static str {
    match artifact {
        ArtifactKind::Weights => "weights",
        ArtifactKind::Dataset => "a dataset",
        ArtifactKind::Report => "a report",
        ArtifactKind::Files => "files",
    }
}

fn fitting(
    wanted: ArtifactKind,
    sources: &IndexMap<String, Source>,
    outputs: &IndexMap<&str, &[Output]>,
    except: &str,
) -> Vec<String> {
    let made = outputs
        .iter()
        .filter(|(stage, _)| **stage != except)
        .flat_map(|(stage, made)| {
            made.iter()
                .map(move |o| (format!("'{stage}.{}'", o.name), o.artifact))
        });
    let given = sources
        .values()
        .map(|s| (format!("'source.{}'", s.name), s.artifact));
    made.chain(given)
        .filter(|(_, artifact)| wanted.accepts(*artifact))
        .map(|(name, _)| name)
        .collect()
}

fn qualified_suggestion(wrong: &str, known: impl Iterator<Item = String>) -> String {
    let known: Vec<String> = known.collect();
    suggestion(wrong, known.iter().map(String::as_str))
}
