//! References: every input looked up and held against the kind's ports; no circles.

use super::stage::{Draft, with_node};
use super::until::parts_of;
use super::{Resolver, Result};
use crate::cells::{Cell, NoCell};
use crate::codes;
use crate::diagnostic::suggestion;
use crate::kinds::ArtifactKind;
use crate::parts::in_parts;
use crate::recipe::{Output, Reference, Source, Stage, is_name};
use crate::tree::{Entry, Node, Value};
use crate::until::PartOf;
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What the stages of a recipe make, and the parts of their training that references ask for.
pub(super) struct Made<'d, 'a> {
    drafts: IndexMap<&'d str, &'d Draft<'a>>,
    parts: Mutex<BTreeMap<String, PartOf>>,
}

impl<'d, 'a> Made<'d, 'a> {
    fn by(drafts: &'d [Draft<'a>]) -> Self {
        Self {
            drafts: drafts.iter().map(|d| (d.name, d)).collect(),
            parts: Mutex::default(),
        }
    }

    /// The outputs of a stage, if there is such a stage.
    pub(super) fn outputs(&self, stage: &str) -> Option<&'d [Output]> {
        self.drafts.get(stage).map(|d| d.outputs.as_slice())
    }

    /// Stages and what each makes.
    fn all(&self) -> impl Iterator<Item = (&'d str, &'d Output)> {
        let drafts = self.drafts.values();
        drafts.flat_map(|d| d.outputs.iter().map(move |output| (d.name, output)))
    }

    /// A stage that a reference was found to name.
    pub(super) fn draft(&self, stage: &str) -> &'d Draft<'a> {
        self.drafts[stage]
    }

    /// Notes that a reference asks for a part.
    pub(super) fn ask(&self, name: String, part: PartOf) {
        self.parts
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .insert(name, part);
    }
}

/// Stages with their inputs, and the cells among those that references ask for.
#[derive(Default)]
pub(super) struct Linked {
    pub(super) stages: IndexMap<String, Arc<Stage>>,
    pub(super) cells: Vec<Cell>,
}

/// A stage's inputs: what each name refers to.
type Inputs = BTreeMap<String, Vec<Reference>>;

impl<'a> Resolver<'a> {
    /// Looks up every reference and checks inputs against the kinds' ports.
    pub(super) fn link(
        &self,
        sources: &IndexMap<String, Source>,
        drafts: Vec<Draft<'a>>,
    ) -> Result<Linked> {
        let made = Made::by(&drafts);
        let inputs = |part: &[Draft<'a>]| -> Result<Vec<Inputs>> {
            part.iter()
                .map(|draft| self.inputs(draft, sources, &made))
                .collect()
        };
        // the first mistake in the file is the error, whichever thread met one first
        let mut linked = Vec::with_capacity(drafts.len());
        for part in in_parts(&drafts, inputs) {
            linked.extend(part?);
        }
        let Made {
            drafts: by_name,
            parts,
        } = made;
        drop(by_name);
        let parts: Vec<(String, PartOf)> = parts
            .into_inner()
            .unwrap_or_else(|e| e.into_inner())
            .into_iter()
            .collect();
        let mut all = Linked::default();
        for (draft, inputs) in drafts.into_iter().zip(linked) {
            let environment = match draft.with.get("env") {
                Some(names) if draft.kind.name == "command" => {
                    serde_json::from_value(names.clone()).expect("the kind's own configuration")
                }
                _ => Vec::new(),
            };
            let mut stage = Stage {
                name: draft.name.to_owned(),
                kind: draft.kind,
                with: draft.with,
                inputs,
                outputs: draft.outputs,
                placement: draft.placement,
                assertions: draft.assertions,
                needs_assert: draft.needs_assert,
                environment,
                part_of: None,
                watch: Vec::new(),
            };
            let parts = parts_of(&mut stage, self.cells.get(draft.name), &parts);
            all.stages.insert(stage.name.clone(), Arc::new(stage));
            for (part, cell) in parts {
                all.stages.insert(part.name.clone(), Arc::new(part));
                all.cells.extend(cell);
            }
        }
        Ok(all)
    }

