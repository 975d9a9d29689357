//! Generated data: demonstrations and preferences of the `addition` environment.

use crate::env::{Addition, Split};
use crate::error::{Error, Result};
use crate::rng::Draw;
use serde_json::json;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// Which rows to write.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    pub rows: usize,
    /// Problems of the test split are those the environment holds out of training.
    pub split: Split,
    /// Share of the answers that are wrong, in 0..=1.
    pub noise: f64,
    pub seed: u64,
}

/// Rows `{"question", "answer"}` (one user and one assistant message) of distinct problems, a
/// share of them with a wrong answer.
pub fn demonstrations(of: &Addition, how: &Rows, path: &Path) -> Result<()> {
    let rows = problems(of, how)?
        .into_iter()
        .map(|(problem, wrong, noisy)| {
            let answer = if noisy { wrong } else { problem.answer };
            json!({"question": problem.prompt(), "answer": answer.to_string()})
        });
    write(rows, path)
}

/// Rows `{"question", "chosen", "rejected"}` of distinct problems: the right answer against a
/// wrong one, and the other way round for a share of them.
pub fn preferences(of: &Addition, how: &Rows, path: &Path) -> Result<()> {
    let rows = problems(of, how)?
        .into_iter()
        .map(|(problem, wrong, noisy)| {
            let (chosen, rejected) = match noisy {
                true => (wrong, problem.answer),
                false => (problem.answer, wrong),
            };
            json!({
                "question": problem.prompt(),
                "chosen": chosen.to_string(),
                "rejected": rejected.to_string(),
            })
        });
    write(rows, path)
}

type Drawn = (crate::env::Problem, i64, bool);

/// Distinct problems, each with a wrong answer and whether the noise takes it.
fn problems(of: &Addition, how: &Rows) -> Result<Vec<Drawn>> {
    let mut seen = HashSet::new();
    let mut drawn = Vec::with_capacity(how.rows);
    let most = 1000 + 100 * how.rows as u64;
    for index in 0..most {
        if drawn.len() == how.rows {
            break;
        }
        let problem = of.problem(how.split, index, how.seed)?;
        if seen.insert(problem.text.clone()) {
            let mut draw = Draw::new(how.seed, "synth.addition", 0, index);
            let noisy = draw.chance(how.noise);
            drawn.push((wrong_answer(problem.answer, &mut draw), problem, noisy));
        }
    }
    if drawn.len() < how.rows {
        return Err(Error::Environment(format!(
            "addition: only {} distinct problems in {most} draws, {} asked for; give more digits",
            drawn.len(),
            how.rows
        )));
    }
    Ok((drawn.into_iter())
        .map(|(wrong, problem, noisy)| (problem, wrong, noisy))
        .collect())
}

/// The answer with one digit changed, as a slip would: as long as the right one, never equal.
fn wrong_answer(answer: i64, draw: &mut Draw) -> i64 {
    let text = answer.unsigned_abs().to_string();
    let at = draw.below(text.len() as u64) as usize;
    let mut digits: Vec<u8> = text.into_bytes();
    let lead = at == 0 && digits.len() > 1;
    // A leading digit stays 1 to 9, others 0 to 9.
    let (base, choices) = if lead { (1, 9) } else { (0, 10) };
    let old = u64::from(digits[at] - b'0') - base;
    let new = (old + 1 + draw.below(choices - 1)) % choices + base;
    digits[at] = b'0' + new as u8;
    let value = (digits.iter()).fold(0i64, |n, d| n * 10 + i64::from(d - b'0'));
    if answer < 0 { -value } else { value }
}

fn write(rows: impl Iterator<Item = serde_json::Value>, path: &Path) -> Result<()> {
    let mut text = Vec::new();
    for row in rows {
        writeln!(text, "{row}").map_err(Error::io(path))?;
    }
    std::fs::write(path, text).map_err(Error::io(path))
}
