//! Sample completions with their rewards.

use std::fmt::Write;

use super::html::{escape, short};
use crate::fail::Fail;
use crate::format::{number, plural};
use crate::past::{Completion, Reader, Run};

/// Completions shown of each stage, and characters of each text.
const SHOWN: usize = 12;
const LETTERS: usize = 800;

pub fn draw(reader: &Reader, run: &Run, name: &str) -> Result<String, Fail> {
    let Some(stage) = run.stage(name) else {
        return Ok(String::new());
    };
    let rows = reader.completions(stage)?;
    if rows.is_empty() {
        return Ok(String::new());
    }
    let mut out = format!(
        "<h3>Samples <small>{} of {}</small></h3>\n<div class=\"samples\">\n",
        rows.len().min(SHOWN),
        rows.len()
    );
    // as many of each reward as there are among all, the least first
    let mut sorted: Vec<&Completion> = rows.iter().collect();
    let reward = |row: &Completion| row.rewards.values().sum::<f64>();
    sorted.sort_by(|a, b| reward(a).total_cmp(&reward(b)));
    for row in sorted.into_iter().step_by(rows.len().div_ceil(SHOWN)) {
        out.push_str(&sample(row));
    }
    Ok(out + "</div>\n")
}

fn sample(row: &Completion) -> String {
    let mut out = String::from("<article>");
    let asked = row.asked();
    if !asked.is_empty() {
        let _ = write!(
            out,
            "<p class=\"asked\">{}</p>",
            escape(&short(&asked, LETTERS))
        );
    }
    for turn in row.turns() {
        let _ = write!(
            out,
            "<p class=\"said\">{}</p>",
            escape(&short(turn, LETTERS))
        );
    }
    out.push_str("<footer>");
    for (name, value) in &row.rewards {
        let class = match *value {
            v if v >= 1.0 => "good",
            v if v <= 0.0 => "bad",
            _ => "warn",
        };
        let _ = write!(
            out,
            "<span class=\"pill {class}\">{} {}</span> ",
            escape(name),
            number(*value)
        );
    }
    let mut notes = vec![plural(row.length(), "token")];
    if !row.ended_by().is_empty() {
        notes.push(format!("ended by {}", row.ended_by()));
    }
    let _ = writeln!(
        out,
        "<span class=\"dim\">{}</span></footer></article>",
        escape(&notes.join(", "))
    );
    out
}
