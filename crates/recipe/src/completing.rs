//! What a shell offers while a command is typed: stages of the recipe that is named, its outputs and
//! profiles, runs of the store.
//!
//! The shell's script (`recipe completions SHELL`) runs `recipe` with [`VARIABLE`] set and the words so
//! far behind `--`. What cannot be read (a recipe with a mistake in it, no store) offers nothing.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::CompleteEnv;
use spec::Recipe;

use crate::args::{Cli, RecipeArgs, StoreArgs};
use crate::past::Run;
use crate::verbs::runs;
use crate::{output, project};

/// Set by the shell's script, to its own name.
pub const VARIABLE: &str = "RECIPE_COMPLETE";
/// Runs that are offered, the latest.
const RUNS: usize = 30;

/// Answers a shell that asks. False where none does.
pub fn answered() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    // a recipe that cannot be read is no reason to print into somebody's prompt
    let answer = CompleteEnv::with_factory(Cli::command).var(VARIABLE);
    let here = std::env::current_dir().ok();
    match answer.try_complete(std::env::args_os(), here.as_deref()) {
        Ok(answered) => answered,
        Err(e) => {
            output::error(&format!("error: {e}"));
            true
        }
    }
}

pub fn stages(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(recipe) = recipe() else {
        return Vec::new();
    };
    let all = recipe.stages.values();
    offer(
        current,
        all.map(|s| (s.name.clone(), s.kind.doc.to_owned())),
    )
}

/// `STAGE.OUTPUT`.
pub fn outputs(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(recipe) = recipe() else {
        return Vec::new();
    };
    let all = recipe.stages.values().flat_map(|s| {
        let outputs = s.outputs.iter();
        outputs.map(move |o| {
            (
                format!("{}.{}", s.name, o.name),
                o.artifact.name().to_owned(),
            )
        })
    });
    offer(current, all)
}

pub fn profiles(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(recipe) = recipe() else {
        return Vec::new();
    };
    let names = recipe.profiles.into_iter();
    offer(current, names.map(|name| (name, String::new())))
}

/// `last`, and ids, the latest first.
pub fn runs(current: &OsStr) -> Vec<CompletionCandidate> {
    let Some(store) = store() else {
        return Vec::new();
    };
    let ids = store.list_runs().unwrap_or_default();
    let latest = ids.into_iter().rev().take(RUNS).map(|id| {
        let record = runs::record(&store, &id).ok().flatten();
        let told = record.map(|r| format!("{}, {}", runs::text(&r, "recipe"), runs::state(&r)));
        (id, told.unwrap_or_default())
    });
    let last = ("last".to_owned(), "the latest run".to_owned());
    offer(current, std::iter::once(last).chain(latest))
}

/// The stages of the run that is named: the first word behind the verb.
pub fn stages_of_run(current: &OsStr) -> Vec<CompletionCandidate> {
    let words = words();
    let run = words.iter().skip(2).find(|w| !w.starts_with('-'));
    let found = store()
        .zip(run)
        .and_then(|(store, run)| Run::read(&store, run).ok());
    let all = found.into_iter().flat_map(|run| run.stages);
    offer(current, all.map(|s| (s.stage, s.status.replace('_', " "))))
}

fn offer(current: &OsStr, all: impl Iterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let begun = current.to_str().unwrap_or_default();
    all.filter(|(name, _)| name.starts_with(begun))
        .map(|(name, help)| {
            let help = (!help.is_empty()).then(|| help.into());
            CompletionCandidate::new(name).help(help)
        })
        .collect()
}

/// The command line that is being typed, with the program's name.
fn words() -> Vec<String> {
    let all = std::env::args_os();
    all.skip_while(|word| word != "--")
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

/// Values of an option among the words.
fn values(words: &[String], option: &str) -> Vec<String> {
    let pairs = words.windows(2).filter(|pair| pair[0] == option);
    pairs.map(|pair| pair[1].clone()).collect()
}

/// The recipe that is named, with its layers.
fn recipe() -> Option<Recipe> {
    let words = words();
    let file = words.iter().skip(2).find(|word| {
        Path::new(word).extension() == Some(OsStr::new("toml")) && Path::new(word).is_file()
    })?;
    let args = RecipeArgs {
        recipe: PathBuf::from(file),
        set: values(&words, "-S"),
        profile: values(&words, "--profile").pop().filter(|p| !p.is_empty()),
    };
    let plain = || RecipeArgs {
        recipe: PathBuf::from(file),
        set: Vec::new(),
        profile: None,
    };
    // a layer that is half typed does not hide the rest
    project::load(&args)
        .or_else(|_| project::load(&plain()))
        .ok()
}

fn store() -> Option<cache::Store> {
    let words = words();
    let store = values(&words, "--store").pop().filter(|s| !s.is_empty());
    project::open_store(&StoreArgs { store }).ok()
}
