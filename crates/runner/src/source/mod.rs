//! Sources: what enters from outside, pinned by digest in `recipe.lock`.
//!
//! | origin | looked at without network | handed to an attempt |
//! |---|---|---|
//! | local path | hashed each time, through the store's stat cache | in place, checked again after the attempt |
//! | hub | its pin | links to the hub cache's files |
//! | URL | its pin | from the store, where it was put when it was fetched |
//! | adopted | the digest that the recipe names | from the store |

mod adopted;
mod files;
mod http;
mod hub;
mod lock;
mod relock;
mod url;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cache::{Digest, Store};
use spec::{Recipe, SourceSpec};

use crate::error::{Class, Error};

pub use adopted::{Adoption, adopt};
pub use files::{manifest, single_file};
use hub::Repository;
pub use lock::{Lock, Origin, Pin, write_atomic};
pub use relock::{Change, Locked, Relock, relock};

/// What fetching a source may do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Access {
    /// Ask no network.
    pub offline: bool,
    /// A content that is not the pinned one is a stale lock.
    pub locked: bool,
}

/// The artifacts that the lock of a folder's recipes names.
pub fn locked(folder: &Path) -> Result<Vec<Digest>, Error> {
    Ok(Lock::read(folder)?.pins().map(|pin| pin.digest).collect())
}

/// Where a source's files are on this machine already; asks no network. Of a repository on the hub
/// some files may be missing.
pub fn at_hand(recipe: &Recipe, name: &str) -> Option<PathBuf> {
    let spec = &recipe.sources.get(name)?.from;
    match spec {
        SourceSpec::Path(path) => Some(path.clone()),
        SourceSpec::Url(_) | SourceSpec::Adopted(_) => None,
        SourceSpec::Hf { .. } | SourceSpec::HfDataset { .. } => {
            let (repository, revision) = repository(spec)?;
            hub::cached(name, &repository, revision)
        }
    }
}

/// A source whose content is known.
#[derive(Debug, Clone)]
pub struct Known {
    pub digest: Digest,
    pub from: From,
}

/// Where a known source's bytes are.
#[derive(Debug, Clone)]
pub enum From {
    Local(PathBuf),
    Hub {
        repository: Repository,
        commit: String,
    },
    Url(String),
    Store,
}

/// The sources that a plan reads.
pub struct Sources {
    lock: Lock,
    /// By name; absent when only the network can tell.
    known: BTreeMap<String, Known>,
    /// What changed against the lock: (name, digest, text).
    pub notices: Vec<(String, Digest, String)>,
}