    /// The inputs of a stage, whole and as its kind wants them.
    fn inputs(
        &self,
        draft: &Draft<'_>,
        sources: &IndexMap<String, Source>,
        made: &Made<'_, '_>,
    ) -> Result<Inputs> {
        let owner = format!("stage '{}'", draft.name);
        let mut inputs = BTreeMap::new();
        for &(input, entry) in &draft.inputs {
            inputs.insert(
                input.to_owned(),
                self.input(&owner, draft, input, entry, sources, made)?,
            );
        }
        for port in draft.kind.inputs.iter().filter(|p| p.required) {
            if !inputs.contains_key(port.name) {
                return Err(self.error(
                    codes::MISSING_INPUT,
                    draft.entry.key_at,
                    format!("{owner}: input '{}' is missing", port.name),
                    format!("add `in.{} = \"..\"`: {}", port.name, port.doc),
                ));
            }
        }
        let names: Vec<&str> = inputs.keys().map(String::as_str).collect();
        let checked = draft.kind.check_inputs(&draft.with, &names);
        checked.map_err(|e| self.invalid(&owner, &with_node(draft.entry, draft.kind), e))?;
        Ok(inputs)
    }

    fn input(
        &self,
        owner: &str,
        draft: &Draft<'_>,
        input: &str,
        entry: &Entry,
        sources: &IndexMap<String, Source>,
        made: &Made<'_, '_>,
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
        let mut found: Vec<(&Node, Reference, ArtifactKind)> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let references = self.references(owner, input, node, sources, made)?;
            if references.len() > 1 && !many {
                return Err(self.error(
                    codes::NOT_A_LIST,
                    node.at,
                    format!(
                        "{owner}: input '{input}' takes one artifact, and {} names {} cells",
                        node.value.show(),
                        references.len()
                    ),
                    "say which, follow them with `foreach`, or choose by a metric: { of = \"..\", select = { max = \"..\" } }",
                ));
            }
            found.extend(references.into_iter().map(|(r, kind)| (node, r, kind)));
        }
        found
            .into_iter()
            .map(|(node, reference, given)| {
                if wanted.accepts(given) {
                    return Ok(reference);
                }
                let message = format!(
                    "{owner}: input '{input}' takes {}, but '{reference}' is {}",
                    article(wanted),
                    article(given)
                );
                let fitting = fitting(wanted, sources, made, draft.name);
                let help = if fitting.is_empty() {
                    format!("nothing in this recipe makes {}", article(wanted))
                } else {
                    format!("these fit: {}", fitting.join(", "))
                };
                Err(self.error(codes::WRONG_ARTIFACT, node.at, message, help))
            })
            .collect()
    }

    /// What an input's value names: one artifact, or those of cells.
    fn references(
        &self,
        owner: &str,
        input: &str,
        node: &Node,
        sources: &IndexMap<String, Source>,
        made: &Made<'_, '_>,
    ) -> Result<Vec<(Reference, ArtifactKind)>> {
        if let Value::Table(table) = &node.value {
            let choice = self.choice(&format!("{owner}: input '{input}'"), node, table, made)?;
            return Ok(vec![choice]);
        }
        if let Some((whole, asked)) = self.asked(owner, node)? {
            let found = self.references(owner, input, &whole, sources, made)?;
            let parts = found.into_iter().map(|(reference, artifact)| {
                Ok((self.part(owner, &asked, reference, made)?, artifact))
            });
            return parts.collect();
        }
        let cells = node.as_str().and_then(|text| {
            let (stage, place, output) = with_place(text)?;
            Some((text, stage, place, output))
        });
        let Some((text, stage, place, output)) = cells else {
            let one = self.reference(owner, input, node, sources, made)?;
            return Ok(vec![one]);
        };
        let cells = match self.cells.matching(stage, place) {
            Ok(cells) => cells,
            Err(NoCell { message, help }) => {
                let message = format!("{owner}: '{text}': {message}");
                return Err(self.error(codes::CELL, node.at, message, help));
            }
        };
        let artifact = self.artifact(owner, text, node, cells[0].name.as_str(), output, made)?;
        let reference = |cell: &crate::Cell| Reference::Stage {
            stage: cell.name.clone(),
            output: output.to_owned(),
        };
        Ok(cells
            .into_iter()
            .map(|c| (reference(c), artifact))
            .collect())
    }

    /// The kind of a stage's output.
    pub(super) fn artifact(
        &self,
        owner: &str,
        text: &str,
        node: &Node,
        stage: &str,
        output: &str,
        made: &Made<'_, '_>,
    ) -> Result<ArtifactKind> {
        let outputs = made.outputs(stage).unwrap_or_default();
        let found = outputs.iter().find(|o| o.name == output);
        found.map(|o| o.artifact).ok_or_else(|| {
            let left = text.rsplit_once('.').map_or(text, |(left, _)| left);
            self.error(
                codes::NO_OUTPUT,
                node.at,
                format!("{owner} has no output '{text}'"),
                qualified_suggestion(text, outputs.iter().map(|o| format!("{left}.{}", o.name))),
            )
        })
    }

    fn reference(
        &self,
        owner: &str,
        input: &str,
        node: &Node,
        sources: &IndexMap<String, Source>,
        made: &Made<'_, '_>,
    ) -> Result<(Reference, ArtifactKind)> {
        const FORM: &str = "write `stage.output` or `source.name`";
        let Some(text) = node.as_str() else {
            let message = format!("{owner}: input '{input}' is {}", node.value.show());
            return Err(self.error(codes::REFERENCE, node.at, message, FORM));
        };
        let (left, right) = match text.split_once('.') {
            Some((left, right)) if is_name(left) && is_name(right) => (left, right),
            _ => {
                let help = match made.outputs(text).and_then(|o| o.first()) {
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
        let cells = self.cells.of(left);
        if !cells.is_empty() {
            let (n, first) = (cells.len(), &cells[0].name);
            return Err(self.error(
                codes::CELL,
                node.at,
                format!("{owner} reads '{text}', but '{left}' has {n} cells"),
                format!(
                    "name one ('{first}.{right}'), all ('{left}[*].{right}'), follow them with foreach = \"{left}\", or choose by a metric: {{ of = \"{text}\", select = {{ max = \"..\" }} }}"
                ),
            ));
        }
        if made.outputs(left).is_none() {
            let all = made.all().map(|(stage, o)| format!("{stage}.{}", o.name));
            let all = all.chain(sources.keys().map(|n| format!("source.{n}")));
            return Err(self.error(
                codes::NO_SUCH,
                node.at,
                format!("{owner} reads '{text}', but there is no stage '{left}'"),
                qualified_suggestion(text, all),
            ));
        }
        let artifact = self.artifact(owner, text, node, left, right, made)?;
        let reference = Reference::Stage {
            stage: left.to_owned(),
            output: right.to_owned(),
        };
        Ok((reference, artifact))
    }

    pub(super) fn refuse_cycles(
        &self,
        root: &Node,
        stages: &IndexMap<String, Arc<Stage>>,
    ) -> Result<()> {
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
                    let written = stages[up].written();
                    let table = root.get("stage").and_then(|all| all.get(written));
                    let at = table.map_or(root.at, |stage| stage.nearest("in").at);
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

/// `sft[lr=0.001].model` in its parts.
pub(super) fn with_place(text: &str) -> Option<(&str, &str, &str)> {
    let (stage, rest) = text.split_once('[')?;
    let (place, output) = rest.rsplit_once("].")?;
    (is_name(stage) && is_name(output)).then_some((stage, place, output))
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
    made: &Made<'_, '_>,
    except: &str,
) -> Vec<String> {
    let made = made
        .all()
        .filter(|(stage, _)| *stage != except)
        .map(|(stage, o)| (format!("'{stage}.{}'", o.name), o.artifact));
    let given = sources
        .values()
        .map(|s| (format!("'source.{}'", s.name), s.artifact));
    made.chain(given)
        .filter(|(_, artifact)| wanted.accepts(*artifact))
        .map(|(name, _)| name)
        .collect()
}

pub(super) fn qualified_suggestion(wrong: &str, known: impl Iterator<Item = String>) -> String {
    let known: Vec<String> = known.collect();
    suggestion(wrong, known.iter().map(String::as_str))
}
