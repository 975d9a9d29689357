//! The Markdown page of a run, as GitHub's job summaries and merge requests' comments show it.

use std::fmt::Write;

use super::{Verdict, cases};
use crate::format::{duration, number};
use crate::past::Run;
use crate::progress::stage::key_metrics;
use crate::spending;

/// The summary of a run.
pub fn text(run: &Run) -> String {
    let word = match run.record["exit_code"].as_u64() {
        Some(0) => "passed".to_owned(),
        Some(code) => format!("failed (exit {code})"),
        None => "did not come to its end".to_owned(),
    };
    let recipe = run.record["recipe"].as_str().unwrap_or_default();
    let reused = run.stages.iter().filter(|s| s.status == "reused").count();
    let mut out = format!(
        "### {} {word}\n\nRun `{}`: {} stages, {reused} reused, {}.\n\n\
         | stage | kind | state | time | result |\n|---|---|---|---|---|\n",
        cell(recipe),
        run.id,
        run.stages.len(),
        duration(run.record["seconds"].as_f64().unwrap_or(0.0)),
    );
    let mut told = String::new();
    for stage in &run.stages {
        let state = stage.status.replace('_', " ");
        let time = match stage.seconds {
            0.0 => "-".to_owned(),
            seconds => duration(seconds),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {time} | {} |",
            cell(&stage.stage),
            cell(&stage.kind),
            match stage.status.as_str() {
                "failed" | "assertion_failed" => format!("**{state}**"),
                _ => state,
            },
            cell(&key_metrics(&stage.metrics)),
        );
        for case in cases(run, stage) {
            let (Verdict::Failed(text) | Verdict::Error(_, text)) = &case.verdict else {
                continue;
            };
            let stage = cell(&stage.stage);
            let _ = writeln!(told, "\n**{stage}**\n\n{}", fenced(text));
        }
    }
    out.push_str(&told);
    out.push_str(&assertions(run));
    let spent = spending::text(&run.record);
    let _ = writeln!(out, "\n{spent}\n");
    out
}

/// Every assertion with its margin; what does not hold stands out.
fn assertions(run: &Run) -> String {
    let all = run.stages.iter();
    let all = all.flat_map(|stage| stage.verdicts.iter().map(move |v| (stage, v)));
    let mut out = String::new();
    let shown = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), number);
    for (stage, judged) in all {
        if out.is_empty() {
            out.push_str(
                "\n| stage | assertion | value | margin | verdict |\n|---|---|---|---|---|\n",
            );
        }
        let word = judged.verdict.word();
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            cell(&stage.stage),
            cell(&judged.asked),
            shown(judged.value),
            shown(judged.margin),
            match judged.holds {
                true => word.to_owned(),
                false => format!("**{word}**"),
            },
        );
    }
    out
}

/// The summary of a run that came to no outcome.
pub fn failure(recipe: &str, report: &str) -> String {
    format!("### {} failed\n\n{}\n", cell(recipe), fenced(report))
}

/// Text as it stands in a cell of a table or in a line.
fn cell(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

/// Text as it is, in a block that it cannot end.
fn fenced(text: &str) -> String {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    format!("{fence}\n{}\n{fence}\n", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(cell("a|b\n`c`"), "a\\|b \\`c\\`");
        assert_eq!(fenced("x\n```\ny"), "````\nx\n```\ny\n````\n");
    }
}
