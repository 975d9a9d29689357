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

/// `ok`, `exit 3`, or `running`.
pub fn state(record: &Value) -> String {
    match record["exit_code"].as_u64() {
        Some(0) => "ok".to_owned(),
        Some(code) => format!("exit {code}"),
        None => text(record, "state"),
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

/// The run and stage that computed what a stage of a run has: its metrics and logs are there. None where it has no result.
pub fn computed_in(store: &Store, stage: &Value) -> Result<Option<(String, String)>, Fail> {
    let key = stage["key"]
        .as_str()
        .and_then(|hex| hex.parse::<cache::Digest>().ok());
    let attempt = stage["attempt"]
        .as_u64()
        .and_then(|n| u32::try_from(n).ok());
    let Some((key, attempt)) = key.zip(attempt) else {
        return Ok(None);
    };
    let Some(cache::Ending::Result(result)) = store.ending(&key, attempt)? else {
        return Ok(None);
    };
    let word = |field: &str| result.provenance.get(field)?.as_str().map(str::to_owned);
    Ok(word("run").zip(word("stage")))
}
