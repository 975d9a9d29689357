//! `recipe cache gc`.

use crate::args::GcArgs;
use crate::fail::Fail;
use crate::format::{bytes, plural};
use crate::{output, project};
use cache::{Collected, Digest, Gc};
use serde_json::json;
use std::path::Path;

/// Folders below the project's root that are searched for lock files.
const DEPTH: usize = 8;

pub fn run(args: &GcArgs) -> Result<u8, Fail> {
    let store = project::open_store(&args.store)?;
    let here = std::env::current_dir().map_err(|e| Fail::io("read", Path::new("."), &e))?;
    let mut keep = Vec::new();
    locked(&project::root(&here), DEPTH, &mut keep)?;
    let gc = Gc {
        older_than: args.older_than,
        max_size: args.max_size,
        keep,
        dry_run: args.dry_run,
        ..Gc::default()
    };
    let done = store.gc(&gc)?;
    if args.json {
        output::json(&value(store.url(), args.dry_run, &done));
    } else {
        output::line(text(args.dry_run, &done));
    }
    Ok(0)
}

fn text(dry_run: bool, done: &Collected) -> String {
    let verb = if dry_run { "would remove" } else { "removed" };
    format!(
        "{verb} {} of runs, results of {}, {}, {} ({}) and {} ({}); {} ({}) stay",
        plural(done.runs as usize, "record"),
        plural(done.results as usize, "key"),
        plural(done.checkpoints as usize, "checkpoint"),
        plural(done.blobs.objects as usize, "blob"),
        bytes(done.blobs.bytes),
        plural(done.temporary.objects as usize, "leftover"),
        bytes(done.temporary.bytes),
        plural(done.kept.objects as usize, "blob"),
        bytes(done.kept.bytes),
    )
}

fn value(store: &str, dry_run: bool, done: &Collected) -> serde_json::Value {
    let count = |c: &cache::Count| json!({ "objects": c.objects, "bytes": c.bytes });
    json!({
        "version": 1,
        "store": store,
        "dry_run": dry_run,
        "runs": done.runs,
        "results": done.results,
        "checkpoints": done.checkpoints,
        "blobs": count(&done.blobs),
        "temporary": count(&done.temporary),
        "kept": count(&done.kept),
    })
}

/// The artifacts that lock files below `folder` name. Hidden folders and `target` hold none.
fn locked(folder: &Path, depth: usize, keep: &mut Vec<Digest>) -> Result<(), Fail> {
    if folder.join("recipe.lock").is_file() {
        keep.extend(runner::locked(folder)?);
    }
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if folder && depth > 0 && !name.starts_with('.') && name != "target" {
            locked(&entry.path(), depth - 1, keep)?;
        }
    }
    Ok(())
}
