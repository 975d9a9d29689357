//! `recipe archive RUN --to DIR`: a run as a folder that stands on its own, described as an RO-Crate.
//!
//! It is written elsewhere than artifacts that `recipe get` takes out, since those are read by programs
//! that expect a model's files and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use cache::{Digest, Link, Store};
use serde::Deserialize;
use spec::diagnostic::suggestion;

use crate::args::ArchiveArgs;
use crate::fail::Fail;
use crate::format::plural;
use crate::past::{Reader, Run};
use crate::provenance::crate_graph::{self, Details, Facts};
use crate::{output, project};

/// Where the recipe's files and artifacts lie in the archive.
const RECIPE: &str = "recipe";
const ARTIFACTS: &str = "artifacts";

pub fn run(args: ArchiveArgs) -> Result<u8, Fail> {
    let store = project::open_store_with(&args.store, &args.remote)?;
    let run = Run::read(&store, &args.run)?;
    let taken = taken(&run, &args.with)?;
    if args
        .to
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some())
    {
        return Err(Fail::usage(
            format!("'{}' is not empty", args.to.display()),
            "name a folder that does not exist; nothing was changed",
        ));
    }
    let said = said(&store, &run)?;
    let mut facts = facts(&store, &run, &said, args.license)?;
    let dir = &args.to;
    for file in &said.files {
        let mut name = in_archive(&file.name);
        if facts.recipe.contains(&name) {
            // of another folder
            name = name.replacen('/', &format!("/{}-", facts.recipe.len()), 1);
        }
        write(dir, &name, file.text.as_bytes())?;
        facts.recipe.push(name);
    }
    for name in store.list_run_files(&run.id)? {
        if name == "recipe.json" {
            continue;
        }
        let bytes = store.get_run(&run.id, &name)?.unwrap_or_default();
        write(dir, &name, &bytes)?;
        facts.files.push((name.clone(), what(&name)));
    }
    for (stage, output, digest) in taken {
        let folder = format!("{ARTIFACTS}/{stage}.{output}");
        // two outputs of the same bytes are one artifact
        if facts.artifacts.contains_key(&digest.hex()) {
            continue;
        }
        store.materialize(&digest, &dir.join(&folder), Link::Reflink)?;
        facts.artifacts.insert(digest.hex(), folder);
    }
    let metadata = crate_graph::metadata(&facts);
    write(
        dir,
        "ro-crate-metadata.json",
        format!("{metadata:#}\n").as_bytes(),
    )?;
    output::line(format!(
        "run {}: {}, {} in {}",
        run.id,
        plural(facts.files.len() + facts.recipe.len(), "file"),
        plural(facts.artifacts.len(), "artifact"),
        dir.display()
    ));
    Ok(0)
}

/// The outputs that the archive is to hold.
fn taken(run: &Run, wanted: &[String]) -> Result<Vec<(String, String, Digest)>, Fail> {
    let all = run.stages.iter().flat_map(|s| {
        let outputs = s.outputs.iter();
        outputs.map(move |(output, digest)| (s.stage.clone(), output.clone(), digest))
    });
    let all: Vec<(String, String, &String)> = all.collect();
    let named: Vec<String> = all.iter().map(|(s, o, _)| format!("{s}.{o}")).collect();
    let mut taken = Vec::new();
    for word in wanted {
        let Some(at) = named.iter().position(|name| name == word) else {
            return Err(Fail::not_stored(
                format!("run '{}' has no output '{word}'", run.id),
                suggestion(word, named.iter().map(String::as_str)),
            ));
        };
        let (stage, output, digest) = &all[at];
        if let Ok(digest) = digest.parse() {
            taken.push((stage.clone(), output.clone(), digest));
        }
    }
    Ok(taken)
}

/// What the record says of the recipe; see `runner`'s record.
#[derive(Deserialize)]
struct Said {
    files: Vec<File>,
    sources: BTreeMap<String, Source>,
}

#[derive(Deserialize)]
struct File {
    name: String,
    text: String,
}

#[derive(Deserialize)]
struct Source {
    from: String,
    digest: String,
}

fn said(store: &Store, run: &Run) -> Result<Said, Fail> {
    let bytes = store.get_run(&run.id, "recipe.json")?.unwrap_or_default();
    serde_json::from_slice(&bytes).map_err(|_| {
        Fail::not_stored(
            format!("the record of run '{}' does not have its recipe", run.id),
            "it died early, or was written by an older version of recipe: run the recipe again",
        )
    })
}

fn facts<'a>(store: &Store, run: &'a Run, said: &Said, license: String) -> Result<Facts<'a>, Fail> {
    let reader = Reader::new(store.clone());
    let mut stages = BTreeMap::new();
    for stage in &run.stages {
        if let Some(made) = reader.result(stage)? {
            let told = &made.result.provenance;
            let word = |field: &str| Some(told.get(field)?.as_str()?.to_owned());
            let details = Details {
                started: word("started"),
                finished: word("finished"),
                with: made.preimage.with.clone(),
                inputs: made.preimage.inputs.clone(),
            };
            stages.insert(stage.stage.clone(), details);
        }
    }
    let mut sources = BTreeMap::new();
    for (name, source) in &said.sources {
        let digest = source.digest.parse::<Digest>().ok();
        let adoption = digest
            .map(|d| runner::Adoption::of(store, &d))
            .transpose()?;
        let told = (
            source.from.clone(),
            source.digest.clone(),
            adoption.flatten(),
        );
        sources.insert(name.clone(), told);
    }
    Ok(Facts {
        run,
        recipe: Vec::new(),
        files: Vec::new(),
        artifacts: BTreeMap::new(),
        stages,
        sources,
        license,
    })
}

/// A recipe's file by its name in the archive: without folders of this machine.
fn in_archive(name: &str) -> String {
    let base = name.rsplit('/').next().unwrap_or(name);
    format!("{RECIPE}/{}", crate_graph::escaped(base))
}

fn what(name: &str) -> &'static str {
    match name {
        "record.json" => "what ran and what each stage came to",
        "events.jsonl" => "what happened, in order",
        "metrics.jsonl" => "metrics of each step",
        _ if name.starts_with("logs/") => "what a stage's processes printed",
        _ => "a file of the run's record",
    }
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Fail> {
    let path = dir.join(name);
    let folder = path.parent().unwrap_or(dir);
    std::fs::create_dir_all(folder).map_err(|e| Fail::io("make", folder, &e))?;
    std::fs::write(&path, bytes).map_err(|e| Fail::io("write", &path, &e))
}
