//! Metrics of steps on their way to a result: they lie beside it in the store, so that what reuses it can be judged by
//! them. What an attempt went on from is gathered from the records of the runs that made it.

use std::path::Path;

use cache::{Checkpoint, Digest, Entry, Ingest, Key, Manifest, ResultRecord, Store};
use serde::Deserialize;
use spec::assertion::Steps;

use crate::earlier::Earlier;
use crate::error::Error;

/// The file of the artifact.
const FILE: &str = "steps.jsonl";

/// Puts metrics of steps into the store; nothing where there are none.
pub fn put(steps: &Steps, scratch: &Path, store: &Store) -> Result<Option<Digest>, Error> {
    if steps.is_empty() {
        return Ok(None);
    }
    let at = scratch.join("tmp").join(FILE);
    let bytes = steps.encode();
    std::fs::write(&at, &bytes).map_err(|source| Error::Io {
        what: "cannot write",
        path: at.clone(),
        source,
    })?;
    let file = Entry {
        path: FILE.into(),
        size: bytes.len() as u64,
        blob: store.put_file(&at, Ingest::Move)?,
        executable: false,
    };
    Ok(Some(store.put_manifest(&Manifest::new(vec![file])?)?))
}

/// Metrics of steps as [`put`] stored them.
fn read(artifact: &Digest, store: &Store) -> Result<Steps, String> {
    let lost = |e: cache::Error| format!("the metrics of its steps cannot be read: {e}");
    let manifest = store.manifest(artifact).map_err(lost)?;
    let Some(file) = manifest.files.first() else {
        return Err("the metrics of its steps are an empty artifact".into());
    };
    Steps::decode(&store.get_bytes(&file.blob).map_err(lost)?)
}

/// The metrics of a result's steps; none where it has none. An error says why they cannot be read.
pub fn of(result: &ResultRecord, store: &Store) -> Result<Option<Steps>, String> {
    let artifact = result.steps.as_ref();
    artifact.map(|artifact| read(artifact, store)).transpose()
}

/// Metrics of the steps up to a checkpoint, of the attempts from `lowest` to the one that took it: each step as the last
/// of them has it. What cannot be found is left out.
pub fn before(
    stage: &str,
    checkpoint: &Checkpoint,
    lowest: u32,
    tried: &[(u32, Steps)],
    store: &Store,
) -> Steps {
    let mut found = Steps::default();
    for attempt in (lowest..=checkpoint.attempt).rev() {
        let here = tried.iter().find(|(n, _)| *n == attempt);
        let rows = match here {
            Some((_, steps)) => steps.rows.clone(),
            None => recorded(stage, &checkpoint.key, attempt, store).rows,
        };
        for (step, metrics) in rows {
            if step <= checkpoint.step {
                found.rows.entry(step).or_insert(metrics);
            }
        }
    }
    found
}

/// What the record of the run that owned an attempt says of its steps.
fn recorded(stage: &str, key: &Key, attempt: u32, store: &Store) -> Steps {
    #[derive(Deserialize)]
    struct Line {
        stage: String,
        attempt: u32,
        step: u64,
        #[serde(deserialize_with = "spec::job::numbers")]
        metrics: std::collections::BTreeMap<String, f64>,
    }
    let mut steps = Steps::default();
    let Some(earlier) = Earlier::of(stage, key, attempt, store) else {
        return steps;
    };
    for line in earlier.file("metrics.jsonl").split(|b| *b == b'\n') {
        // a line cut short by a crash is not JSON and is passed over
        if let Ok(line) = serde_json::from_slice::<Line>(line)
            && line.stage == earlier.stage
            && line.attempt == attempt
        {
            steps.add(line.step, line.metrics);
        }
    }
    steps
}
