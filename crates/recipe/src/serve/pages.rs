//! The pages.

use std::fmt::Write;

use super::{Shared, is_id};
use crate::fail::Fail;
use crate::format::duration;
use crate::past::Run;
use crate::report::{self, escaped};
use crate::verbs::runs::{Ending, ending, record, state};

/// Runs in the list; the latest.
const LISTED: usize = 200;

/// The list of runs, which asks for itself again now and then.
pub fn index(shared: &Shared) -> Result<String, Fail> {
    let mut rows = String::new();
    for id in shared.store.list_runs()?.iter().rev().take(LISTED) {
        let Some(record) = record(&shared.store, id)? else {
            continue;
        };
        let class = match ending(&record) {
            Ending::Running => "live",
            Ending::Exit(0) => "good",
            Ending::Exit(75) => "warn",
            Ending::Exit(_) | Ending::Died => "bad",
        };
        let text = |field: &str| escaped(record[field].as_str().unwrap_or_default());
        let _ = writeln!(
            rows,
            "<tr><td><a href=\"/runs/{id}\"><b>{id}</b></a></td><td>{}</td>\
             <td><span class=\"pill {class}\">{}</span></td><td class=\"num\">{}</td>\
             <td class=\"num\">{}</td></tr>",
            text("recipe"),
            escaped(&state(&record)),
            duration(record["seconds"].as_f64().unwrap_or(0.0)),
            record["stages"].as_array().map_or(0, Vec::len),
        );
    }
    let body = format!(
        "<header><h1>Runs</h1></header><p class=\"typed\"><code>{}</code></p>\n\
         <div class=\"scroll\"><table><thead><tr><th>run</th><th>recipe</th><th>state</th>\
         <th class=\"num\">time</th><th class=\"num\">stages</th></tr></thead>\
         <tbody>\n{rows}</tbody></table></div>\n",
        escaped(shared.store.url()),
    );
    Ok(report::document("Runs", &body, REFRESH))
}

const REFRESH: &str = "<script>setTimeout(() => document.hidden || location.reload(), 5000);\
document.addEventListener(\"visibilitychange\", () => document.hidden || location.reload());</script>";

/// A run's page, others laid over it; while it goes on it follows.
pub fn run(shared: &Shared, id: &str, with: &[String]) -> Result<String, Fail> {
    let mut runs = Vec::new();
    for id in std::iter::once(id).chain(with.iter().map(String::as_str)) {
        if !is_id(id) {
            return Err(Fail::not_stored("this is no run's id", "/ lists the runs"));
        }
        runs.push(Run::read(&shared.store, id)?);
    }
    let reader = shared.reader.lock().unwrap_or_else(|e| e.into_inner());
    reader.look_again();
    let live = runs
        .iter()
        .any(|run| ending(&run.record) == Ending::Running);
    report::page(
        &reader,
        &runs,
        if live { include_str!("live.html") } else { "" },
    )
}
