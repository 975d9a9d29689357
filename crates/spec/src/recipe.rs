//! A recipe whose every reference is resolved and every value has its type.

use crate::track::Track;
use crate::tree::{COMMAND_LINE, Files, Node};
use crate::until::{BestStep, PartOf, Until};
use crate::{ArtifactKind, Assertion, Cells, Diagnostic, Kind, Place, Placement, codes};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// The resolved recipe.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: String,
    /// The file as it was named.
    pub file: PathBuf,
    /// The folder that relative source paths start from.
    pub folder: PathBuf,
    pub sources: IndexMap<String, Source>,
    /// In the order of the file.
    pub stages: IndexMap<String, Arc<Stage>>,
    /// Names of all profiles, chosen or not.
    pub profiles: Vec<String>,
    /// Where metrics go besides the run's record.
    pub track: Track,
    /// Which of them are cells of a matrix.
    pub cells: Cells,
    pub(crate) files: Files,
    pub(crate) root: Node,
}

impl Recipe {
    /// The files that it was read from, with their texts.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.all().filter(|(name, _)| *name != COMMAND_LINE)
    }

    /// The `-S` settings that were applied.
    pub fn settings(&self) -> impl Iterator<Item = &str> {
        let all = self.files.all().filter(|(name, _)| *name == COMMAND_LINE);
        all.map(|(_, text)| text)
    }

    /// Whether a stage's own table has a key, such as `timeout`.
    pub fn says(&self, stage: &str, key: &str) -> bool {
        let stage = self.stages.get(stage).map_or(stage, |s| s.written());
        let stage = self.root.get("stage").and_then(|all| all.get(stage));
        stage.is_some_and(|table| table.get(key).is_some())
    }
}

/// Something that enters from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub name: String,
    pub from: SourceSpec,
    pub artifact: ArtifactKind,
}

/// Where a source comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceSpec {
    /// A file or directory, absolute or relative to the working directory.
    Path(PathBuf),
    /// A model repository on the Hugging Face hub; all of it where `files` names no patterns.
    Hf {
        repo: String,
        revision: String,
        files: Vec<String>,
    },
    /// A data set repository on the Hugging Face hub.
    HfDataset {
        repo: String,
        revision: String,
        files: Vec<String>,
    },
    /// An object or prefix of an object store, or `https://`.
    Url(String),
    /// An artifact that `recipe adopt` brought in: its digest, 64 hexadecimal digits.
    Adopted(String),
}

impl SourceSpec {
    /// Where a source came from, without folders of this machine.
    pub fn told(&self) -> String {
        match self {
            Self::Path(path) => path
                .file_name()
                .unwrap_or(path.as_os_str())
                .to_string_lossy()
                .into_owned(),
            other => other.to_string(),
        }
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Hf {
                repo,
                revision,
                files,
            } => write!(f, "hf://{repo}@{revision}{}", listed(files)),
            Self::HfDataset {
                repo,
                revision,
                files,
            } => write!(f, "hf://datasets/{repo}@{revision}{}", listed(files)),
            Self::Url(url) => f.write_str(url),
            Self::Adopted(digest) => write!(f, "adopted {}", digest.get(..12).unwrap_or(digest)),
        }
    }
}

/// The patterns that choose files of a repository, for messages.
fn listed(files: &[String]) -> String {
    if files.is_empty() {
        String::new()
    } else {
        format!(" [{}]", files.join(", "))
    }
}

/// A stage.
#[derive(Clone, Debug)]
pub struct Stage {
    pub name: String,
    pub kind: &'static Kind,
    /// Canonical configuration: what enters the key, and [`crate::JobSpec::with`].
    pub with: Value,
    pub inputs: BTreeMap<String, Vec<Reference>>,
    pub outputs: Vec<Output>,
    pub placement: Placement,
    pub assertions: Vec<Assertion>,
    /// Runs only where all assertions of the stages above it hold.
    pub needs_assert: bool,
    /// Environment variables whose values enter the key (`command`).
    pub environment: Vec<String>,
    /// Set where a reference asks for a part of another stage's training.
    pub part_of: Option<PartOf>,
    /// What readers choose one of its steps by.
    pub watch: Vec<BestStep>,
}

impl Stage {
    /// The stage as the recipe has it: of a part, the whole.
    pub fn written(&self) -> &str {
        self.part_of.as_ref().map_or(&self.name, |part| &part.stage)
    }

    /// The same, ending after this step; none is the end of its schedule.
    pub fn ending(&self, until: Option<u64>) -> Stage {
        let mut stage = self.clone();
        if let (Some(with), Some(until)) = (stage.with.as_object_mut(), until) {
            with.insert("until".to_owned(), until.into());
        }
        stage
    }

    /// Names of the stages this one reads from, or whose metrics it needs, without repeats, in input order.
    pub fn upstream(&self) -> Vec<&str> {
        let mut names = indexmap::IndexSet::new();
        if let Some(PartOf {
            stage,
            until: Until::Best(_),
        }) = &self.part_of
        {
            names.insert(stage.as_str());
        }
        for reference in self.inputs.values().flatten() {
            match reference {
                Reference::Source(_) => {}
                Reference::Stage { stage, .. } => {
                    names.insert(stage.as_str());
                }
                Reference::Choice(choice) => {
                    for candidate in &choice.candidates {
                        names.insert(candidate.stage.as_str());
                        names.insert(candidate.judge.as_str());
                    }
                }
            }
        }
        names.into_iter().collect()
    }
}

