//! A comparison as text.

use super::{Comparison, Pair, Relation, Side};
use crate::format::{duration, number, table};

pub fn as_text(comparison: &Comparison) -> String {
    let Comparison {
        runs: [a, b],
        roots,
        pairs,
    } = comparison;
    let mut out = format!("a  {a}\nb  {b}\n");
    out.push_str("\nwhat differs (a -> b):\n");
    for root in roots {
        out.push_str(&format!("  {}\n", root.words()));
    }
    for pair in pairs {
        match pair.relation {
            Relation::Only(Side::A) => out.push_str(&format!("  {}: only in a\n", pair.stage)),
            Relation::Only(Side::B) => out.push_str(&format!("  {}: only in b\n", pair.stage)),
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
    rows.extend(pairs.iter().flat_map(cells));
    if rows.len() > 1 {
        out.push_str(&format!("\n{}\n", table(&rows)));
    }
    out.truncate(out.trim_end().len());
    out
}

/// The rows of a stage in the table of numbers.
fn cells(pair: &Pair) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut row = |metric: String, a: String, b: String, apart: String| {
        rows.push(vec![pair.stage.clone(), metric, a, b, apart]);
    };
    let shown = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), number);
    for metric in &pair.metrics {
        let value = |v: &Option<serde_json::Value>| v.as_ref().and_then(serde_json::Value::as_f64);
        let (x, y) = (value(&metric.before), value(&metric.now));
        let by = x.zip(y).map(|(x, y)| y - x);
        let by = by.map_or_else(String::new, |d| {
            format!("{}{}", if d > 0.0 { "+" } else { "" }, number(d))
        });
        row(metric.field.clone(), shown(x), shown(y), by);
    }
    for c in &pair.curves {
        row(
            format!("{} by step", c.metric),
            number(c.last[0]),
            number(c.last[1]),
            format!(
                "from step {}, most {} at step {}",
                c.from,
                number(c.most),
                c.at
            ),
        );
    }
    if let [Some(x), Some(y)] = pair.seconds
        && pair.relation != Relation::Same
    {
        let ratio = format!("{:.2} x", y / x);
        row("time".to_owned(), duration(x), duration(y), ratio);
    }
    rows
}
