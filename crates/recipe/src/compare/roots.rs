//! What differs by itself, told once for all stages that it differs in.

use serde_json::{Value, json};
use spec::Difference;

use super::rows::{Change, changes};
use super::{Pair, Relation};
use crate::fail::Fail;
use crate::past::{Reader, Run};

/// One cause.
pub struct Root {
    /// Of a source its digests.
    pub difference: Difference,
    pub stages: Vec<String>,
    pub source: Option<Source>,
}

/// A source whose content differs.
pub struct Source {
    /// As the recipe names it.
    pub name: String,
    /// Files that differ, by path.
    pub files: Vec<(String, Change)>,
}

/// Differences of all pairs; equal ones are one.
pub fn roots(reader: &Reader, a: &Run, b: &Run, pairs: &[Pair]) -> Result<Vec<Root>, Fail> {
    let mut roots: Vec<Root> = Vec::new();
    let found = pairs.iter().filter(|p| p.relation != Relation::Same);
    for (pair, difference) in found.flat_map(|p| p.differs.iter().map(move |d| (p, d))) {
        let is_input = difference.field.starts_with("inputs.");
        let known = roots.iter_mut().find(|root| {
            let (one, two) = (&root.difference, difference);
            // stages may take a source as inputs of different names
            let field = one.field == two.field || (is_input && one.field.starts_with("inputs."));
            field && one.before == two.before && one.now == two.now
        });
        if let Some(root) = known {
            if !root.stages.contains(&pair.stage) {
                root.stages.push(pair.stage.clone());
            }
            continue;
        }
        let source = match is_input {
            true => source(reader, [a, b], &pair.stage, difference)?,
            false => None,
        };
        roots.push(Root {
            difference: difference.clone(),
            stages: vec![pair.stage.clone()],
            source,
        });
    }
    Ok(roots)
}

/// Both versions of a source that a stage read, where the runs that computed it kept them.
fn source(
    reader: &Reader,
    runs: [&Run; 2],
    stage: &str,
    difference: &Difference,
) -> Result<Option<Source>, Fail> {
    let mut contents = Vec::new();
    for (run, digest) in runs.into_iter().zip([&difference.before, &difference.now]) {
        let digest = digest.as_ref().and_then(Value::as_str);
        let (Some(digest), Some(stage)) = (digest, run.stage(stage)) else {
            return Ok(None);
        };
        let (id, _) = reader.computed_in(run, stage)?;
        let file = reader
            .store()
            .get_run(&id, &runner::content::file(digest))?;
        match file.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            Some(content) => contents.push(content),
            None => return Ok(None),
        }
    }
    let [before, now] = &contents[..] else {
        return Ok(None);
    };
    let name = |c: &runner::content::Content| c.source.clone();
    Ok(Some(Source {
        name: name(now),
        files: changes(before, now),
    }))
}

impl Root {
    pub fn as_json(&self) -> Value {
        let mut value = json!(self.difference);
        value["stages"] = json!(self.stages);
        if let Some(source) = &self.source {
            let files = source.files.iter();
            let files: Vec<_> = files
                .map(|(path, change)| {
                    let mut value = json!(change);
                    value["path"] = json!(path);
                    value
                })
                .collect();
            value["source"] = json!({ "name": source.name, "files": files });
        }
        value
    }

    /// `sft, dpo: with.lr 0.001 -> 0.002`, or the rows of a source.
    pub fn words(&self) -> String {
        let stages = self.stages.join(", ");
        let Some(source) = &self.source else {
            return format!("{stages}: {}", self.difference);
        };
        let one = source.files.len() == 1;
        let files = source.files.iter();
        let told: Vec<_> = files
            .map(|(path, change)| match one {
                // a source that is one file is known by its own name
                true if path.starts_with("data.") => change.words(),
                _ => format!("{path}: {}", change.words()),
            })
            .collect();
        format!("{stages}: source.{}: {}", source.name, told.join("; "))
    }
}
