//! What was asserted of the first run, and how far from the bound each value is.

use std::fmt::Write;

use super::html::{escape, pill};
use crate::format::number;
use crate::past::Run;
use spec::assertion::{Judged, Verdict};

pub fn draw(run: &Run) -> String {
    let judged = || {
        run.stages
            .iter()
            .flat_map(|s| s.verdicts.iter().map(move |j| (s, j)))
    };
    if judged().next().is_none() {
        return String::new();
    }
    let mut out = String::from(
        "<section id=\"assertions\"><h2>Assertions</h2>\n<div class=\"scroll\"><table class=\"stack\"><thead><tr>\
         <th>stage</th><th>asked</th><th class=\"num\">value</th><th>margin</th><th>verdict</th>\
         </tr></thead><tbody>\n",
    );
    for (stage, judged) in judged() {
        let class = match (judged.verdict, judged.holds) {
            (Verdict::Passed, _) => "good",
            (_, true) => "warn",
            (_, false) => "bad",
        };
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td class=\"text\">{}</td><td class=\"num\">{}</td><td>{}</td>\
             <td class=\"text\">{} <span class=\"dim\">{}</span></td></tr>",
            escape(&stage.stage),
            escape(&judged.asked),
            judged.value.map(number).unwrap_or_default(),
            margin(judged, class),
            pill(class, judged.verdict.word()),
            escape(judged.why.as_deref().unwrap_or_default()),
        );
    }
    out + "</tbody></table></div></section>\n"
}

/// The margin as a number, and as a bar of its share of the value.
fn margin(judged: &Judged, class: &str) -> String {
    let Some(margin) = judged.margin else {
        return String::new();
    };
    let size = judged.value.unwrap_or(0.0).abs().max(margin.abs());
    let share = if size > 0.0 {
        (margin.abs() / size * 100.0).min(100.0)
    } else {
        0.0
    };
    let sign = if margin > 0.0 { "+" } else { "" };
    format!(
        "<span class=\"margin {class}\"><i style=\"width:{share:.0}%\"></i></span>{sign}{}",
        number(margin)
    )
}
