//! A recipe whose every reference is resolved and every value has its type.

use crate::track::Track;
use crate::tree::{COMMAND_LINE, Files, Node};
use crate::{ArtifactKind, Assertion, Kind, Place, Placement};
use indexmap::IndexMap;
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
}

impl Stage {
    /// Names of the stages this one reads from, without repeats, in input order.
    pub fn upstream(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for reference in self.inputs.values().flatten() {
            if let Reference::Stage { stage, .. } = reference
                && !names.contains(&stage.as_str())
            {
                names.push(stage.as_str());
            }
        }
        names
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
    Stage { stage: String, output: String },
    Source(String),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stage { stage, output } => write!(f, "{stage}.{output}"),
            Self::Source(name) => write!(f, "source.{name}"),
        }
    }
}

impl Recipe {
    /// The place of a path such as `stage.grpo.with.environment[1]`, or of the nearest part of it
    /// that was written.
    pub fn place(&self, path: &str) -> Place {
        Place::of(&self.files, self.root.nearest(path).at)
    }
}

/// Whether a text can name a stage, source, param, input or output.
pub fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
