//! `recipe compare A B`: what differs between two runs, and what follows from it.
//!
//! A stage differs by itself where its configuration, its trainer, its declared environment or the
//! content of a source differs; where only results of other stages do, it follows from them.

use std::collections::BTreeMap;

use cache::Store;
use serde_json::{Value, json};
use spec::Difference;

use crate::args::CompareArgs;
use crate::fail::Fail;
use crate::format::{duration, number, table};
use crate::past::{Curve, Run, Stage, of_mathematics};
use crate::{output, project};

pub fn run(args: CompareArgs) -> Result<u8, Fail> {
    let store = project::open_store(&args.store)?;
    let (a, b) = (Run::read(&store, &args.a)?, Run::read(&store, &args.b)?);
    let mut stages = Vec::new();
    for stage in &a.stages {
        stages.push(pair(&store, &a, &b, stage)?);
    }
    for stage in b.stages.iter().filter(|s| a.stage(&s.stage).is_none()) {
        stages.push(Pair::only(stage, "b"));
    }
    if args.json {
        let stages: Vec<_> = stages.iter().map(Pair::as_json).collect();
        output::json(&json!({ "version": 1, "a": a.id, "b": b.id, "stages": stages }));
    } else {
        output::line(as_text(&a, &b, &stages));
    }
    Ok(0)
}

/// A stage in both runs, or in one.
struct Pair {
    stage: String,
    relation: Relation,
    /// What differs by itself.
    differs: Vec<Difference>,
    /// Stages of the runs whose results it reads and that differ.
    follows: Vec<String>,
    /// Fields of the numerics that differ: rounding, not mathematics.
    numerics: Vec<Difference>,
    /// Summary metrics that are not equal.
    metrics: Vec<(String, Option<f64>, Option<f64>)>,
    curves: Vec<Apart>,
    seconds: [Option<f64>; 2],
}

#[derive(Clone, Copy, PartialEq)]
enum Relation {
    /// One key: the same computation.
    Same,
    /// Another key, the same outputs.
    Equal,
    Differs,
    /// A run did not come to know what it reads.
    Unknown,
    OnlyA,
    OnlyB,
}

impl Relation {
    fn word(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Equal => "equal",
            Self::Differs => "differs",
            Self::Unknown => "unknown",
            Self::OnlyA => "only_a",
            Self::OnlyB => "only_b",
        }
    }
}

/// How two curves of a metric come apart.
struct Apart {
    metric: String,
    /// The first step where they are not equal.
    from: u64,
    /// The largest difference at a step that both have, and the step.
    most: f64,
    at: u64,
    last: [f64; 2],
}

fn pair(store: &Store, a: &Run, b: &Run, left: &Stage) -> Result<Pair, Fail> {
    let Some(right) = b.stage(&left.stage) else {
        return Ok(Pair::only(left, "a"));
    };
    let mut pair = Pair {
        seconds: [left.cost_seconds, right.cost_seconds],
        ..Pair::only(left, "a")
    };
    pair.relation = match (&left.key, &right.key) {
        (Some(a), Some(b)) if a == b => Relation::Same,
        (Some(_), Some(_)) if !left.outputs.is_empty() && left.outputs == right.outputs => {
            Relation::Equal
        }
        (Some(_), Some(_)) => Relation::Differs,
        _ => Relation::Unknown,
    };
    if let (Some(before), Some(now)) = (left.result(store)?, right.result(store)?) {
        let made_by = |digest: &Option<Value>, run: &Run| {
            let digest = digest.as_ref()?.as_str()?;
            let of = |s: &&Stage| s.outputs.values().any(|d| d == digest);
            run.stages.iter().find(of).map(|s| s.stage.clone())
        };
        for difference in now.0.diff(&before.0) {
            let from = made_by(&difference.before, a).or(made_by(&difference.now, b));
            match from.filter(|_| difference.field.starts_with("inputs.")) {
                Some(stage) if !pair.follows.contains(&stage) => pair.follows.push(stage),
                Some(_) => {}
                None => pair.differs.push(difference),
            }
        }
        pair.numerics = spec::difference(&before.1.numerics, &now.1.numerics);
    }
    if pair.relation != Relation::Same {
        pair.metrics = unequal(&left.metrics, &right.metrics);
        pair.curves = apart(&left.curves(store, a)?, &right.curves(store, b)?);
    }
    Ok(pair)
}

fn unequal(
    a: &BTreeMap<String, f64>,
    b: &BTreeMap<String, f64>,
) -> Vec<(String, Option<f64>, Option<f64>)> {
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    let both = |name: &String| (name.clone(), a.get(name).copied(), b.get(name).copied());
    names
        .into_iter()
        .map(both)
        .filter(|(_, a, b)| a != b)
        .collect()
}

