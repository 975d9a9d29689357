//! What the stages took: time, processors, accelerators, energy, memory. Of a reused stage, what it
//! took when it was computed.

use std::fmt::Write;

use cache::Cost;

use super::html::escape;
use crate::fail::Fail;
use crate::format::{bytes, duration, number};
use crate::past::{Reader, Run};
use crate::spending;

/// Columns that are there where something was measured.
struct Columns {
    gpu: bool,
    energy: bool,
    /// What bars are shares of: seconds and bytes.
    longest: f64,
    most: u64,
}

pub fn draw(reader: &Reader, run: &Run) -> Result<String, Fail> {
    let mut rows = Vec::new();
    for stage in &run.stages {
        if let Some(made) = reader.result(stage)? {
            let memory = made.result.provenance.get("max_rss");
            let memory = memory.and_then(|v| v.as_u64()).unwrap_or(0);
            rows.push((stage, made.result.cost, memory));
        }
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    let columns = Columns {
        gpu: rows.iter().any(|(_, cost, _)| cost.gpu_seconds > 0.0),
        energy: rows.iter().any(|(_, cost, _)| cost.joules().is_some()),
        longest: rows.iter().map(|(_, c, _)| c.seconds).fold(1e-9, f64::max),
        most: rows.iter().map(|(_, _, m)| *m).max().unwrap_or(0).max(1),
    };
    // while it goes on, and in records of earlier versions, the sum is not known
    let known = !run.record["exit_code"].is_null() && !run.record["spent"].is_null();
    let spent = if known {
        spending::text(&run.record)
    } else {
        String::new()
    };
    let mut out = format!(
        "<section id=\"cost\"><h2>Cost</h2>\n<p class=\"dim\">{}</p>\n<div class=\"scroll\"><table>\
         <thead><tr><th>stage</th><th>time</th><th class=\"num\">CPU time</th>",
        escape(&spent)
    );
    if columns.gpu {
        out.push_str("<th class=\"num\">GPU time</th>");
    }
    if columns.energy {
        out.push_str("<th class=\"num\">energy</th>");
    }
    out.push_str("<th>memory of the largest process</th><th></th></tr></thead><tbody>\n");
    let (mut here, mut before) = (Cost::default(), Cost::default());
    for (stage, cost, memory) in &rows {
        let time = bar(cost.seconds / columns.longest, &duration(cost.seconds));
        let memory = match *memory {
            0 => "<td></td>".to_owned(),
            n => bar(n as f64 / columns.most as f64, &bytes(n)),
        };
        let (note, sum) = match stage.is_reused() {
            true => ("reused", &mut before),
            false => ("", &mut here),
        };
        *sum += *cost;
        let _ = writeln!(
            out,
            "<tr><td>{}</td>{time}{}{memory}<td class=\"dim\">{note}</td></tr>",
            escape(&stage.stage),
            columns.numbers(cost)
        );
    }
    out.push_str("</tbody><tfoot>\n");
    for (name, sum) in [("computed by this run", here), ("saved by reuse", before)] {
        if !sum.is_zero() {
            let _ = writeln!(
                out,
                "<tr><td>{name}</td><td>{}</td>{}<td></td><td></td></tr>",
                duration(sum.seconds),
                columns.numbers(&sum)
            );
        }
    }
    Ok(out + "</tfoot></table></div></section>\n")
}

impl Columns {
    /// The cells between time and memory.
    fn numbers(&self, cost: &Cost) -> String {
        let cell = |text: &str| format!("<td class=\"num\">{text}</td>");
        let mut out = cell(&duration(cost.cpu_seconds));
        if self.gpu {
            out.push_str(&cell(&duration(cost.gpu_seconds)));
        }
        if self.energy {
            let energy = cost.joules().map(|j| format!("{} Wh", number(j / 3600.0)));
            out.push_str(&cell(&energy.unwrap_or_default()));
        }
        out
    }
}

fn bar(share: f64, text: &str) -> String {
    let share = share * 100.0;
    format!("<td class=\"bars\"><i style=\"width:{share:.1}%\"></i><span>{text}</span></td>")
}
