//! `recipe cache stat` and `recipe cache verify`.

use crate::args::{CacheArgs, CacheVerb};
use crate::fail::Fail;
use crate::format::{bytes, table};
use crate::{output, project};
use serde_json::json;

/// Exit code of a store that holds something wrong.
const INTEGRITY: u8 = 5;

pub fn run(args: CacheArgs) -> Result<u8, Fail> {
    match args.verb {
        CacheVerb::Stat { store, json } => stat(&project::open_store(&store)?, json),
        CacheVerb::Verify {
            store,
            paranoid,
            json,
        } => verify(&project::open_store(&store)?, paranoid, json),
    }
}

fn stat(store: &cache::Store, as_json: bool) -> Result<u8, Fail> {
    let stat = store.stat()?;
    if as_json {
        let kinds: Vec<_> = stat
            .kinds
            .iter()
            .map(|(kind, held)| json!({ "kind": kind, "objects": held.objects, "bytes": held.bytes }))
            .collect();
        output::json(&json!({ "version": 1, "store": store.url(), "kinds": kinds }));
        return Ok(0);
    }
    let mut rows = vec![["", "objects", "size"].map(str::to_owned).to_vec()];
    for (kind, held) in &stat.kinds {
        rows.push(vec![
            (*kind).to_string(),
            held.objects.to_string(),
            bytes(held.bytes),
        ]);
    }
    output::line(format!("{}\n{}", store.url(), table(&rows)));
    Ok(0)
}

fn verify(store: &cache::Store, paranoid: bool, as_json: bool) -> Result<u8, Fail> {
    let report = store.verify(paranoid)?;
    if as_json {
        let problems: Vec<_> = report
            .problems
            .iter()
            .map(|p| json!({ "path": p.path, "kind": format!("{:?}", p.kind), "why": p.why }))
            .collect();
        let value = json!({
            "version": 1, "store": store.url(), "objects": report.objects, "bytes": report.bytes, "problems": problems
        });
        output::json(&value);
    } else {
        for problem in &report.problems {
            output::line(format!("{}: {}", problem.path, problem.why));
        }
        let found = match report.problems.len() {
            0 => "nothing is wrong".to_owned(),
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        };
        output::line(format!(
            "{}: {} objects looked at, {} of blobs: {found}",
            store.url(),
            report.objects,
            bytes(report.bytes)
        ));
    }
    if report.problems.is_empty() {
        return Ok(0);
    }
    if !as_json {
        output::error(&crate::fail::text(
            spec::codes::INTEGRITY,
            "the store holds something that is not what its name says",
            Some("run the recipe again: what is damaged is computed anew where something needs it"),
        ));
    }
    Ok(INTEGRITY)
}
