//! A section for each stage: curves, distributions, metrics, samples.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::html::escape;
use super::{plot, samples};
use crate::fail::Fail;
use crate::format::number;
use crate::past::{Curve, Reader, Run};

/// Groups of curves by the beginnings of their names, in the order of what people look at first.
const GROUPS: [(&str, &[&str]); 3] = [
    ("", &["train/", "validation/"]),
    ("", &[""]),
    (
        "Throughput, time and memory",
        &["performance/", "timing/", "memory/"],
    ),
];
/// Within the first group.
const FIRST: [&str; 3] = ["train/reward", "train/loss", "validation/"];

/// Where a stage's section is.
pub fn anchor(stage: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("stage-{}", stage.chars().map(plain).collect::<String>())
}

pub fn draw(reader: &Reader, runs: &[Run]) -> Result<String, Fail> {
    let mut out = String::new();
    for name in names(runs) {
        let curves = curves(reader, runs, name)?;
        let parts = [
            plots(&curves),
            distributions(reader, runs, name)?,
            summary(runs, name, &curves),
            samples::draw(reader, &runs[0], name)?,
        ];
        if parts.iter().all(String::is_empty) {
            continue;
        }
        let kind = runs
            .iter()
            .find_map(|r| r.stage(name))
            .map_or("", |s| s.kind.as_str());
        let _ = writeln!(
            out,
            "<section id=\"{}\"><h2>{} <small>{}</small></h2>\n{}</section>",
            anchor(name),
            escape(name),
            escape(kind),
            parts.concat()
        );
    }
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

/// The curves of each metric, with the number of their run.
type Overlaid = BTreeMap<String, Vec<(usize, Curve)>>;

fn curves(reader: &Reader, runs: &[Run], name: &str) -> Result<Overlaid, Fail> {
    let mut all = Overlaid::new();
    for (colour, run) in runs.iter().enumerate() {
        if let Some(stage) = run.stage(name) {
            for (metric, curve) in reader.curves(run, stage)?.iter() {
                let of = all.entry(metric.clone()).or_default();
                of.push((colour, curve.clone()));
            }
        }
    }
    Ok(all)
}

/// A plot for each metric; what is flat or repeats another is told in a line.
fn plots(curves: &Overlaid) -> String {
    let mut out = String::new();
    let mut drawn: BTreeSet<&str> = BTreeSet::new();
    let mut flat = String::new();
    for (title, begins) in GROUPS {
        let mut figures = Vec::new();
        for metric in group(curves, begins) {
            let of = &curves[metric];
            let twin = || drawn.iter().find(|other| curves[**other] == *of);
            if let Some(value) = constant(of) {
                let _ = write!(
                    flat,
                    "<span>{} <b>{}</b></span> ",
                    escape(metric),
                    number(value)
                );
            } else if let Some(twin) = twin() {
                let _ = write!(flat, "<span>{} as {}</span> ", escape(metric), escape(twin));
            } else {
                let lines: Vec<_> = of.iter().map(|(c, curve)| (*c, curve)).collect();
                figures.extend(plot::lines(metric, &lines));
                drawn.insert(metric);
            }
        }
        if figures.is_empty() {
            continue;
        }
        if !title.is_empty() {
            let _ = writeln!(out, "<h3>{title}</h3>");
        }
        let _ = writeln!(out, "<div class=\"plots\">\n{}</div>", figures.concat());
    }
    if !flat.is_empty() {
        let _ = writeln!(out, "<p class=\"flat\">At every step: {flat}</p>");
    }
    out
}

/// The metrics of a group that belong to no other more closely, the first ones first.
fn group<'c>(curves: &'c Overlaid, begins: &[&str]) -> Vec<&'c str> {
    let closest = |metric: &str| {
        let fits = GROUPS.iter().flat_map(|(_, all)| all.iter());
        fits.filter(|b| metric.starts_with(**b))
            .map(|b| b.len())
            .max()
    };
    let of = |metric: &&str| {
        let fits = begins.iter().filter(|b| metric.starts_with(**b));
        fits.map(|b| b.len()).max() == closest(metric)
    };
    let mut metrics: Vec<&str> = curves.keys().map(String::as_str).filter(of).collect();
    metrics.sort_by_key(|metric| {
        let first = FIRST.iter().position(|f| metric.starts_with(f));
        first.unwrap_or(FIRST.len())
    });
    metrics
}

/// The one value that a metric has at every step of every run.
fn constant(curves: &[(usize, Curve)]) -> Option<f64> {
    let mut all = curves.iter().flat_map(|(_, curve)| curve.values().copied());
    let first = all.next()?;
    all.all(|value| value == first).then_some(first)
}

/// Histograms of rewards and lengths.
fn distributions(reader: &Reader, runs: &[Run], name: &str) -> Result<String, Fail> {
    let mut of: BTreeMap<String, Vec<(usize, Vec<f64>)>> = BTreeMap::new();
    for (colour, run) in runs.iter().enumerate() {
        let Some(stage) = run.stage(name) else {
            continue;
        };
        let rows = reader.completions(stage)?;
        let mut add = |title: String, values: Vec<f64>| {
            of.entry(title).or_default().push((colour, values));
        };
        let kinds: BTreeSet<&String> = rows.iter().flat_map(|r| r.rewards.keys()).collect();
        for kind in kinds {
            let values = rows.iter().filter_map(|r| r.rewards.get(kind).copied());
            add(format!("reward: {kind}"), values.collect());
        }
        if !rows.is_empty() {
            let lengths = rows.iter().map(|r| r.length() as f64);
            add("tokens of a completion".into(), lengths.collect());
        }
    }
    let figures = of.iter();
    let figures: Vec<String> = figures
        .filter_map(|(title, groups)| plot::histogram(title, groups))
        .collect();
    Ok(match figures.is_empty() {
        true => String::new(),
        false => format!(
            "<h3>Distributions</h3>\n<div class=\"plots\">\n{}</div>\n",
            figures.concat()
        ),
    })
}

/// Summary metrics that no curve shows, a column for each run.
fn summary(runs: &[Run], name: &str, curves: &Overlaid) -> String {
    let stages: Vec<_> = runs.iter().map(|run| run.stage(name)).collect();
    let all = stages.iter().flatten().flat_map(|s| s.metrics.keys());
    let metrics: BTreeSet<&String> = all.filter(|m| !curves.contains_key(*m)).collect();
    if metrics.is_empty() {
        return String::new();
    }
    let mut out = String::from("<div class=\"scroll\"><table class=\"summary\"><tbody>\n");
    for metric in metrics {
        let _ = write!(out, "<tr><td>{}</td>", escape(metric));
        for (colour, stage) in stages.iter().enumerate() {
            let value = stage.and_then(|s| s.metrics.get(metric));
            let value = value.map(|v| number(*v));
            let _ = write!(
                out,
                "<td class=\"num\"><b class=\"c{}\">{}</b></td>",
                colour % plot::COLOURS,
                value.unwrap_or_default()
            );
        }
        out.push_str("</tr>\n");
    }
    out + "</tbody></table></div>\n"
}
