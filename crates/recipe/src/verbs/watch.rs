//! `recipe watch [RUN]`: follows a run that goes on in another process, also on another machine
//! that shares the store. Ends when the run does, with its exit code; Ctrl-C leaves the run alone.

use std::time::Duration;

use crate::args::WatchArgs;
use crate::fail::Fail;
use crate::format::duration;
use crate::past::Follow;
use crate::verbs::runs::{Ending, ending, find, record};
use crate::{output, progress, project};
use cache::Store;
use runner::Report;

/// Between looks at a store here, and at a remote one.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_FAR: Duration = Duration::from_secs(5);

pub fn run(args: WatchArgs) -> Result<u8, Fail> {
    let store = project::open_store(&args.store)?;
    let id = find(&store, &args.run)?;
    let mut follow = Follow::new(&store, &id);
    let mut shown: Option<Box<dyn runner::Reporter>> = None;
    let mut quiet = 0;
    loop {
        let events = follow.more()?;
        // what a run wrote before it was found to have ended is read first
        quiet = if events.is_empty() { quiet + 1 } else { 0 };
        for (_, event) in &events {
            let shown = shown.get_or_insert_with(|| progress::watching(stages(event)));
            shown.report(event);
            if let Report::RunFinished {
                exit_code, seconds, ..
            } = event
            {
                let how = if *exit_code == 0 {
                    "ok".to_owned()
                } else {
                    format!("exit {exit_code}")
                };
                output::line(format!("run {id}: {how}, {}", duration(*seconds)));
                return Ok(*exit_code);
            }
        }
        if quiet > 1
            && let Some(fail) = gone(&store, &id)?
        {
            return Err(fail);
        }
        std::thread::sleep(if store.local().is_some() {
            LOOK
        } else {
            LOOK_FAR
        });
    }
}

/// The stages that a run's first event names.
fn stages(event: &Report) -> &[String] {
    match event {
        Report::RunStarted { stages, .. } => stages,
        _ => &[],
    }
}

/// Whether nothing more will come, though no event said so.
fn gone(store: &Store, id: &str) -> Result<Option<Fail>, Fail> {
    let record = record(store, id)?.unwrap_or_default();
    let died = match ending(&record) {
        Ending::Died => true,
        // its last event was lost: its record was not
        Ending::Exit(_) => record["state"] == "finished",
        Ending::Running => false,
    };
    Ok(died.then(|| Fail::Other {
        code: spec::codes::INFRA,
        exit: 4,
        message: format!("run '{id}' did not end: its process is gone"),
        help: "run the same command again: it goes on from the last checkpoint".to_owned(),
    }))
}
