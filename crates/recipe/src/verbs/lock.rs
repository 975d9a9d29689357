//! `recipe lock`: what the sources are, pinned in recipe.lock, or looked at only.

use crate::args::LockArgs;
use crate::fail::Fail;
use crate::format::{plural, table};
use crate::{output, project};
use runner::{Change, Locked, Relock};
use serde_json::json;
use spec::codes;
use spec::diagnostic::suggestion;

pub fn run(args: LockArgs) -> Result<u8, Fail> {
    let recipe = project::load(&args.recipe)?;
    let known = || recipe.sources.keys().map(String::as_str);
    let all = args.update.iter().any(String::is_empty);
    if let Some(wrong) = args
        .update
        .iter()
        .find(|n| !n.is_empty() && !known().any(|k| k == *n))
    {
        return Err(Fail::usage(
            format!("the recipe has no source '{wrong}'"),
            suggestion(wrong, known()),
        ));
    }
    let what = match (args.check, all) {
        (true, _) => Relock::Check,
        (false, true) => Relock::Update(known().map(str::to_owned).collect()),
        (false, false) => Relock::Update(args.update.clone()),
    };
    let url = project::store(&args.store, project::folder(&args.recipe.recipe));
    project::prepare_store(&args.store, &url)?;
    let store = cache::Store::open(&url)?;
    let sources = runner::relock(&recipe, &store, &what, args.offline)?;
    store.flush()?;
    if args.json {
        output::json(&json!({ "version": 1, "recipe": recipe.name, "sources": sources }));
    } else {
        output::line(as_text(&sources));
    }
    let stale: Vec<&Locked> = sources
        .iter()
        .filter(|s| matches!(s.change, Change::Drifted { .. } | Change::Missing))
        .collect();
    let Some(first) = stale.first() else {
        return Ok(0);
    };
    let names: Vec<&str> = stale.iter().map(|s| s.source.as_str()).collect();
    Err(Fail::Other {
        code: codes::LOCK,
        exit: 6,
        message: format!(
            "'recipe.lock' is stale: {} not as it says: {}",
            match stale.len() {
                1 => "1 source is".to_owned(),
                n => format!("{} are", plural(n, "source")),
            },
            names.join(", ")
        ),
        help: format!(
            "to take what is there now: recipe lock {} --update {}",
            args.recipe.recipe.display(),
            if stale.len() == 1 {
                first.source.as_str()
            } else {
                ""
            }
        ),
    })
}

fn as_text(sources: &[Locked]) -> String {
    let short = |hex: &str| hex.get(..12).unwrap_or(hex).to_owned();
    let mut rows = vec![
        ["source", "from", "pinned at", ""]
            .map(str::to_owned)
            .to_vec(),
    ];
    for source in sources {
        let pinned = source.commit.as_deref().or(source.digest.as_deref());
        rows.push(vec![
            source.source.clone(),
            source.from.clone(),
            pinned.map_or_else(|| "-".to_owned(), short),
            match &source.change {
                Change::Kept => String::new(),
                Change::New => "new".to_owned(),
                Change::Updated { before } => format!("was {}", short(before)),
                Change::Drifted { now } => format!("is now {}", short(now)),
                Change::Missing => "not in recipe.lock".to_owned(),
            },
        ]);
    }
    match sources.is_empty() {
        true => "the recipe has no sources".to_owned(),
        false => table(&rows),
    }
}