impl Sources {
    /// Looks at `names` without network: local files are hashed, the rest is known if the lock pins it.
    pub fn look<'a>(
        recipe: &Recipe,
        names: impl Iterator<Item = &'a str>,
        store: &Store,
        locked: bool,
    ) -> Result<Sources, Error> {
        let mut sources = Sources {
            lock: Lock::read(&recipe.folder)?,
            known: BTreeMap::new(),
            notices: Vec::new(),
        };
        for name in names {
            let spec = &recipe.sources[name].from;
            if let SourceSpec::Adopted(digest) = spec {
                let known = adopted(store, name, digest)?;
                sources.known.insert(name.to_owned(), known);
                continue;
            }
            let origin = origin(recipe, spec);
            let pin = sources.lock.get(&origin).cloned();
            let known = match (spec, pin) {
                (SourceSpec::Path(path), pin) => {
                    let digest =
                        files::hash(store, path).map_err(|e| files::explain(name, path, e))?;
                    if pin.as_ref().map(|p| p.digest) != Some(digest) {
                        let stale = match &pin {
                            None => format!("source '{name}' ({spec}) is not in it"),
                            Some(p) => format!(
                                "source '{name}' ({spec}) has digest {}, it says {}",
                                digest.short(),
                                p.digest.short()
                            ),
                        };
                        if locked {
                            return Err(Error::Lock {
                                path: sources.lock.path().to_owned(),
                                message: stale,
                            });
                        }
                        if let Some(p) = pin {
                            let text = format!(
                                "{spec} changed since it was locked ({} -> {})",
                                p.digest.short(),
                                digest.short()
                            );
                            sources.notices.push((name.to_owned(), digest, text));
                        }
                        sources.lock.set(
                            origin,
                            Pin {
                                digest,
                                commit: None,
                            },
                        );
                    }
                    // Processes that read it work in directories of their own.
                    let at = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                    Some(Known {
                        digest,
                        from: From::Local(at),
                    })
                }
                (_, None) if locked => {
                    let message = format!("source '{name}' ({spec}) is not in it");
                    return Err(Error::Lock {
                        path: sources.lock.path().to_owned(),
                        message,
                    });
                }
                (_, None) | (SourceSpec::Adopted(_), _) => None,
                (SourceSpec::Hf { .. } | SourceSpec::HfDataset { .. }, Some(pin)) => {
                    repository(spec).and_then(|(repository, _)| known_hub(repository, pin))
                }
                (SourceSpec::Url(url), Some(pin)) => Some(Known {
                    digest: pin.digest,
                    from: From::Url(url.clone()),
                }),
            };
            if let Some(known) = known {
                sources.known.insert(name.to_owned(), known);
            }
        }
        Ok(sources)
    }

    /// All that are known, by name.
    pub fn known(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.known
            .iter()
            .map(|(name, known)| (name.as_str(), known))
    }

    pub fn get(&self, name: &str) -> Option<&Known> {
        self.known.get(name)
    }

    /// Fetches a source that no lock pins yet, and pins it.
    pub fn pin(
        &mut self,
        recipe: &Recipe,
        name: &str,
        store: &Store,
        offline: bool,
    ) -> Result<(), Error> {
        let spec = &recipe.sources[name].from;
        let (known, commit) = match spec {
            SourceSpec::Path(_) | SourceSpec::Adopted(_) => return Ok(()),
            SourceSpec::Hf { .. } | SourceSpec::HfDataset { .. } => {
                let Some((repository, revision)) = repository(spec) else {
                    return Ok(());
                };
                hub::fetch(name, &repository, revision, store, offline)?
            }
            SourceSpec::Url(at) => (url::fetch(name, at, store, offline)?, None),
        };
        let text = format!(
            "{spec} is pinned at {}",
            commit.as_deref().unwrap_or(&known.digest.short())
        );
        self.notices.push((name.to_owned(), known.digest, text));
        self.lock.set(
            origin(recipe, spec),
            Pin {
                digest: known.digest,
                commit,
            },
        );
        self.known.insert(name.to_owned(), known);
        Ok(())
    }

    /// Writes `recipe.lock` if something changed.
    pub fn save(&mut self) -> Result<(), Error> {
        self.lock.save()
    }
}

impl Known {
    /// Whether it is a model's repository on the hub.
    pub fn is_weights(&self) -> bool {
        matches!(&self.from, From::Hub { repository, .. } if !repository.dataset)
    }

    /// Makes the bytes available at or below `to` (which does not exist yet); returns where they are.
    pub fn provide(
        &self,
        name: &str,
        store: &Store,
        to: &Path,
        access: Access,
    ) -> Result<PathBuf, Error> {
        match &self.from {
            From::Local(path) => Ok(path.clone()),
            From::Hub { repository, commit } => hub::provide(
                name,
                (repository, commit.as_str()),
                self.digest,
                store,
                to,
                access,
            ),
            From::Url(at) => {
                if !store.artifact_intact(&self.digest)?.is_yes() {
                    let again = url::fetch(name, at, store, access.offline)?;
                    if again.digest != self.digest {
                        return Err(changed(name, at, self.digest, again.digest, access));
                    }
                }
                self.materialize(store, to)
            }
            From::Store => self.materialize(store, to),
        }
    }

