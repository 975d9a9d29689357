//! The page of a run, as `recipe report` writes it and `recipe serve` shows it: one HTML file
//! without fonts, frames or requests. Its own text is all it needs; only the live page has a script,
//! which asks for the next version.
//!
//! | part | file | from |
//! |---|---|---|
//! | name, state, the runs' colours | `head` | records |
//! | stages as a graph, over time, and in a table | `overview`, `dag`, `timeline` | the first run's record and events; who reads whom, from the preimages of results |
//! | assertions and margins | `assertions` | the first run's record |
//! | curves over steps, runs overlaid; rewards and lengths; samples | `stages`, `plot` | `metrics.jsonl` of the run that computed a stage; `completions` artifacts |
//! | cost, memory | `cost` | results |

mod assertions;
mod cost;
mod dag;
mod head;
mod html;
mod overview;
mod plot;
mod samples;
mod stages;
mod timeline;

use std::fmt::Write;

use crate::fail::Fail;
use crate::past::{Reader, Run};
use html::escape;

pub use html::escape as escaped;

/// The page of these runs, the first in detail and the others' curves beside it. `script` goes to
/// its end.
pub fn page(reader: &Reader, runs: &[Run], script: &str) -> Result<String, Fail> {
    let title = format!("{} {}", runs[0].text("recipe"), runs[0].id);
    Ok(document(&title, &body(reader, runs)?, script))
}

/// A page in a file may load nothing. A served one is told its rules by the server.
const ALONE: &str = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
                     style-src 'unsafe-inline'; img-src data:\">";

/// A whole document in the page's style.
pub fn document(title: &str, body: &str, script: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         {}<link rel=\"icon\" href=\"data:,\"><title>{}</title><style>\n{}</style></head>\n\
         <body><main>\n{body}</main>{script}</body></html>\n",
        if script.is_empty() { ALONE } else { "" },
        escape(title),
        include_str!("page.css"),
    )
}

fn body(reader: &Reader, runs: &[Run]) -> Result<String, Fail> {
    let first = &runs[0];
    let story = reader.story(first)?;
    let mut out = head::draw(runs, &story);
    out.push_str(&overview::draw(reader, first, &story)?);
    out.push_str(&assertions::draw(first));
    out.push_str(&stages::draw(reader, runs)?);
    out.push_str(&cost::draw(reader, first)?);
    let _ = writeln!(
        out,
        "<footer>recipe {} · store {}</footer>",
        env!("CARGO_PKG_VERSION"),
        escape(first.text("store"))
    );
    Ok(out)
}