/// A stage's output.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub name: String,
    pub artifact: ArtifactKind,
}

/// What an input points to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Stage {
        stage: String,
        output: String,
    },
    Source(String),
    /// One of a matrix' cells, which one is known when all have run.
    Choice(Arc<Choice>),
}

/// `{ of = "sft.model", select = { max = "eval.accuracy" } }`: the cell with the best metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// `sft.model`, as the recipe has it.
    pub of: String,
    pub best: Best,
    /// `eval.accuracy`, as the recipe has it.
    pub by: String,
    /// `accuracy`.
    pub metric: String,
    /// The output that is taken, `model`.
    pub output: String,
    /// In the cells' order: of equals, the first is taken.
    pub candidates: Vec<Candidate>,
}

/// Which metric wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Best {
    Max,
    Min,
}

impl Best {
    /// As recipes have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Max => "max",
            Self::Min => "min",
        }
    }

    /// Whether a metric beats another.
    pub fn is_better(self, value: f64, than: f64) -> bool {
        match self {
            Self::Max => value > than,
            Self::Min => value < than,
        }
    }
}

/// A cell that may be chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub stage: String,
    /// The stage whose summary metrics tell how good it is; may be the candidate itself.
    pub judge: String,
}

impl Choice {
    /// The best of the candidates by what `metric_of` tells of their judges; none where no judge has the metric. One
    /// that has none, or a NaN, is passed over.
    pub fn choose(&self, metric_of: impl Fn(&str) -> Option<f64>) -> Option<(&Candidate, f64)> {
        let known = self.candidates.iter().filter_map(|c| {
            let value = metric_of(&c.judge).filter(|v| !v.is_nan())?;
            Some((c, value))
        });
        known.reduce(|best, next| match self.best.is_better(next.1, best.1) {
            true => next,
            false => best,
        })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { stage, output } => write!(f, "{stage}.{output}"),
            Self::Source(name) => write!(f, "source.{name}"),
            Self::Choice(choice) => {
                write!(
                    f,
                    "{} with the {} of {}",
                    choice.of,
                    choice.best.word(),
                    choice.by
                )
            }
        }
    }
}

impl Recipe {
    /// The place of a path such as `stage.grpo.with.environment[1]`, or of the nearest part of it
    /// that was written.
    pub fn place(&self, path: &str) -> Place {
        // names of cells hold what steps of a path are told apart by
        let stages = self.root.get("stage").and_then(Node::as_table);
        // a part is written where the whole is
        let part = self
            .stages
            .values()
            .filter(|s| s.part_of.is_some())
            .find_map(|part| {
                let below = path
                    .strip_prefix("stage.")?
                    .strip_prefix(part.name.as_str())?;
                let whole = || format!("stage.{}{below}", part.written());
                (below.is_empty() || below.starts_with('.')).then(whole)
            });
        let path = part.as_deref().unwrap_or(path);
        let cell = stages.into_iter().flatten().find_map(|(name, entry)| {
            let below = path.strip_prefix("stage.")?.strip_prefix(name.as_str())?;
            let below = below.strip_prefix('.').or(below.is_empty().then_some(""))?;
            name.contains('[').then(|| entry.node.nearest(below).at)
        });
        let at = cell.unwrap_or_else(|| self.root.nearest(path).at);
        Place::of(&self.files, at)
    }

    /// The stages that a name on the command line stands for: a stage or cell, all cells of a stage, or those at a place
    /// (`sft[lr=0.001]`).
    pub fn named(&self, name: &str) -> Result<Vec<&str>, Box<Diagnostic>> {
        if let Some((known, _)) = self.stages.get_key_value(name) {
            return Ok(vec![known]);
        }
        let names = |cells: Vec<&crate::Cell>| -> Vec<&str> {
            let known = cells
                .into_iter()
                .filter_map(|c| self.stages.get_key_value(&c.name));
            known.map(|(name, _)| name.as_str()).collect()
        };
        let cells = self.cells.of(name);
        if !cells.is_empty() {
            return Ok(names(cells.iter().collect()));
        }
        let error = |message: String| Diagnostic::new(codes::SELECTION, message);
        if let Some((stage, place)) = name.strip_suffix(']').and_then(|n| n.split_once('['))
            && (self.stages.contains_key(stage) || !self.cells.of(stage).is_empty())
        {
            let found = self.cells.matching(stage, place);
            return found
                .map(names)
                .map_err(|e| Box::new(error(e.message).help(e.help)));
        }
        let plain = self
            .stages
            .keys()
            .map(String::as_str)
            .filter(|n| !n.contains('['));
        let known: Vec<&str> = plain.chain(self.cells.stages()).collect();
        Err(Box::new(
            error(format!("the recipe has no stage '{name}'")).suggest(name, known),
        ))
    }
}

/// Whether a text can name a stage, source, param, input or output.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
