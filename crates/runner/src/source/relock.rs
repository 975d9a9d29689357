//! `recipe lock`: pins what no lock pins yet, renews pins that are to be renewed, or says which no longer hold.

use cache::{Digest, Store};
use serde::Serialize;
use spec::{Recipe, SourceSpec};

use super::{Lock, Pin, files, hub, origin, repository, url};
use crate::error::Error;

/// A source and its pin.
#[derive(Debug, Clone, Serialize)]
pub struct Locked {
    pub source: String,
    /// Where it comes from.
    pub from: String,
    /// Hex digest that the lock has now, if it has one.
    pub digest: Option<String>,
    /// Hub only: the commit that the lock has now.
    pub commit: Option<String>,
    #[serde(flatten)]
    pub change: Change,
}

/// What became of a pin, or would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "change")]
pub enum Change {
    Kept,
    New,
    /// The digest or commit it had before.
    Updated {
        before: String,
    },
    /// Only looked for: what it is now.
    Drifted {
        now: String,
    },
    /// Only looked for: the lock does not have it.
    Missing,
}

/// What to do with pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Relock {
    /// Pin what is not pinned, and renew those of these sources.
    Update(Vec<String>),
    /// Change nothing; say which pins do not hold.
    Check,
}

/// Brings the lock of a recipe's folder up to date, or only looks. Local files are always pinned as they are: whether
/// they changed is seen by every run.
pub fn relock(
    recipe: &Recipe,
    store: &Store,
    what: &Relock,
    offline: bool,
) -> Result<Vec<Locked>, Error> {
    let mut lock = Lock::read(&recipe.folder)?;
    let mut all = Vec::with_capacity(recipe.sources.len());
    for (name, source) in &recipe.sources {
        if let SourceSpec::Adopted(digest) = &source.from {
            // the recipe itself says what it is
            all.push(Locked {
                source: name.clone(),
                from: source.from.to_string(),
                digest: Some(digest.clone()),
                commit: None,
                change: Change::Kept,
            });
            continue;
        }
        let origin = origin(recipe, &source.from);
        let pin = lock.get(&origin).cloned();
        let renew = matches!(what, Relock::Update(names) if names.contains(name));
        let (pin, change) = match (what, pin) {
            (Relock::Check, None) => (None, Change::Missing),
            (Relock::Check, Some(pin)) => {
                let change = match drift(name, &source.from, &pin, store, offline)? {
                    Some(now) => Change::Drifted { now },
                    None => Change::Kept,
                };
                (Some(pin), change)
            }
            (_, Some(pin)) if !renew && !matches!(source.from, SourceSpec::Path(_)) => {
                (Some(pin), Change::Kept)
            }
            (_, before) => {
                let pin = fetch(name, &source.from, store, offline)?;
                let change = match before {
                    None => Change::New,
                    Some(before) if before == pin => Change::Kept,
                    Some(before) => Change::Updated {
                        before: before.commit.unwrap_or_else(|| before.digest.hex()),
                    },
                };
                lock.set(origin, pin.clone());
                (Some(pin), change)
            }
        };
        all.push(Locked {
            source: name.clone(),
            from: source.from.to_string(),
            digest: pin.as_ref().map(|p| p.digest.hex()),
            commit: pin.and_then(|p| p.commit),
            change,
        });
    }
    if *what != Relock::Check {
        lock.save()?;
    }
    Ok(all)
}

/// What a source is now.
fn fetch(name: &str, spec: &SourceSpec, store: &Store, offline: bool) -> Result<Pin, Error> {
    let pin = |digest: Digest, commit| Pin { digest, commit };
    match spec {
        SourceSpec::Path(path) => {
            let digest = files::hash(store, path).map_err(|e| files::explain(name, path, e))?;
            Ok(pin(digest, None))
        }
        SourceSpec::Url(at) => Ok(pin(url::fetch(name, at, store, offline)?.digest, None)),
        SourceSpec::Hf { .. } | SourceSpec::HfDataset { .. } | SourceSpec::Adopted(_) => {
            let (repository, revision) = repository(spec).expect("a repository of the hub");
            let (known, commit) = hub::fetch(name, &repository, revision, store, offline)?;
            Ok(pin(known.digest, commit))
        }
    }
}

/// What a source is now, where that is not what is pinned. Of a repository only its commit is asked for.
fn drift(
    name: &str,
    spec: &SourceSpec,
    pin: &Pin,
    store: &Store,
    offline: bool,
) -> Result<Option<String>, Error> {
    if let (Some((repository, revision)), Some(commit)) = (repository(spec), &pin.commit) {
        if offline {
            return Ok(None);
        }
        let now = hub::commit_of(name, &repository, revision)?;
        return Ok((now != *commit).then_some(now));
    }
    let now = fetch(name, spec, store, offline)?.digest;
    Ok((now != pin.digest).then(|| now.hex()))
}
