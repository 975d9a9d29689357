//! `recipe cache ..`: the store, one file per group of verbs.

mod gc;
mod pin;
mod transfer;
mod verify;

use crate::args::{CacheArgs, CacheVerb};
use crate::fail::Fail;
use crate::format::{bytes, table};
use crate::{output, project};
use serde_json::json;

pub fn run(args: CacheArgs) -> Result<u8, Fail> {
    match args.verb {
        CacheVerb::Stat { store, json } => stat(&project::open_store(&store)?, json),
        CacheVerb::Verify {
            store,
            remote,
            paranoid,
            repair,
            json,
        } => {
            let store = project::open_store_with(&store, &remote)?;
            verify::run(&store, paranoid, repair, json)
        }
        CacheVerb::Gc(args) => gc::run(&args),
        CacheVerb::Pin {
            name,
            what,
            output,
            store,
        } => pin::run(name.as_deref(), what.as_deref(), output.as_deref(), &store),
        CacheVerb::Unpin { name, store } => pin::unpin(&name, &store),
        CacheVerb::Push(args) => transfer::push(&args),
        CacheVerb::Pull(args) => transfer::pull(&args),
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
