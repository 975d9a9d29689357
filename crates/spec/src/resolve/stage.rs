//! `[stage.*]` before references: kind, configuration, placement, assertions.

use super::{Resolver, Result};
use crate::diagnostic::{Diagnostic, suggestion};
use crate::kinds::{KINDS, Kind, kind};
use crate::parts::in_parts;
use crate::placement::{Checkpoint, Placement, Retry, UNKEYED, parse_duration};
use crate::recipe::Output;
use crate::tree::{At, Entry, Node, Table, Value};
use crate::{Assertion, codes, read};

/// What makes a stage's key; a stage may say this and [`UNKEYED`].
const KEYED: [&str; 3] = ["kind", "in", "with"];
/// What a `command` may say beside `in`; it is read as part of `with`.
const COMMAND_KEYS: [&str; 4] = ["cmd", "out", "env", "secrets"];

/// A stage whose own values are read, and whose references are not yet looked up.
pub(super) struct Draft<'a> {
    pub(super) name: &'a str,
    pub(super) kind: &'static Kind,
    pub(super) with: serde_json::Value,
    pub(super) outputs: Vec<Output>,
    pub(super) inputs: Vec<(&'a str, &'a Entry)>,
    pub(super) placement: Placement,
    pub(super) assertions: Vec<Assertion>,
    pub(super) needs_assert: bool,
    pub(super) entry: &'a Entry,
}

impl<'a> Resolver<'a> {
    pub(super) fn drafts(&self, root: &'a Node) -> Result<Vec<Draft<'a>>> {
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
        let drafts = |part: &[(&'a str, &'a Entry)]| -> Result<Vec<Draft<'a>>> {
            part.iter()
                .map(|(name, entry)| self.draft(name, entry))
                .collect()
        };
        // the first mistake in the file is the error, whichever thread met one first
        let mut all = Vec::with_capacity(stages.len());
        for part in in_parts(&stages, drafts) {
            all.extend(part?);
        }
        Ok(all)
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
        let known: Vec<&str> = KEYED
            .iter()
            .chain(&UNKEYED)
            .chain(COMMAND_KEYS.iter().filter(|_| command))
            .copied()
            .collect();
        self.stage_keys(&owner, kind, table, &known)?;

        if command && let Some(with) = table.get("with").and_then(|e| e.node.as_table()) {
            let twice = COMMAND_KEYS
                .iter()
                .find(|key| with.contains_key(**key) && table.contains_key(**key));
            if let Some(key) = twice {
                return Err(self.error(
                    codes::DUPLICATE,
                    with[*key].key_at,
                    format!("{owner}: '{key}' stands in `with` and beside it"),
                    format!("keep one of the two; `-S stage.{name}.{key}=..` sets the one beside"),
                ));
            }
        }
        let with_node = with_node(entry, kind);
        let with_owner = format!("{owner}: with");
        let form = |e: read::Error| Box::new(e.explain(self.files, &owner, &with_node));
        self.refuse_placement(
            &owner,
            kind,
            read::table(self.files, &with_owner, &with_node)?,
        )?;
        let (with, outputs) = kind.read(&with_node).map_err(form)?;
        let placement = self.placement(&owner, kind, table)?;
        if placement.checkpoint.from_shorter {
            self.may_go_on(&owner, &with, &table["checkpoint"].node)?;
        }
        let inputs = match table.get("in") {
            Some(entry) => read::table(self.files, &format!("{owner}: 'in'"), &entry.node)?
                .iter()
                .map(|(k, e)| (k.as_str(), e))
                .collect(),
            None => Vec::new(),
        };
        let assertions = self.assertions(&owner, table, &outputs)?;
        Ok(Draft {
            name,
            kind,
            outputs,
            with,
            inputs,
            placement,
            assertions,
            needs_assert: self.needs_assert(&owner, table)?,
            entry,
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
            if RESOURCES.contains(&key.as_str()) && !is_setting(kind, key) {
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

    /// Refuses to go on from a shorter run where a step depends on how many there are.
    fn may_go_on(&self, owner: &str, with: &serde_json::Value, checkpoint: &Node) -> Result<()> {
        let at = checkpoint.nearest("continue").at;
        let refuse = |message: String, help: &str| {
            Err(self.error(codes::CONFLICT, at, format!("{owner}: {message}"), help))
        };
        match (with["schedule"].as_str(), with["steps"].is_u64()) {
            (Some("constant"), true) => Ok(()),
            (Some("constant"), false) => refuse(
                "`checkpoint.continue` is for stages whose length is given in steps".to_owned(),
                "use `with.steps` instead of `with.epochs`, or remove `continue`",
            ),
            (schedule, _) => refuse(
                format!(
                    "with schedule '{}' every step depends on how many there are, so a longer run cannot go on from a shorter one",
                    schedule.unwrap_or_default()
                ),
                "use `with.schedule = \"constant\"` (`warmup` may stay), or remove `checkpoint.continue`",
            ),
        }
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

    fn needs_assert(&self, owner: &str, table: &Table) -> Result<bool> {
        match table.get("needs_assert") {
            Some(entry) => self.read(&format!("{owner}: 'needs_assert'"), &entry.node),
            None => Ok(false),
        }
    }

    /// The output that an assertion on bits names must be one of the stage's.
    fn asserted_output(
        &self,
        owner: &str,
        item: &Node,
        assertion: &Assertion,
        outputs: &[Output],
    ) -> Result<()> {
        let Some(wanted) = &assertion.output else {
            return Ok(());
        };
        if outputs.iter().any(|output| output.name == *wanted) {
            return Ok(());
        }
        Err(self.error(
            codes::NO_OUTPUT,
            item.nearest("output").at,
            format!("{owner}: the stage has no output '{wanted}'"),
            suggestion(wanted, outputs.iter().map(|o| o.name.as_str())),
        ))
    }

    fn assertions(&self, owner: &str, table: &Table, outputs: &[Output]) -> Result<Vec<Assertion>> {
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
                assertion
                    .finish()
                    .map_err(|e| self.invalid(&owner, item, e))?;
                self.asserted_output(&owner, item, &assertion, outputs)?;
                Ok(assertion)
            })
            .collect()
    }
}

/// Fields of [`crate::Resources`].
const RESOURCES: [&str; 11] = [
    "ranks",
    "nodes",
    "threads",
    "mesh",
    "reshard",
    "rollout_mesh",
    "microbatch_tokens",
    "activation_checkpointing",
    "head_chunk",
    "offload",
    "deadline",
];

/// Whether `with` of this kind has the key. `steps` and `epochs` have no default.
fn is_setting(kind: &Kind, key: &str) -> bool {
    kind.defaults().get(key).is_some()
        || kind.checkpoints && matches!(key, "steps" | "epochs" | "until")
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

/// `with` of a stage, and what a command says beside it.
pub(super) fn with_node(entry: &Entry, kind: &Kind) -> Node {
    let get = |key: &str| entry.node.as_table().and_then(|table| table.get(key));
    let mut node = match get("with") {
        Some(with) => with.node.clone(),
        None => Node {
            value: Value::Table(Table::new()),
            at: entry.key_at,
        },
    };
    if kind.name == "command"
        && let Value::Table(with) = &mut node.value
    {
        for key in COMMAND_KEYS {
            if let Some(beside) = get(key) {
                with.insert(key.to_owned(), beside.clone());
            }
        }
    }
    node
}
