//! What earlier runs of a recipe say about its stages: their last key and what they cost.

use std::collections::HashMap;

use cache::{Cost, Store};
use serde::Deserialize;

/// The most recent runs that are looked at, and the bytes of their records: those of large recipes are large.
const RUNS: usize = 50;
const BYTES: usize = 32 << 20;

/// What a stage was when it last had a result.
#[derive(Debug, Clone, Deserialize)]
pub struct Past {
    pub stage: String,
    /// Hex key.
    pub key: Option<String>,
    /// Wall seconds of the computation, also when that run reused it.
    pub cost_seconds: Option<f64>,
    /// All that the computation took.
    #[serde(default)]
    pub cost: Option<Cost>,
}

#[derive(Deserialize)]
struct Record {
    recipe: String,
    stages: Vec<Past>,
}

/// The latest past of each stage of a recipe, as far as the records tell. Unreadable records are passed over: they are
/// for people, and nothing but estimates and explanations depends on them here.
pub fn of(store: &Store, recipe: &str, stages: usize) -> HashMap<String, Past> {
    let mut found: HashMap<String, Past> = HashMap::new();
    let runs = store.list_runs().unwrap_or_default();
    let mut read = 0;
    for run in runs.iter().rev().take(RUNS) {
        let record = match store.get_run(run, "record.json") {
            Ok(Some(bytes)) => {
                read += bytes.len();
                serde_json::from_slice::<Record>(&bytes).ok()
            }
            _ => None,
        };
        for past in record
            .filter(|r| r.recipe == recipe)
            .into_iter()
            .flat_map(|r| r.stages)
        {
            if past.key.is_some() && past.cost_seconds.is_some() {
                found.entry(past.stage.clone()).or_insert(past);
            }
        }
        if found.len() >= stages || read > BYTES {
            break;
        }
    }
    found
}
