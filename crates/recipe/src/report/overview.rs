//! The stages of a run: numbers first, then the graph, the times, and a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::dag::{self, Node};
use super::html::{class, escape, pill};
use super::{stages, timeline};
use crate::fail::Fail;
use crate::format::{duration, number};
use crate::past::{Reader, Run, Stage, Story, of_mathematics};

/// Metrics of a stage in the table, and which come first.
const SHOWN: usize = 4;
const FIRST: [&str; 7] = [
    "accuracy",
    "perplexity",
    "train/reward",
    "validation/loss",
    "train/loss",
    "train/kl",
    "rewards/accuracies",
];

pub fn draw(reader: &Reader, run: &Run, story: &Story) -> Result<String, Fail> {
    let mut out = tiles(run);
    out.push_str("<section id=\"stages\"><h2>Stages</h2>\n");
    let nodes = nodes(reader, run, story)?;
    out.push_str(&dag::draw(&nodes));
    out.push_str(&timeline::draw(run, story));
    out.push_str(&table(run, story));
    out.push_str("</section>\n");
    Ok(out)
}

/// A stage's state as it is now, and the word of its class.
fn now(stage: &Stage, story: &Story) -> (String, String) {
    let told = story.stages.get(&stage.stage);
    match told.and_then(|t| t.phase().map(|phase| (t, phase))) {
        Some((told, phase)) if stage.status == "not_run" => {
            let class = if told.runs() { "running" } else { "not_run" };
            (phase, class.to_owned())
        }
        _ => (stage.state(), stage.status.clone()),
    }
}

fn tiles(run: &Run) -> String {
    let count = |states: &[&str]| {
        let of = |s: &&Stage| states.contains(&s.status.as_str());
        run.stages.iter().filter(of).count()
    };
    let mut tiles = vec![
        (
            "time",
            duration(run.record["seconds"].as_f64().unwrap_or(0.0)),
        ),
        ("stages", run.stages.len().to_string()),
        ("computed", count(&["ran", "assertion_failed"]).to_string()),
        ("reused", count(&["reused", "adopted"]).to_string()),
    ];
    let bad = count(&["failed", "assertion_failed", "killed"]);
    if bad > 0 {
        tiles.push(("failed", bad.to_string()));
    }
    let judged: Vec<_> = run.stages.iter().flat_map(|s| &s.verdicts).collect();
    if !judged.is_empty() {
        let hold = judged.iter().filter(|j| j.holds).count();
        tiles.push(("assertions hold", format!("{hold} of {}", judged.len())));
    }
    let mut out = String::from("<dl class=\"tiles\">");
    for (name, value) in tiles {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    out + "</dl>\n"
}

/// The stages and what they read: of a result, what its preimage says; else nothing is known.
fn nodes(reader: &Reader, run: &Run, story: &Story) -> Result<Vec<Node>, Fail> {
    let mut made: BTreeMap<&str, usize> = BTreeMap::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut out = Vec::with_capacity(run.stages.len());
    for (i, stage) in run.stages.iter().enumerate() {
        let mut reads: BTreeSet<usize> = BTreeSet::new();
        let place = |name: &String| places.get(name.as_str()).copied();
        reads.extend(stage.reads.iter().flatten().filter_map(place));
        if stage.reads.is_none()
            && let Some(result) = reader.result(stage)?
        {
            let digests = result.preimage.inputs.values().flatten();
            reads.extend(digests.filter_map(|digest| made.get(digest.as_str()).copied()));
        }
        let (state, status) = now(stage, story);
        let time = stage.cost_seconds.map(|s| format!(" {}", duration(s)));
        out.push(Node {
            name: stage.stage.clone(),
            detail: format!("{} · {state}{}", stage.kind, time.unwrap_or_default()),
            status,
            reads: reads.into_iter().collect(),
        });
        places.insert(&stage.stage, i);
        for digest in stage.outputs.values() {
            made.entry(digest).or_insert(i);
        }
    }
    Ok(out)
}

fn table(run: &Run, story: &Story) -> String {
    let mut out = String::from(
        "<div class=\"scroll\"><table class=\"stack\"><thead><tr><th>stage</th><th>kind</th><th>state</th>\
         <th class=\"num\">time</th><th>result</th></tr></thead><tbody>\n",
    );
    for stage in &run.stages {
        let (state, status) = now(stage, story);
        let why = match (&stage.error, &stage.why) {
            (Some(error), _) => format!("<span class=\"bad\">{}</span>", escape(&error.message)),
            (None, Some(why)) if stage.metrics.is_empty() => {
                format!("<span class=\"dim\">{}</span>", escape(why))
            }
            _ => metrics(stage),
        };
        let _ = writeln!(
            out,
            "<tr><td><a href=\"#{}\">{}</a></td><td class=\"dim\">{}</td><td>{}</td>\
             <td class=\"num\">{}</td><td class=\"text\">{why}</td></tr>",
            stages::anchor(&stage.stage),
            escape(&stage.stage),
            escape(&stage.kind),
            pill(class(&status), &state),
            stage.cost_seconds.map(duration).unwrap_or_default(),
        );
    }
    out + "</tbody></table></div>\n"
}

/// The summary metrics that say most of a stage: what is about the model, not the data.
fn metrics(stage: &Stage) -> String {
    let about = |name: &str| of_mathematics(name) && !name.starts_with("data/");
    let all = stage.metrics.iter();
    let mut shown: Vec<_> = all.filter(|(name, _)| about(name)).collect();
    let rank = |name: &str| FIRST.iter().position(|first| name == *first);
    shown.sort_by_key(|(name, _)| rank(name).unwrap_or(FIRST.len()));
    let shown: Vec<String> = shown
        .into_iter()
        .take(SHOWN)
        .map(|(name, value)| {
            let value = number(*value);
            format!(
                "<span class=\"metric\">{} <b>{value}</b></span>",
                escape(name)
            )
        })
        .collect();
    shown.join(" ")
}
