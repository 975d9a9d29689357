//! Log-probabilities of the reference model, known before training: by row, branch and token.

use std::path::Path;

use data::dataset::Dataset;
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use train::{Policy, Tokens, Unit, UnitSpan};

use crate::checkpoints::Checkpoints;
use crate::failure::{Failure, Result};
use crate::stage::Stage;

/// For each row, and each of its branches, the log-probabilities of its masked tokens. Rows that
/// nothing asked for are empty.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Logprobs(pub Vec<Vec<Vec<f32>>>);

impl Logprobs {
    /// Scores the units of each batch together, as training will.
    pub fn compute(model: &Policy, units: &[Unit], batches: &[Vec<usize>]) -> Result<Logprobs> {
        let mut all = vec![Vec::new(); units.len()];
        for batch in batches {
            let picked: Vec<Unit> = batch.iter().map(|row| units[*row].clone()).collect();
            for (row, values) in batch.iter().zip(model.logprobs(&picked)?) {
                all[*row] = values;
            }
        }
        Ok(Logprobs(all))
    }

    /// Reads what a `score` stage wrote about the rows that became `units`. Tokens must match.
    pub fn from_score(scored: &Dataset, units: &[Unit], rows: &[usize]) -> Result<Logprobs> {
        let mut all = Vec::with_capacity(units.len());
        for (unit, row) in units.iter().zip(rows) {
            if *row >= scored.len() {
                return Err(Failure::data(
                    format!(
                        "input 'logprobs' has {} rows, 'data' has more",
                        scored.len()
                    ),
                    "score the very rows that are trained on",
                ));
            }
            let record = scored.record(*row)?;
            let names = ["chosen", "rejected"];
            let branches = unit.branches.iter().zip(names).map(|(branch, name)| {
                let tokens: Vec<u32> = unit.prefix.iter().chain(&branch.tokens).copied().collect();
                let logprobs = matching(record.value.get(name), &tokens).map_err(|why| {
                    Failure::data(
                        format!("{}: {name}: {why}", record.place),
                        "score the very rows that are trained on, with the same tokenizer and `max_length`",
                    )
                })?;
                // log p of tokens[i + 1] stands at i
                let at = |i: usize| logprobs[unit.prefix.len() + i - 1];
                let masked = branch.mask.iter().enumerate().filter(|(_, masked)| **masked);
                Ok(masked.map(|(i, _)| at(i)).collect())
            });
            all.push(branches.collect::<Result<_>>()?);
        }
        Ok(Logprobs(all))
    }

    /// The values for the rows of a microbatch, `[N]`; `row` says which row a unit is.
    pub fn rows(
        &self,
        tokens: &Tokens,
        row: impl Fn(usize) -> usize,
    ) -> std::result::Result<Tensor, train::Error> {
        let values: Vec<f32> = tokens
            .units
            .iter()
            .flat_map(|span| self.0[row(span.unit)].iter().flatten().copied())
            .collect();
        let wanted = tokens.logp.numel();
        if values.len() != wanted {
            return Err(train::Error::Loss(format!(
                "{} reference log-probabilities for {wanted} tokens",
                values.len()
            )));
        }
        Ok(Tensor::from_slice(&values)
            .to_kind(tokens.logp.kind())
            .to_device(tokens.logp.device()))
    }
}

/// The log-probabilities of `{"tokens", "logprobs"}` if the tokens are `tokens`.
fn matching(scored: Option<&Value>, tokens: &[u32]) -> std::result::Result<Vec<f32>, String> {
    let scored = scored.ok_or("missing; this is no score of preference rows")?;
    let list = |name: &str| {
        scored
            .get(name)
            .and_then(Value::as_array)
            .ok_or(format!("has no list '{name}'"))
    };
    let theirs = list("tokens")?;
    let differ = theirs
        .iter()
        .zip(tokens)
        .position(|(a, b)| a.as_u64() != Some(u64::from(*b)));
    if let Some(i) = differ {
        return Err(format!(
            "token {i} is {}, the data has {}",
            theirs[i], tokens[i]
        ));
    }
    if theirs.len() != tokens.len() {
        return Err(format!(
            "{} tokens, the data has {}",
            theirs.len(),
            tokens.len()
        ));
    }
    let logprobs: Option<Vec<f32>> = list("logprobs")?
        .iter()
        .map(|value| value.as_f64().map(|v| v as f32))
        .collect();
    let logprobs = logprobs.ok_or("a log-probability is not a number")?;
    if logprobs.len() + 1 != tokens.len() {
        return Err(format!(
            "{} logprobs for {} tokens",
            logprobs.len(),
            tokens.len()
        ));
    }
    Ok(logprobs)
}

