//! `recipe cache push` and `recipe cache pull`.

use crate::args::{RecipeArgs, TransferArgs};
use crate::fail::Fail;
use crate::format::{bytes, plural};
use crate::{output, project};
use cache::{Digest, Key, Pushed, Store};
use indicatif::{ProgressBar, ProgressStyle};
use runner::State;
use serde_json::json;
use spec::{Plan, Selection};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

/// A key and its artifacts.
type Outputs = (Key, BTreeMap<String, Digest>);

pub fn push(args: &TransferArgs) -> Result<u8, Fail> {
    let (store, remote) = open(args)?;
    let keys: Vec<Key> = match wanted(args, &store, &remote)? {
        Some(found) => found.into_iter().map(|(key, _)| key).collect(),
        None => store.keys()?,
    };
    let (mut sent, mut there, mut busy, mut size) = (0, 0, 0, 0);
    let bar = bar(&store);
    for key in keys {
        match store.push(&key)? {
            Some(Pushed::Sent { bytes }) => {
                sent += 1;
                size += bytes;
            }
            Some(Pushed::There) => there += 1,
            Some(Pushed::Busy) => busy += 1,
            None => {}
        }
    }
    bar.finish_and_clear();
    if args.json {
        output::json(&json!({
            "version": 1, "remote": remote, "sent": sent, "bytes": size, "there": there, "busy": busy
        }));
    } else {
        output::line(format!(
            "sent {} ({}) to {remote}; {there} there already, {busy} being computed there",
            plural(sent, "result"),
            bytes(size),
        ));
    }
    Ok(0)
}

pub fn pull(args: &TransferArgs) -> Result<u8, Fail> {
    let (store, remote) = open(args)?;
    let found: Vec<Outputs> = match wanted(args, &store, &remote)? {
        Some(found) => found,
        None => {
            let behind = store.behind().map(Store::keys).transpose()?;
            let mut found = Vec::new();
            for key in behind.unwrap_or_default() {
                if let Some((_, record)) = store.current(&key)? {
                    found.push((key, record.outputs));
                }
            }
            found
        }
    };
    let bar = bar(&store);
    let mut size = 0;
    for artifact in found.iter().flat_map(|(_, outputs)| outputs.values()) {
        size += store.pull(artifact)?;
    }
    bar.finish_and_clear();
    store.flush()?;
    if args.json {
        let results = found.len();
        output::json(&json!({ "version": 1, "remote": remote, "results": results, "bytes": size }));
    } else {
        output::line(format!(
            "{} of {remote} here; {} fetched",
            plural(found.len(), "result"),
            bytes(size),
        ));
    }
    Ok(0)
}

fn open(args: &TransferArgs) -> Result<(Store, String), Fail> {
    let recipe = args.recipe.as_deref().map(project::folder);
    let url = match recipe {
        Some(folder) => project::store(&args.store, folder),
        None => {
            let here = std::env::current_dir()
                .map_err(|e| Fail::io("read", std::path::Path::new("."), &e))?;
            project::store(&args.store, &here)
        }
    };
    project::prepare_store(&args.store, &url)?;
    let Some(remote) = project::remote(&args.remote, &url) else {
        return Err(Fail::usage(
            "no remote store is named",
            "name it with --remote URL or in the environment variable RECIPE_REMOTE",
        ));
    };
    let store = Store::open_with(&url, Some(&remote), false)?;
    Ok((store, remote))
}

/// Keys and outputs of a recipe's stages that have a result, here or behind.
fn wanted(args: &TransferArgs, store: &Store, remote: &str) -> Result<Option<Vec<Outputs>>, Fail> {
    let Some(recipe) = &args.recipe else {
        return Ok(None);
    };
    let recipe = project::load(&RecipeArgs {
        recipe: recipe.clone(),
        set: Vec::new(),
        profile: None,
    })?;
    let targets = args.stages.clone();
    let selection = Selection {
        targets,
        ..Selection::default()
    };
    let plan = Plan::new(recipe, &selection)?;
    let mut options = runner::Options::new(store.url());
    options.remote = Some(remote.to_owned());
    let stages = runner::resolve(&plan, &options)?;
    let found = stages.into_iter().filter_map(|stage| match stage.state {
        State::Reuse(found) => Some((found.accepted.or(stage.key)?, found.brief.outputs.clone())),
        _ => None,
    });
    Ok(Some(found.collect()))
}

/// Bytes of large objects as they travel, where somebody looks on.
fn bar(store: &Store) -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(
        "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}",
    ) {
        bar.set_style(style);
    }
    let under_way: Mutex<HashMap<String, (u64, u64)>> = Mutex::default();
    let shown = bar.clone();
    if let Some(behind) = store.behind() {
        behind.observe(Arc::new(move |progress| {
            let mut all = under_way.lock().unwrap_or_else(|e| e.into_inner());
            all.insert(progress.path.clone(), (progress.done, progress.total));
            shown.set_length(all.values().map(|(_, total)| total).sum());
            shown.set_position(all.values().map(|(done, _)| done).sum());
        }));
    }
    bar
}
