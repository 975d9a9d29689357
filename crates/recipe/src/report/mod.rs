//! `recipe report`'s page: one HTML file without scripts, fonts or requests.
//!
//! | part | from |
//! |---|---|
//! | stages as a graph and a table | the first run's record; who reads whom, from the preimages of results |
//! | curves over steps, runs overlaid | `metrics.jsonl` of the run that computed a stage |
//! | rewards and lengths, samples | `completions` artifacts |

mod dag;
mod plot;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use cache::{Digest, Store};
use serde::Deserialize;
use serde_json::Value;

use crate::fail::Fail;
use crate::format::{duration, number};
use crate::past::{Curve, Run, Stage};
use crate::verbs::runs::{state, text};

/// Completions shown of each stage.
const SAMPLES: usize = 12;
/// Characters of a completion shown.
const LETTERS: usize = 600;

/// The page of these runs, the first in detail and the others' curves beside it.
pub fn page(store: &Store, runs: &[Run]) -> Result<String, Fail> {
    let first = &runs[0];
    let name = text(&first.record, "recipe");
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}</title><style>\n{}</style></head><body>\n<h1>{}</h1>\n",
        escape(&name),
        include_str!("page.css"),
        escape(&name),
    );
    for (colour, run) in runs.iter().enumerate() {
        let seconds = run.record["seconds"].as_f64().unwrap_or(0.0);
        let _ = writeln!(
            out,
            "<div><b class=\"c{}\">{}</b> <span class=\"dim\">{}, {}, {}</span></div>",
            colour % 6,
            escape(&run.id),
            escape(&text(&run.record, "started")),
            escape(&state(&run.record)),
            duration(seconds),
        );
    }
    out.push_str("<h2>Stages</h2>\n");
    out.push_str(&dag::draw(first, &reads(store, first)?));
    out.push_str(&table(first));
    for name in names(runs) {
        let plots = [curves(store, runs, name)?, spreads(store, runs, name)?].concat();
        let samples = match first.stage(name) {
            Some(stage) => samples(store, stage)?,
            None => String::new(),
        };
        if plots.is_empty() && samples.is_empty() {
            continue;
        }
        let _ = writeln!(out, "<h2>{}</h2>", escape(name));
        if !plots.is_empty() {
            let _ = writeln!(out, "<div class=\"plots\">\n{}</div>", plots.concat());
        }
        out.push_str(&samples);
    }
    out.push_str("</body></html>\n");
    Ok(out)
}

/// Stages of all runs, in the order in which they are first met.
fn names(runs: &[Run]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let all = runs.iter().flat_map(|run| &run.stages);
    all.map(|s| s.stage.as_str())
        .filter(|name| seen.insert(*name))
        .collect()
}

/// For each stage the places of those whose outputs it read.
fn reads(store: &Store, run: &Run) -> Result<Vec<Vec<usize>>, Fail> {
    let mut made = BTreeMap::new();
    let mut out = Vec::with_capacity(run.stages.len());
    for (i, stage) in run.stages.iter().enumerate() {
        let mut from = BTreeSet::new();
        if let Some((preimage, _)) = stage.result(store)? {
            let digests = preimage.inputs.values().flatten();
            from.extend(digests.filter_map(|digest| made.get(digest).copied()));
        }
        out.push(from.into_iter().collect());
        for digest in stage.outputs.values() {
            made.entry(digest.clone()).or_insert(i);
        }
    }
    Ok(out)
}

fn table(run: &Run) -> String {
    let mut out = String::from(
        "<div class=\"scroll\"><table><tr><th>stage</th><th>kind</th><th>state</th><th>time</th>\
         <th>result</th></tr>\n",
    );
    for stage in &run.stages {
        let metrics: Vec<String> = stage
            .metrics
            .iter()
            .filter(|(name, _)| !name.starts_with("timing/") && !name.starts_with("performance/"))
            .map(|(name, value)| format!("{} {}", escape(name), number(*value)))
            .collect();
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td class=\"{}\">{}</td><td>{}</td><td class=\"text\">{}</td></tr>",
            escape(&stage.stage),
            escape(&stage.kind),
            class(&stage.status),
            stage.status.replace('_', " "),
            stage.cost_seconds.map(duration).unwrap_or_default(),
            stage.error.as_ref().map_or_else(
                || metrics.join(", "),
                |e| format!("<span class=\"bad\">{}</span>", escape(&e.message))
            ),
        );
    }
    out.push_str("</table></div>\n");
    out
}

