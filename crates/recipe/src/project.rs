//! Where things are: the project root, the store, the recipe with its layers.

use crate::args::{ComputeArgs, DeviceArg, RecipeArgs, RemoteArgs, SelectArgs, StoreArgs};
use crate::fail::Fail;
use crate::names;
use spec::diagnostic::suggestion;
use spec::{Layers, Plan, Recipe, Selection, Setting};
use std::path::{Path, PathBuf};

/// The nearest folder from `start` upwards that has `.git`, else the nearest that has
/// `recipe.lock`, else `start`. A lock lies beside its recipe and appears with the first run, so
/// inside a repository it must not move the root from one run to the next.
pub fn root(start: &Path) -> PathBuf {
    let start = std::path::absolute(start).unwrap_or_else(|_| start.to_owned());
    let nearest = |marker: &str| start.ancestors().find(|dir| dir.join(marker).exists());
    nearest(".git")
        .or_else(|| nearest("recipe.lock"))
        .unwrap_or(&start)
        .to_owned()
}

/// The store that a verb uses: `--store`, else `.recipe` at the root of the project that holds
/// `start`. The latter is made invisible to git when it is made.
pub fn store(args: &StoreArgs, start: &Path) -> String {
    if let Some(url) = &args.store {
        return url.clone();
    }
    root(start).join(".recipe").display().to_string()
}

/// Makes the default store's folder with a `.gitignore` that hides it.
pub fn prepare_store(args: &StoreArgs, url: &str) -> Result<(), Fail> {
    if args.store.is_some() {
        return Ok(());
    }
    let dir = Path::new(url);
    let ignore = dir.join(".gitignore");
    if !ignore.exists() {
        std::fs::create_dir_all(dir).map_err(|e| Fail::io("make the store", dir, &e))?;
        std::fs::write(&ignore, "*\n").map_err(|e| {
            // an empty one, left by a full disk, would hide nothing
            let _ = std::fs::remove_file(&ignore);
            Fail::io("write", &ignore, &e)
        })?;
    }
    Ok(())
}

/// The store of a verb that has no recipe; it must be there.
pub fn open_store(args: &StoreArgs) -> Result<cache::Store, Fail> {
    let here = std::env::current_dir().map_err(|e| Fail::io("read", Path::new("."), &e))?;
    let url = store(args, &here);
    let local = !url.contains("://");
    if local && !Path::new(&url).is_dir() {
        return Err(Fail::not_stored(
            format!("there is no store at '{url}'"),
            "run a recipe first, go to the project's folder, or name a store with --store",
        ));
    }
    Ok(cache::Store::open(&url)?)
}

/// The same with the store that lies behind it.
pub fn open_store_with(args: &StoreArgs, remote: &RemoteArgs) -> Result<cache::Store, Fail> {
    let mut store = open_store(args)?;
    if let Some(remote) = self::remote(remote, store.url()) {
        store.set_behind(cache::Store::open(&remote)?, false)?;
    }
    Ok(store)
}

/// What lies behind the store at `url`: `--remote`, else, for a local store, RECIPE_REMOTE. `none`
/// is no store.
pub fn remote(args: &RemoteArgs, url: &str) -> Option<String> {
    let from_environment = || {
        let local = !url.contains("://") || url.starts_with("file://");
        std::env::var("RECIPE_REMOTE").ok().filter(|_| local)
    };
    let url = args.remote.clone().or_else(from_environment)?;
    (!url.is_empty() && url != "none").then_some(url)
}