/// What an earlier attempt's checkpoint carried as `name`.
pub fn restore(checkpoints: &Checkpoints, name: &str) -> Result<Option<Logprobs>> {
    match checkpoints.carried(name) {
        Some(path) => read(&path).map(Some),
        None => Ok(None),
    }
}

/// Makes every checkpoint carry `logprobs` as `name`.
pub fn carry(
    stage: &Stage,
    checkpoints: &mut Checkpoints,
    name: &str,
    logprobs: &Logprobs,
) -> Result<()> {
    let path = stage.job.scratch.join(name);
    if stage.gang.leads() {
        write(&path, logprobs)?;
    }
    checkpoints.carry(path);
    Ok(())
}

/// `lengths` `[rows * branches]` by row and branch, `branches` `[rows]`, `values` all in order.
fn write(path: &Path, logprobs: &Logprobs) -> Result<()> {
    let branches: Vec<i64> = logprobs.0.iter().map(|row| row.len() as i64).collect();
    let lengths: Vec<i64> = logprobs
        .0
        .iter()
        .flatten()
        .map(|branch| branch.len() as i64)
        .collect();
    let values: Vec<f32> = logprobs.0.iter().flatten().flatten().copied().collect();
    let tensors = [
        ("branches", Tensor::from_slice(&branches)),
        ("lengths", Tensor::from_slice(&lengths)),
        ("values", Tensor::from_slice(&values)),
    ];
    Tensor::write_safetensors(&tensors, path)
        .map_err(|e| crate::failure::disk(&path.display().to_string(), &std::io::Error::other(e)))
}

fn read(path: &Path) -> Result<Logprobs> {
    let broken = |why: String| {
        Failure::new(
            spec::FailureClass::Integrity,
            "W0602",
            format!("{}: {why}", path.display()),
            "run with `--resume never`",
        )
    };
    let tensors = Tensor::read_safetensors(path).map_err(|e| broken(e.to_string()))?;
    let get = |name: &str| {
        let found = tensors
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, tensor)| tensor);
        found.ok_or_else(|| broken(format!("no tensor '{name}'")))
    };
    let counts = |name: &str| -> Result<Vec<i64>> {
        Vec::try_from(get(name)?).map_err(|e| broken(format!("'{name}': {e}")))
    };
    let values: Vec<f32> =
        Vec::try_from(get("values")?).map_err(|e| broken(format!("'values': {e}")))?;
    let (mut lengths, mut values) = (counts("lengths")?.into_iter(), values.into_iter());
    let mut rows = Vec::new();
    for branches in counts("branches")? {
        let mut row = Vec::new();
        for _ in 0..branches {
            let length = lengths.next().unwrap_or(0) as usize;
            row.push(values.by_ref().take(length).collect());
        }
        rows.push(row);
    }
    Ok(Logprobs(rows))
}

/// Log-probabilities by unit, branch and token as one `[N]` tensor and where each unit lies in it.
pub fn flatten(values: &[Vec<Vec<f32>>], device: Device) -> (Tensor, Vec<UnitSpan>) {
    let mut start = 0;
    let mut units = Vec::with_capacity(values.len());
    for (unit, branches) in values.iter().enumerate() {
        let span = |branch: &Vec<f32>| {
            start += branch.len();
            start - branch.len()..start
        };
        units.push(UnitSpan {
            unit,
            branches: branches.iter().map(span).collect(),
        });
    }
    let flat: Vec<f32> = values.iter().flatten().flatten().copied().collect();
    (
        Tensor::from_slice(&flat)
            .to_kind(Kind::Float)
            .to_device(device),
        units,
    )
}