/// A plot for each metric of a stage; what people look at first comes first.
fn curves(store: &Store, runs: &[Run], name: &str) -> Result<Vec<String>, Fail> {
    let mut of: BTreeMap<String, Vec<(usize, Curve)>> = BTreeMap::new();
    for (colour, run) in runs.iter().enumerate() {
        if let Some(stage) = run.stage(name) {
            for (metric, curve) in stage.curves(store, run)? {
                of.entry(metric).or_default().push((colour, curve));
            }
        }
    }
    let mut metrics: Vec<_> = of.into_iter().collect();
    metrics.sort_by_key(|(metric, _)| rank(metric));
    let draw = |(metric, curves): &(String, Vec<(usize, Curve)>)| {
        let curves: Vec<(usize, &Curve)> = curves.iter().map(|(c, curve)| (*c, curve)).collect();
        plot::lines(metric, &curves)
    };
    Ok(metrics.iter().filter_map(draw).collect())
}

fn rank(metric: &str) -> usize {
    const FIRST: [&str; 4] = ["train/reward", "train/loss", "train/", "validation/"];
    const LAST: [&str; 3] = ["data/", "performance/", "timing/"];
    let begins = |with: &&str| metric.starts_with(*with);
    match LAST.iter().position(begins) {
        Some(i) => FIRST.len() + 1 + i,
        None => FIRST.iter().position(begins).unwrap_or(FIRST.len()),
    }
}

/// A row of `completions.jsonl`, as `evaluate` and `generate` write it.
#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    task: String,
    #[serde(default)]
    completions: Vec<String>,
    #[serde(default)]
    text: String,
    #[serde(default)]
    tokens: Vec<u32>,
    #[serde(default)]
    rewards: BTreeMap<String, f64>,
    #[serde(default)]
    finish_reason: Value,
}

/// A stage's completions; none where it has none, or the store does not have them any more.
fn completions(store: &Store, stage: &Stage) -> Result<Vec<Completion>, Fail> {
    let digest = stage.outputs.get("completions");
    let Some(digest) = digest.and_then(|hex| hex.parse::<Digest>().ok()) else {
        return Ok(Vec::new());
    };
    if !store.artifact_intact(&digest)?.is_yes() {
        return Ok(Vec::new());
    }
    let manifest = store.manifest(&digest)?;
    let Some(file) = manifest.file("completions.jsonl") else {
        return Ok(Vec::new());
    };
    let bytes = store.get_bytes(&file.blob)?;
    let lines = String::from_utf8_lossy(&bytes);
    Ok(lines
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// Histograms of rewards and lengths.
fn spreads(store: &Store, runs: &[Run], name: &str) -> Result<Vec<String>, Fail> {
    let mut of: BTreeMap<String, Vec<(usize, Vec<f64>)>> = BTreeMap::new();
    for (colour, run) in runs.iter().enumerate() {
        let Some(stage) = run.stage(name) else {
            continue;
        };
        let rows = completions(store, stage)?;
        let mut add = |title: String, values: Vec<f64>| {
            of.entry(title).or_default().push((colour, values));
        };
        let kinds: BTreeSet<&String> = rows.iter().flat_map(|r| r.rewards.keys()).collect();
        for kind in kinds {
            let values = rows.iter().filter_map(|r| r.rewards.get(kind).copied());
            add(format!("reward: {kind}"), values.collect());
        }
        if !rows.is_empty() {
            let lengths = rows.iter().map(|r| r.tokens.len() as f64);
            add("tokens of a completion".into(), lengths.collect());
        }
    }
    Ok(of
        .iter()
        .filter_map(|(title, groups)| plot::histogram(title, groups))
        .collect())
}

fn samples(store: &Store, stage: &Stage) -> Result<String, Fail> {
    let rows = completions(store, stage)?;
    if rows.is_empty() {
        return Ok(String::new());
    }
    let mut out = format!(
        "<p class=\"dim\">{} of {} completions</p>\n<div class=\"scroll\"><table>\
         <tr><th>task</th><th>completion</th><th>reward</th><th>ended by</th></tr>\n",
        rows.len().min(SAMPLES),
        rows.len()
    );
    // spread over all of them, not the first
    for row in rows.iter().step_by(rows.len().div_ceil(SAMPLES)) {
        let said = match row.completions.is_empty() {
            true => row.text.clone(),
            false => row.completions.join("\n---\n"),
        };
        let rewards: Vec<String> = row
            .rewards
            .iter()
            .map(|(name, value)| format!("{} {}", escape(name), number(*value)))
            .collect();
        let _ = writeln!(
            out,
            "<tr><td class=\"text\">{}</td><td class=\"text\">{}</td><td>{}</td><td>{}</td></tr>",
            escape(&short(&row.task)),
            escape(&short(&said)),
            rewards.join(", "),
            escape(row.finish_reason.as_str().unwrap_or_default()),
        );
    }
    out.push_str("</table></div>\n");
    Ok(out)
}

fn short(text: &str) -> String {
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{} ..", &text[..end]),
        None => text.to_owned(),
    }
}

/// The style's class of a stage's state.
fn class(status: &str) -> &'static str {
    match status {
        "failed" | "assertion_failed" | "killed" => "bad",
        "ran" | "reused" | "adopted" => "good",
        _ => "dim",
    }
}

/// Text as it stands in HTML, also in an attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
