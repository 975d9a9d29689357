//! Two results of one stage held against each other: which file, tensor and step differ first.

use super::Made;
use crate::fail::Fail;
use crate::format;
use crate::past::of_mathematics;
use crate::tensors::{Differs, first_apart};
use cache::{Digest, Entry, Manifest};
use serde_json::{Value, json};
use std::path::Path;

/// What became of one comparison.
pub(super) struct Check {
    how: &'static str,
    /// What it was compared with.
    reference: &'static str,
    outputs: Vec<Output>,
    /// The first step whose metrics differ.
    step: Option<Apart>,
}

struct Output {
    name: String,
    /// The first file that differs, and what of it.
    file: Option<(String, Option<Differs>)>,
}

struct Apart {
    step: u64,
    metric: String,
    before: Option<f64>,
    now: Option<f64>,
}

fn outputs(before: &Made, again: &Made) -> Result<Vec<Output>, Fail> {
    let mut all = Vec::new();
    for (name, digest) in &again.record.outputs {
        let file = match before.record.outputs.get(name) {
            Some(was) if was == digest => None,
            Some(was) => Some(first_file((before, was), (again, digest))?),
            None => Some((format!("all of output '{name}'"), None)),
        };
        all.push(Output {
            name: name.clone(),
            file,
        });
    }
    Ok(all)
}

/// The first file of two artifacts that differs, and the first tensor of it where it has any.
fn first_file(
    (before, was): (&Made, &Digest),
    (again, is): (&Made, &Digest),
) -> Result<(String, Option<Differs>), Fail> {
    let (a, b) = (before.store.manifest(was)?, again.store.manifest(is)?);
    let of = |manifest: &Manifest, path: &str| -> Option<Entry> {
        manifest.files.iter().find(|f| f.path == path).cloned()
    };
    let mut paths: Vec<&String> = a.files.iter().chain(&b.files).map(|f| &f.path).collect();
    paths.sort();
    paths.dedup();
    let differs = |path: &&&String| of(&a, path) != of(&b, path);
    let Some(path) = paths.iter().find(differs) else {
        return Ok(("its list of files".to_owned(), None));
    };
    let (Some(left), Some(right)) = (of(&a, path), of(&b, path)) else {
        return Ok((format!("{path}, which only one of them has"), None));
    };
    if !path.ends_with(".safetensors") || left.blob == right.blob {
        return Ok(((*path).clone(), None));
    }
    let dir =
        tempfile::tempdir().map_err(|e| Fail::io("make a folder in", Path::new("/tmp"), &e))?;
    let at = [dir.path().join("a"), dir.path().join("b")];
    before.store.materialize_file(&left, &at[0])?;
    again.store.materialize_file(&right, &at[1])?;
    let tensor = first_apart(&at[0], &at[1]).map_err(|why| Fail::Other {
        code: spec::codes::INTEGRITY,
        exit: 5,
        message: format!("{path}: {why}"),
        help: String::new(),
    })?;
    Ok(((*path).clone(), tensor))
}

/// The first step whose metrics differ, those of time left aside.
fn step(before: &Made, again: &Made) -> Result<Option<Apart>, Fail> {
    let steps = |made: &Made| {
        runner::steps_of(&made.record, &made.store)
            .map(Option::unwrap_or_default)
            .map_err(|why| Fail::not_stored(why, "compute the stage again with --force"))
    };
    let (a, b) = (steps(before)?, steps(again)?);
    let bits = |x: Option<f64>| x.map(|x| if x.is_nan() { u64::MAX } else { x.to_bits() });
    for (step, now) in &b.rows {
        let Some(was) = a.rows.get(step) else {
            continue;
        };
        let names = now
            .keys()
            .chain(was.keys())
            .filter(|name| of_mathematics(name));
        for metric in names {
            let (x, y) = (was.get(metric).copied(), now.get(metric).copied());
            if bits(x) != bits(y) {
                return Ok(Some(Apart {
                    step: *step,
                    metric: metric.clone(),
                    before: x,
                    now: y,
                }));
            }
        }
    }
    Ok(None)
}

impl Check {
    /// Compares what was made before with what was made again.
    pub(super) fn of(
        how: &'static str,
        reference: &'static str,
        before: &Made,
        again: &Made,
    ) -> Result<Check, Fail> {
        Ok(Check {
            how,
            reference,
            outputs: outputs(before, again)?,
            step: step(before, again)?,
        })
    }

    pub(super) fn same(&self) -> bool {
        self.outputs.iter().all(|output| output.file.is_none())
    }

    pub(super) fn as_text(&self, stage: &str) -> String {
        let made = match self.how {
            "resume" => "killed after a checkpoint and resumed",
            _ => "computed again",
        };
        let verdict = if self.same() {
            "the same bits as"
        } else {
            "NOT the bits of"
        };
        let mut lines = vec![format!("{stage}, {made}: {verdict} {}", self.reference)];
        for output in &self.outputs {
            lines.push(match &output.file {
                None => format!("  {}: equal", output.name),
                Some((file, None)) => format!("  {}: {file} differs", output.name),
                Some((file, Some(tensor))) => {
                    format!("  {}: {file} differs, {}", output.name, describe(tensor))
                }
            });
        }
        match &self.step {
            Some(apart) => {
                let shown =
                    |x: Option<f64>| x.map_or_else(|| "nothing".to_owned(), |x| x.to_string());
                lines.push(format!(
                    "  metrics first differ at step {}: {} {} -> {}",
                    apart.step,
                    apart.metric,
                    shown(apart.before),
                    shown(apart.now)
                ));
            }
            None if !self.same() => {
                lines.push(
                    "  the metrics of all steps are equal: it differs after the last".to_owned(),
                );
            }
            None => {}
        }
        lines.join("\n")
    }

    pub(super) fn as_json(&self) -> Value {
        let outputs: Vec<Value> = self
            .outputs
            .iter()
            .map(|output| {
                let tensor = output.file.as_ref().and_then(|(_, tensor)| tensor.as_ref());
                json!({
                    "output": output.name,
                    "same": output.file.is_none(),
                    "file": output.file.as_ref().map(|(file, _)| file),
                    "tensor": tensor.map(|t| &t.name),
                    "dtype": tensor.map(|t| &t.dtype),
                    "shape": tensor.map(|t| &t.shape),
                    "unequal": tensor.map(|t| t.unequal),
                    "greatest": tensor.and_then(|t| t.greatest),
                    "tensors": tensor.map(|t| t.tensors),
                })
            })
            .collect();
        let step = self.step.as_ref().map(|apart| {
            json!({
                "step": apart.step, "metric": apart.metric,
                "before": apart.before, "now": apart.now,
            })
        });
        json!({
            "how": self.how, "same": self.same(), "reference": self.reference,
            "outputs": outputs, "step": step,
        })
    }
}

fn describe(tensor: &Differs) -> String {
    let form = format!("{} {:?}", tensor.dtype, tensor.shape);
    let what = match (&tensor.form, tensor.greatest) {
        (Some(form), _) => form.clone(),
        (None, Some(greatest)) => {
            format!(
                "{} elements, by at most {}",
                tensor.unequal,
                format::number(greatest)
            )
        }
        (None, None) => format!("{} bytes", tensor.unequal),
    };
    let more = match tensor.tensors {
        1 => String::new(),
        n => format!("; {} more tensors differ", n - 1),
    };
    format!("first in tensor {} ({form}): {what}{more}", tensor.name)
}
