//! `--events FILE`: every [`Report`] as one JSON line with its time, written as it happens.

use crate::fail::Fail;
use runner::{Report, Reporter};
use serde::Serialize;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

pub struct Events(Option<File>);

#[derive(Serialize)]
struct Line<'a> {
    time: f64,
    #[serde(flatten)]
    report: &'a Report,
}

impl Events {
    pub fn create(path: &Path) -> Result<Self, Fail> {
        File::create(path).map(|f| Self(Some(f))).map_err(|e| {
            Fail::usage(
                format!("cannot write '{}': {e}", path.display()),
                "give --events a file in a folder that exists and may be written",
            )
        })
    }
}

impl Reporter for Events {
    fn report(&mut self, event: &Report) {
        let Some(file) = &mut self.0 else { return };
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0.0, |d| d.as_secs_f64());
        let mut line = serde_json::to_string(&Line {
            time,
            report: event,
        })
        .unwrap_or_default();
        line.push('\n');
        // one write per line: whoever follows the file never sees half of one
        if let Err(e) = file.write_all(line.as_bytes()) {
            crate::output::error(&format!(
                "warning: the events file is no longer written: {e}"
            ));
            self.0 = None;
        }
    }
}
