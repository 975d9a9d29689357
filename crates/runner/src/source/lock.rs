//! `recipe.lock`: what each source was when it was pinned. Sits next to the recipe; recipes of one folder share it.
//!
//! ```toml
//! version = 1
//!
//! [[source]]
//! hf = "Qwen/Qwen3-0.6B"
//! revision = "main"
//! commit = "c1899de289a04d12100db370d81485cdf75e47ca"
//! digest = "..."
//! ```
//!
//! An entry is found by where the source comes from, not by its name in a recipe. The order is stable, so that a
//! changed source is one changed line.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use cache::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Error;

const VERSION: u32 = 1;
const HEAD: &str =
    "# What the sources of the recipes in this folder are. Written by `recipe run`; commit it.\n";

/// Where a source comes from. Its order is the order in the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Path(String),
    Hf {
        repo: String,
        dataset: bool,
        revision: String,
        /// Patterns that choose files; all of them where there are none.
        files: Vec<String>,
    },
    Url(String),
}

/// What a source was found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub digest: Digest,
    /// Hub only: the commit that the revision stood for.
    pub commit: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    source: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hf: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hf_dataset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<String>,
    digest: Digest,
}

/// The lock file in memory.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    pins: BTreeMap<Origin, Pin>,
    changed: bool,
}

impl Lock {
    /// Reads the lock of a recipe's folder; a missing file is an empty lock.
    pub fn read(folder: &Path) -> Result<Lock, Error> {
        let path = folder.join("recipe.lock");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => {
                return Err(Error::Io {
                    what: "cannot read",
                    path,
                    source,
                });
            }
        };
        if text.trim().is_empty() {
            return Ok(Lock {
                path,
                pins: BTreeMap::new(),
                changed: false,
            });
        }
        let bad = |line, message| Error::LockFile {
            path: path.clone(),
            line,
            message,
        };
        let file: File = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |s| {
                text[..s.start.min(text.len())].matches('\n').count() + 1
            });
            bad(line, e.message().to_owned())
        })?;
        if file.version != VERSION {
            return Err(bad(
                1,
                format!(
                    "version {} is not {VERSION}, the one this program knows",
                    file.version
                ),
            ));
        }
        let mut pins = BTreeMap::new();
        for entry in file.source {
            let origin = match (entry.path, entry.hf, entry.hf_dataset, entry.url) {
                (Some(p), None, None, None) => Origin::Path(p),
                (None, Some(repo), None, None) => Origin::Hf {
                    repo,
                    dataset: false,
                    revision: entry.revision.unwrap_or_else(|| "main".into()),
                    files: entry.files,
                },
                (None, None, Some(repo), None) => Origin::Hf {
                    repo,
                    dataset: true,
                    revision: entry.revision.unwrap_or_else(|| "main".into()),
                    files: entry.files,
                },
                (None, None, None, Some(u)) => Origin::Url(u),
                _ => {
                    let message =
                        "a [[source]] needs exactly one of path, hf, hf_dataset and url".to_owned();
                    return Err(bad(1, message));
                }
            };
            pins.insert(
                origin,
                Pin {
                    digest: entry.digest,
                    commit: entry.commit,
                },
            );
        }
        Ok(Lock {
            path,
            pins,
            changed: false,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, origin: &Origin) -> Option<&Pin> {
        self.pins.get(origin)
    }

    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values()
    }

    pub fn set(&mut self, origin: Origin, pin: Pin) {
        if self.pins.get(&origin) != Some(&pin) {
            self.pins.insert(origin, pin);
            self.changed = true;
        }
    }

    /// Writes the file if something changed: whole, or not at all.
    pub fn save(&mut self) -> Result<(), Error> {
        if !self.changed {
            return Ok(());
        }
        let source = self
            .pins
            .iter()
            .map(|(origin, pin)| {
                let mut entry = Entry {
                    path: None,
                    hf: None,
                    hf_dataset: None,
                    url: None,
                    revision: None,
                    files: Vec::new(),
                    commit: pin.commit.clone(),
                    digest: pin.digest,
                };
                match origin.clone() {
                    Origin::Path(p) => entry.path = Some(p),
                    Origin::Url(u) => entry.url = Some(u),
                    Origin::Hf {
                        repo,
                        dataset,
                        revision,
                        files,
                    } => {
                        entry.files = files;
                        *(if dataset {
                            &mut entry.hf_dataset
                        } else {
                            &mut entry.hf
                        }) = Some(repo);
                        entry.revision = Some(revision);
                    }
                }
                entry
            })
            .collect();
        let text = toml::to_string(&File {
            version: VERSION,
            source,
        })
        .map_err(|e| Error::LockFile {
            path: self.path.clone(),
            line: 1,
            message: e.to_string(),
        })?;
        write_atomic(&self.path, format!("{HEAD}{text}").as_bytes())?;
        self.changed = false;
        Ok(())
    }
}

/// Replaces a file: readers see the old bytes or the new ones.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let io = |source| Error::Io {
        what: "cannot write",
        path: path.to_owned(),
        source,
    };
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".recipe-")
        .tempfile_in(folder)
        .map_err(io)?;
    // Through the plain file: tempfile's own errors name the temporary file as well.
    file.as_file_mut().write_all(bytes).map_err(io)?;
    // Temporary files are private; what replaces a file gets the usual mode.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_is_stable_and_strict() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Lock::read(dir.path()).unwrap();
        let pin = |b: u8| Pin {
            digest: Digest([b; 32]),
            commit: None,
        };
        lock.set(Origin::Url("https://x/y".into()), pin(1));
        let hub = Origin::Hf {
            repo: "a/b".into(),
            dataset: true,
            revision: "main".into(),
            files: vec!["main/train-*.parquet".into()],
        };
        lock.set(
            hub.clone(),
            Pin {
                commit: Some("c".repeat(40)),
                ..pin(2)
            },
        );
        lock.set(Origin::Path("data/z.jsonl".into()), pin(3));
        lock.save().unwrap();
        let first = std::fs::read_to_string(dir.path().join("recipe.lock")).unwrap();

        let mut again = Lock::read(dir.path()).unwrap();
        assert_eq!(
            again.get(&hub).unwrap().commit.as_deref(),
            Some("c".repeat(40).as_str())
        );
        // The same pins in another order give the same bytes.
        again.set(Origin::Path("data/z.jsonl".into()), pin(4));
        again.set(Origin::Path("data/z.jsonl".into()), pin(3));
        again.save().unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("recipe.lock")).unwrap(),
            first
        );

        std::fs::write(
            dir.path().join("recipe.lock"),
            "version = 1\n\n[[source]]\npath = \"x\"\ndigset = \"\"\n",
        )
        .unwrap();
        match Lock::read(dir.path()) {
            Err(Error::LockFile { line, .. }) => assert!(line >= 3, "line {line}"),
            other => panic!("{other:?}"),
        }
    }
}