    fn materialize(&self, store: &Store, to: &Path) -> Result<PathBuf, Error> {
        let manifest = store.materialize(&self.digest, to, cache::Link::Reflink)?;
        Ok(files::handed_over(&manifest, to))
    }

    /// Fails when a source that was read in place is no longer what it was.
    pub fn still(&self, name: &str, store: &Store) -> Result<(), Error> {
        let From::Local(path) = &self.from else {
            return Ok(());
        };
        let now = files::hash(store, path).map_err(|e| files::explain(name, path, e))?;
        if now == self.digest {
            return Ok(());
        }
        Err(Error::Source {
            name: name.into(),
            message: format!("'{}' was changed while a stage read it", path.display()),
            class: Class::Integrity,
            help: Some("run again: the stage then reads the new content".into()),
        })
    }
}

/// An artifact that the recipe names by digest.
fn adopted(store: &Store, name: &str, digest: &str) -> Result<Known, Error> {
    let digest: Digest = digest.parse().map_err(|e| Error::Source {
        name: name.to_owned(),
        message: format!("'{digest}' is not a digest: {e}"),
        class: Class::Config,
        help: Some("`recipe adopt` prints it".into()),
    })?;
    adopted::check(store, name, &digest)?;
    let from = From::Store;
    Ok(Known { digest, from })
}

fn known_hub(repository: Repository, pin: Pin) -> Option<Known> {
    // A pin without its commit cannot be fetched again: as good as no pin.
    let commit = pin.commit?;
    Some(Known {
        digest: pin.digest,
        from: From::Hub { repository, commit },
    })
}

fn changed(name: &str, at: &str, pinned: Digest, found: Digest, access: Access) -> Error {
    let class = match access.locked {
        true => Class::Lock,
        false => Class::Integrity,
    };
    Error::Source {
        name: name.into(),
        message: format!(
            "{at} has digest {}, but recipe.lock pins {}",
            found.short(),
            pinned.short()
        ),
        class,
        help: Some(format!(
            "if the change is wanted: recipe lock RECIPE --update {name}"
        )),
    }
}

/// What a hub source takes, and at which revision.
fn repository(spec: &SourceSpec) -> Option<(Repository, &str)> {
    let (id, dataset, revision, files) = match spec {
        SourceSpec::Hf {
            repo,
            revision,
            files,
        } => (repo, false, revision, files),
        SourceSpec::HfDataset {
            repo,
            revision,
            files,
        } => (repo, true, revision, files),
        SourceSpec::Path(_) | SourceSpec::Url(_) | SourceSpec::Adopted(_) => return None,
    };
    let repository = Repository {
        id: id.clone(),
        dataset,
        files: files.clone(),
    };
    Some((repository, revision))
}

/// How the lock names a source: paths as seen from the recipe's folder.
fn origin(recipe: &Recipe, spec: &SourceSpec) -> Origin {
    match spec {
        SourceSpec::Path(path) => {
            let short = path.strip_prefix(&recipe.folder).unwrap_or(path);
            Origin::Path(short.to_string_lossy().into_owned())
        }
        SourceSpec::Hf {
            repo,
            revision,
            files,
        } => Origin::Hf {
            repo: repo.clone(),
            dataset: false,
            revision: revision.clone(),
            files: files.clone(),
        },
        SourceSpec::HfDataset {
            repo,
            revision,
            files,
        } => Origin::Hf {
            repo: repo.clone(),
            dataset: true,
            revision: revision.clone(),
            files: files.clone(),
        },
        SourceSpec::Url(url) | SourceSpec::Adopted(url) => Origin::Url(url.clone()),
    }
}

/// The commit that a hub source's revision stood for when it was pinned.
pub fn commit(recipe: &Recipe, name: &str) -> Result<Option<String>, Error> {
    let lock = Lock::read(&recipe.folder)?;
    let pin = lock.get(&origin(recipe, &recipe.sources[name].from));
    Ok(pin.and_then(|p| p.commit.clone()))
}
