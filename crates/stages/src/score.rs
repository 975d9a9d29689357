//! Per-token log-probabilities of given sequences, by the forward of training.
//!
//! One line per row of data, in order: `{"tokens", "logprobs"}` with `logprobs[i]` = log
//! p(tokens[i + 1] | tokens[..= i]); for a preference row `{"chosen": {..}, "rejected": {..}}`.

use data::Tokenizer;
use data::chat::TrainOn;
use data::dataset::{Record, Row};
use data::example::{self, Counts, Limits};
use serde_json::{Value, json};
use spec::kinds::score::Score;
use train::{Branch, Policy, Unit};

use crate::examples;
use crate::failure::{Failure, Result};
use crate::report::Metrics;
use crate::stage::{Done, Lines, Stage};
use crate::training;

/// Rows read, scored and written at a time.
const PART: usize = 512;

pub fn run(stage: &Stage) -> Result<Done> {
    let with: Score = stage.with()?;
    let tokenizer = stage.tokenizer("model")?;
    let policy = training::scorer(stage, stage.input("model")?, with.dtype)?;
    tokenizer.check_fits(policy.decoder().config.vocab_size)?;
    let limits = limits(&policy, with.max_length, with.overlong);
    let data = stage
        .dataset("data")?
        .ok_or_else(|| Failure::data("input 'data' is missing", ""))?;

    let mut lines = match stage.gang.leads() {
        true => Some(Lines::create(stage.output("logprobs")?, "logprobs.jsonl")?),
        false => None,
    };
    let mut counts = Counts::default();
    let mut totals = (0usize, 0f64);
    for first in (0..data.len()).step_by(PART) {
        let rows = first..data.len().min(first + PART);
        let units = rows
            .clone()
            .map(|row| whole(&data.record(row)?, &tokenizer, &limits, &mut counts))
            .collect::<Result<Vec<Unit>>>()?;
        let logprobs = policy.logprobs(&units)?;
        totals.0 += logprobs.iter().flatten().map(Vec::len).sum::<usize>();
        totals.1 += logprobs
            .iter()
            .flatten()
            .flatten()
            .map(|lp| f64::from(*lp))
            .sum::<f64>();
        if let Some(lines) = &mut lines {
            for (unit, logprobs) in units.iter().zip(&logprobs) {
                lines.push(&line(unit, logprobs))?;
            }
        }
        stage.report.progress(rows.end as u64, data.len() as u64);
    }
    if let Some(lines) = lines {
        lines.finish()?;
    }
    Ok(Done::Finished(Metrics::from([
        ("rows".into(), data.len() as f64),
        ("truncated".into(), counts.truncated as f64),
        ("dropped".into(), counts.dropped as f64),
        ("tokens".into(), totals.0 as f64),
        ("mean_logprob".into(), totals.1 / totals.0.max(1) as f64),
    ])))
}

/// The longest row: what the recipe says, or what the model can.
pub fn limits(policy: &Policy, max_length: u64, overlong: spec::kinds::Overlong) -> Limits {
    match max_length {
        0 => Limits {
            max_length: policy.decoder().config.max_positions,
            overlong: example::Overlong::Error,
        },
        n => Limits {
            max_length: n as usize,
            overlong: examples::overlong(overlong),
        },
    }
}

/// Every token of a row but the first, to be scored. A pair keeps its completions apart, their
/// prompt in front of both; a dropped row has no branches.
pub fn whole(
    record: &Record,
    tokenizer: &Tokenizer,
    limits: &Limits,
    counts: &mut Counts,
) -> Result<Unit> {
    let row = record.parse()?;
    if let Row::Tokens { tokens, .. } = &row
        && tokens.len() == 1
    {
        // nothing to predict, but a row of the output all the same
        counts.kept += 1;
        return Ok(Unit {
            branches: vec![all(tokens.clone())],
            ..Unit::default()
        });
    }
    if let Row::Preference { .. } = row {
        let pair = example::preference(record, tokenizer, limits, counts)?;
        let Some(pair) = pair else {
            return Ok(Unit::default());
        };
        let joined = |tokens: Vec<u32>| all([pair.prefix.clone(), tokens].concat());
        let branches = vec![joined(pair.chosen.tokens), joined(pair.rejected.tokens)];
        return Ok(Unit {
            branches,
            ..Unit::default()
        });
    }
    let mut examples = example::sft(record, tokenizer, TrainOn::All, limits, counts)?;
    if examples.len() > 1 && limits.overlong == example::Overlong::Error {
        return Err(Failure::data(
            format!(
                "{}: the text is longer than {} tokens",
                record.place, limits.max_length
            ),
            "split it, or set `max_length`",
        ));
    }
    examples.truncate(1);
    let branches = examples
        .into_iter()
        .map(|example| all(example.tokens))
        .collect();
    Ok(Unit {
        branches,
        ..Unit::default()
    })
}

/// What a row would train on: a pair with its shared prompt, else sequences.
pub fn trained(
    record: &Record,
    tokenizer: &Tokenizer,
    limits: &Limits,
    counts: &mut Counts,
) -> Result<Vec<Unit>> {
    if let Row::Preference { .. } = record.parse()? {
        let pair = example::preference(record, tokenizer, limits, counts)?;
        return Ok(pair.map(examples::preference).into_iter().collect());
    }
    let examples = example::sft(record, tokenizer, TrainOn::Assistant, limits, counts)?;
    Ok(examples.into_iter().map(examples::sequence).collect())
}

fn all(tokens: Vec<u32>) -> Branch {
    let mask = (0..tokens.len()).map(|i| i > 0).collect();
    Branch { tokens, mask }
}

fn line(unit: &Unit, logprobs: &[Vec<f32>]) -> Value {
    let one = |i: usize| json!({ "tokens": unit.branches[i].tokens, "logprobs": logprobs[i] });
    match unit.branches.len() {
        0 => json!({ "tokens": [], "logprobs": [] }),
        1 => one(0),
        _ => json!({ "chosen": one(0), "rejected": one(1) }),
    }
}
