//! When stages were computed: a bar for each attempt, a mark for each checkpoint.

use std::fmt::Write;

use super::html::escape;
use crate::format::duration;
use crate::past::{Run, Story};

/// Rows at most; of more stages those that took longest.
const ROWS: usize = 60;

/// The bars of a run; nothing where it computed nothing.
pub fn draw(run: &Run, story: &Story) -> String {
    let (Some(begun), Some(last)) = (story.begun, story.last) else {
        return String::new();
    };
    let span = (last - begun).max(1e-3);
    let mut rows: Vec<(&str, f64)> = run
        .stages
        .iter()
        .filter_map(|s| {
            let told = story
                .stages
                .get(&s.stage)
                .filter(|t| !t.attempts.is_empty())?;
            let took = told.attempts.iter().map(|a| a.to.unwrap_or(last) - a.from);
            Some((s.stage.as_str(), took.sum()))
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let left_out = rows.len().saturating_sub(ROWS);
    if left_out > 0 {
        let mut longest: Vec<f64> = rows.iter().map(|(_, took)| *took).collect();
        longest.sort_by(|a, b| b.total_cmp(a));
        rows.retain(|(_, took)| *took >= longest[ROWS - 1]);
        rows.truncate(ROWS);
    }
    let percent = |at: f64| ((at - begun) / span * 100.0).clamp(0.0, 100.0);
    let mut out = String::from("<div class=\"timeline\">\n");
    for (stage, took) in rows {
        let mut bars = String::new();
        for attempt in &story.stages[stage].attempts {
            let from = percent(attempt.from);
            let to = attempt.to.map_or(100.0, percent);
            let class = match (attempt.failed, attempt.to) {
                (true, _) => "bad",
                (false, None) => "live",
                (false, Some(_)) => "good",
            };
            let mut title = format!("attempt {}", attempt.number);
            if let Some(step) = attempt.resumed {
                let _ = write!(title, ", from the checkpoint of step {step}");
            }
            let _ = write!(
                bars,
                "<i class=\"{class}\" style=\"left:{from:.2}%;width:{:.2}%\" title=\"{title}\"></i>",
                (to - from).max(0.3)
            );
            for (time, step) in &attempt.checkpoints {
                let at = percent(*time);
                let _ = write!(
                    bars,
                    "<u style=\"left:{at:.2}%\" title=\"checkpoint of step {step}\"></u>"
                );
            }
        }
        let _ = writeln!(
            out,
            "<span>{}</span><div>{bars}</div><span class=\"num\">{}</span>",
            escape(stage),
            duration(took)
        );
    }
    out.push_str("</div>\n");
    if left_out > 0 {
        let _ = writeln!(
            out,
            "<p class=\"dim\">{left_out} stages that took less are not shown</p>"
        );
    }
    out
}
