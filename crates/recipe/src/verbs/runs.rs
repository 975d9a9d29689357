//! `recipe runs`: what ran, newest last; and how a run is named on the command line.

use crate::args::RunsArgs;
use crate::fail::Fail;
use crate::format::{duration, table};
use crate::{output, project};
use cache::Store;
use serde_json::Value;

pub fn run(args: RunsArgs) -> Result<u8, Fail> {
    let store = project::open_store(&args.store)?;
    let mut rows = vec![
        ["run", "recipe", "state", "time", "stages"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for id in store.list_runs()? {
        let Some(record) = record(&store, &id)? else {
            continue;
        };
        if args.json {
            output::line(record.to_string());
            continue;
        }
        let stages = record["stages"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let with = |state: &str| stages.iter().filter(|s| s["status"] == state).count();
        rows.push(vec![
            id,
            text(&record, "recipe"),
            state(&record),
            record["seconds"].as_f64().map(duration).unwrap_or_default(),
            format!(
                "{} ran, {} reused of {}",
                with("ran"),
                with("reused"),
                stages.len()
            ),
        ]);
    }
    if !args.json {
        output::line(if rows.len() == 1 {
            "no runs yet".to_owned()
        } else {
            table(&rows)
        });
    }
    Ok(0)
}

/// A run's record; none where it cannot be read (a run that died before it wrote one).
pub fn record(store: &Store, id: &str) -> Result<Option<Value>, Fail> {
    Ok(store
        .get_run(id, "record.json")?
        .and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// How a run ended, if it did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ending {
    Running,
    /// Its record says that it runs, but its process is gone.
    Died,
    Exit(u64),
}

/// Whether the process lives is known of runs of this machine; others are taken to run.
pub fn ending(record: &Value) -> Ending {
    if let Some(code) = record["exit_code"].as_u64() {
        return Ending::Exit(code);
    }
    let owner = record["owner"].as_str().unwrap_or_default();
    match runner::machine::lives(owner) {
        Some(false) => Ending::Died,
        _ => Ending::Running,
    }
}

/// `ok`, `exit 3`, `running`, or `died`.
pub fn state(record: &Value) -> String {
    match ending(record) {
        Ending::Exit(0) => "ok".to_owned(),
        Ending::Exit(code) => format!("exit {code}"),
        Ending::Running => "running".to_owned(),
        Ending::Died => "died".to_owned(),
    }
}

pub fn text(record: &Value, field: &str) -> String {
    record[field].as_str().unwrap_or_default().to_owned()
}

/// The run that a word on the command line means: an id, the only one that begins so, or `last`.
pub fn find(store: &Store, word: &str) -> Result<String, Fail> {
    let runs = store.list_runs()?;
    if word == "last" {
        return runs
            .last()
            .cloned()
            .ok_or_else(|| Fail::not_stored("the store has no runs", "run a recipe first"));
    }
    if runs.iter().any(|r| r == word) {
        return Ok(word.to_owned());
    }
    let begin: Vec<&String> = runs.iter().filter(|r| r.starts_with(word)).collect();
    match begin[..] {
        [one] => Ok(one.clone()),
        [] => Err(Fail::not_stored(
            format!("there is no run '{word}'"),
            "`recipe runs` lists them; `last` is the latest",
        )),
        [..] => Err(Fail::not_stored(
            format!("{} runs begin with '{word}'", begin.len()),
            format!("write more of it, such as '{}'", begin[begin.len() - 1]),
        )),
    }
}