/// Curves of both that are not equal, without those of time.
fn apart(a: &BTreeMap<String, Curve>, b: &BTreeMap<String, Curve>) -> Vec<Apart> {
    let mut out = Vec::new();
    for (metric, left) in a.iter().filter(|(name, _)| of_mathematics(name)) {
        let Some(right) = b.get(metric) else { continue };
        let steps = left
            .iter()
            .filter_map(|(step, x)| Some((*step, *x, *right.get(step)?)));
        let mut found: Option<Apart> = None;
        let mut last = [f64::NAN; 2];
        for (step, x, y) in steps {
            last = [x, y];
            let by = (x - y).abs();
            if by == 0.0 {
                continue;
            }
            let apart = found.get_or_insert_with(|| Apart {
                metric: metric.clone(),
                from: step,
                most: by,
                at: step,
                last,
            });
            if by > apart.most {
                (apart.most, apart.at) = (by, step);
            }
        }
        out.extend(found.map(|apart| Apart { last, ..apart }));
    }
    out
}

impl Pair {
    fn only(stage: &Stage, run: &str) -> Pair {
        let seconds = stage.cost_seconds;
        Pair {
            stage: stage.stage.clone(),
            relation: match run {
                "a" => Relation::OnlyA,
                _ => Relation::OnlyB,
            },
            differs: Vec::new(),
            follows: Vec::new(),
            numerics: Vec::new(),
            metrics: Vec::new(),
            curves: Vec::new(),
            seconds: match run {
                "a" => [seconds, None],
                _ => [None, seconds],
            },
        }
    }

    fn as_json(&self) -> Value {
        let metrics: Vec<_> = self
            .metrics
            .iter()
            .map(|(name, a, b)| json!({ "metric": name, "a": a, "b": b }))
            .collect();
        let curves: Vec<_> = self
            .curves
            .iter()
            .map(|c| {
                json!({
                    "metric": c.metric, "from": c.from, "most": c.most, "at": c.at, "last": c.last,
                })
            })
            .collect();
        json!({
            "stage": self.stage, "relation": self.relation.word(), "differs": self.differs,
            "follows": self.follows, "numerics": self.numerics, "metrics": metrics,
            "curves": curves, "seconds": self.seconds,
        })
    }
}

fn as_text(a: &Run, b: &Run, pairs: &[Pair]) -> String {
    let mut out = format!("a  {}\nb  {}\n", a.id, b.id);
    let roots: Vec<&Pair> = pairs.iter().filter(|p| !p.differs.is_empty()).collect();
    out.push_str("\nwhat differs (a -> b):\n");
    for pair in &roots {
        for field in &pair.differs {
            out.push_str(&format!("  {}: {field}\n", pair.stage));
        }
    }
    for pair in pairs {
        match pair.relation {
            Relation::OnlyA => out.push_str(&format!("  {}: only in a\n", pair.stage)),
            Relation::OnlyB => out.push_str(&format!("  {}: only in b\n", pair.stage)),
            Relation::Unknown => {
                out.push_str(&format!("  {}: not reached in both\n", pair.stage));
            }
            _ => {}
        }
        for field in &pair.numerics {
            out.push_str(&format!("  {}: numerics.{field}\n", pair.stage));
        }
    }
    if out.ends_with(":\n") {
        out.push_str("  nothing\n");
    }
    let follows: Vec<String> = pairs
        .iter()
        .filter(|p| !p.follows.is_empty())
        .map(|p| match p.relation {
            Relation::Equal => format!("  {} <- {}: equal again", p.stage, p.follows.join(", ")),
            _ => format!("  {} <- {}", p.stage, p.follows.join(", ")),
        })
        .collect();
    if !follows.is_empty() {
        out.push_str(&format!("\nwhat follows:\n{}\n", follows.join("\n")));
    }
    let mut rows = vec![
        ["stage", "metric", "a", "b", "apart"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let shown = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), number);
    for pair in pairs {
        for (name, x, y) in &pair.metrics {
            let by = x.zip(*y).map(|(x, y)| y - x);
            let by = by.map_or_else(String::new, |d| {
                format!("{}{}", if d > 0.0 { "+" } else { "" }, number(d))
            });
            rows.push(vec![
                pair.stage.clone(),
                name.clone(),
                shown(*x),
                shown(*y),
                by,
            ]);
        }
        for c in &pair.curves {
            rows.push(vec![
                pair.stage.clone(),
                format!("{} by step", c.metric),
                number(c.last[0]),
                number(c.last[1]),
                format!(
                    "from step {}, most {} at step {}",
                    c.from,
                    number(c.most),
                    c.at
                ),
            ]);
        }
        if let [Some(x), Some(y)] = pair.seconds
            && pair.relation != Relation::Same
        {
            let ratio = format!("{:.2} x", y / x);
            rows.push(vec![
                pair.stage.clone(),
                "time".to_owned(),
                duration(x),
                duration(y),
                ratio,
            ]);
        }
    }
    if rows.len() > 1 {
        out.push_str(&format!("\n{}\n", table(&rows)));
    }
    out.truncate(out.trim_end().len());
    out
}
