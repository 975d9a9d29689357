//! The page's head: name, state, what was typed, and the runs with their colours.

use std::fmt::Write;

use super::html::{escape, pill};
use super::plot::COLOURS;
use crate::format::duration;
use crate::past::{Run, Story};
use crate::verbs::runs::{Ending, ending};

pub fn draw(runs: &[Run], story: &Story) -> String {
    let first = &runs[0];
    let mut out = format!(
        "<header><h1>{}</h1>{}</header>\n",
        escape(first.text("recipe")),
        state(first)
    );
    let command: Vec<&str> = first.record["command"]
        .as_array()
        .map(|words| words.iter().filter_map(|w| w.as_str()).collect())
        .unwrap_or_default();
    if let [program, rest @ ..] = &command[..] {
        let program = program.rsplit('/').next().unwrap_or(program);
        let typed = std::iter::once(program).chain(rest.iter().copied());
        let typed = typed.collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            out,
            "<p class=\"typed\"><code>{}</code></p>",
            escape(&typed)
        );
    }
    out.push_str("<ul class=\"runs\">\n");
    for (colour, run) in runs.iter().enumerate() {
        let state = if colour == 0 {
            String::new()
        } else {
            state(run)
        };
        let _ = writeln!(
            out,
            "<li><b class=\"c{}\"><span class=\"dot\"></span>{}</b> \
             <span class=\"dim\">{}, {}</span> {state}</li>",
            colour % COLOURS,
            escape(&run.id),
            when(run.text("started")),
            duration(run.record["seconds"].as_f64().unwrap_or(0.0)),
        );
    }
    out.push_str("</ul>\n");
    for (stage, text) in &story.warnings {
        let stage = stage.as_ref().map_or(String::new(), |s| format!("{s}: "));
        let _ = writeln!(
            out,
            "<p class=\"note\">{}</p>",
            escape(&format!("{stage}{text}"))
        );
    }
    out
}

fn state(run: &Run) -> String {
    match ending(&run.record) {
        Ending::Running => pill("live", "running"),
        Ending::Died => pill("bad", "died"),
        Ending::Exit(0) => pill("good", "ok"),
        Ending::Exit(75) => pill("warn", "stopped, resumable"),
        Ending::Exit(3) => pill("bad", "assertion failed"),
        Ending::Exit(code) => pill("bad", &format!("failed, exit {code}")),
    }
}

/// `2026-01-31T12:00:00.000Z` as `2026-01-31 12:00 UTC`.
fn when(text: &str) -> String {
    let minutes = text.get(..16).unwrap_or(text);
    escape(&format!("{} UTC", minutes.replace('T', " ")))
}