/// The folder a recipe lies in.
pub fn folder(recipe: &Path) -> &Path {
    match recipe.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Reads a recipe, and checks the names that other crates know.
pub fn load(args: &RecipeArgs) -> Result<Recipe, Fail> {
    let recipe = spec::load(&args.recipe, &layers(args))?;
    names::check(&recipe)?;
    Ok(recipe)
}

/// What the command line lays over a recipe.
pub fn layers(args: &RecipeArgs) -> Layers {
    Layers {
        profile: args.profile.clone(),
        settings: args.set.iter().cloned().map(Setting).collect(),
    }
}

/// The selection that a command line asks for.
pub fn selection(stages: Vec<String>, select: SelectArgs) -> Result<Selection, Fail> {
    let mut targets = stages;
    targets.extend(select.until);
    let others = !targets.is_empty() || !select.from.is_empty();
    if others && !select.only.is_empty() {
        return Err(Fail::usage(
            "--only is given with other stages or --from",
            "--only says exactly which stages may run; leave the others out",
        ));
    }
    Ok(Selection {
        targets,
        only: select.only,
        from: select.from,
        skip: select.skip,
    })
}

/// The stage and output that `STAGE.OUTPUT` names; the stage may be a cell, `sft[lr=1e-3].model`.
pub fn output(recipe: &Recipe, text: &str) -> Result<(String, String), Fail> {
    let known = || {
        let stages = recipe.stages.values();
        let outputs = stages.flat_map(|s| {
            s.outputs
                .iter()
                .map(move |o| format!("{}.{}", s.name, o.name))
        });
        outputs.collect::<Vec<String>>()
    };
    let wrong = |message: String| {
        let known = known();
        Fail::usage(message, suggestion(text, known.iter().map(String::as_str)))
    };
    let Some((stage, output)) = text.rsplit_once('.') else {
        return Err(wrong(format!("'{text}' is not an output")));
    };
    let stage = one_stage(recipe, stage)?;
    let outputs = &recipe.stages[&stage].outputs;
    if !outputs.iter().any(|o| o.name == output) {
        let names = outputs.iter().map(|o| o.name.as_str());
        return Err(Fail::usage(
            format!("stage '{stage}' has no output '{output}'"),
            suggestion(output, names),
        ));
    }
    Ok((stage, output.to_owned()))
}

/// The one stage or cell that a word on the command line names.
pub fn one_stage(recipe: &Recipe, word: &str) -> Result<String, Fail> {
    match recipe.named(word)?[..] {
        [stage] => Ok(stage.to_owned()),
        ref cells => Err(Fail::usage(
            format!("'{word}' names {} cells, and one is wanted", cells.len()),
            format!("name one of them, such as '{}'", cells[0]),
        )),
    }
}

/// What a run or a plan needs from the command line.
pub fn options(store: String, compute: ComputeArgs, plan: &Plan) -> Result<runner::Options, Fail> {
    let mut options = runner::Options::new(store);
    options.force = if compute.force.iter().any(String::is_empty) {
        runner::Force::All
    } else if compute.force.is_empty() {
        runner::Force::None
    } else {
        let mut stages = Vec::new();
        for name in &compute.force {
            stages.extend(plan.recipe.named(name)?.into_iter().map(str::to_owned));
        }
        runner::Force::Stages(stages)
    };
    options.device = match compute.device {
        DeviceArg::Auto => runner::Device::Auto,
        DeviceArg::Cpu => runner::Device::Cpu,
        DeviceArg::Cuda => runner::Device::Cuda,
    };
    options.locked = compute.locked;
    options.offline = compute.offline;
    options.accept_trainer = compute.accept_trainer;
    options.command_line = std::env::args().collect();
    options.claim_ttl = claim_ttl()?;
    Ok(options)
}

/// `RECIPE_CLAIM_TTL`: how long a runner that shares the store may be silent before its work is taken over.
fn claim_ttl() -> Result<Option<std::time::Duration>, Fail> {
    let Ok(text) = std::env::var("RECIPE_CLAIM_TTL") else {
        return Ok(None);
    };
    match spec::placement::parse_duration(&text) {
        Ok(ttl) if !ttl.is_zero() => Ok(Some(ttl)),
        _ => Err(Fail::usage(
            format!("RECIPE_CLAIM_TTL is '{text}', which is no time"),
            "set it to a time such as 60s, the same for all runners that share the store, or unset it",
        )),
    }
}
