//! Run records.
//!
//! | stored | where | why |
//! |---|---|---|
//! | a run's files | `runs/<id>/..` | record, events, logs per attempt: what happened, never what is reused |
//! | their digests | `runs/<id>/sealed` | written when the run has ended: damage to its record shows |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::manifest::check_path;
use crate::record::{Envelope, RunFile};
use crate::store::Store;
use crate::{Digest, Key};

/// The list of a run's files, written when it has ended.
pub(crate) const SEALED: &str = "sealed";

impl Store {
    /// Writes a run's file, such as `record.json` or `logs/sft-1.txt`, replacing what was there.
    pub fn put_run(&self, id: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let path = object_path(id, name)?;
        self.mark_format()?;
        self.backend.put(&path, bytes)
    }

    /// Where a run's file lies in a local store, for appending to it; its folder exists afterwards.
    /// `None` for a remote store: write elsewhere, and [`Store::put_run`] at the end.
    pub fn run_path(&self, id: &str, name: &str) -> Result<Option<PathBuf>> {
        let path = object_path(id, name)?;
        let Some(at) = self.backend.file(&path) else {
            return Ok(None);
        };
        self.mark_format()?;
        let parent = at.parent().expect("a path in the store has a parent");
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        Ok(Some(at))
    }

    /// A run's file.
    pub fn get_run(&self, id: &str, name: &str) -> Result<Option<Vec<u8>>> {
        self.backend.get(&object_path(id, name)?)
    }

    /// All runs' ids, sorted: name them so that this is the order of time.
    pub fn list_runs(&self) -> Result<Vec<String>> {
        let mut ids = self.backend.children("runs")?;
        ids.sort();
        Ok(ids)
    }

    /// The names of a run's files, sorted.
    pub fn list_run_files(&self, id: &str) -> Result<Vec<String>> {
        check_name("run", id)?;
        let prefix = format!("runs/{id}");
        let mut names = Vec::new();
        self.backend.list(&prefix, &mut |object| {
            names.extend(object.path.get(prefix.len() + 1..).map(str::to_owned));
            Ok(())
        })?;
        names.retain(|name| name != SEALED);
        names.sort();
        Ok(names)
    }

    /// Says that a run has ended, with the digests of its files below `dir` (its folder, or the
    /// one they were sent from), so that [`Store::verify`] finds damage.
    pub fn seal_run(&self, id: &str, dir: &Path) -> Result<()> {
        let path = object_path(id, SEALED)?;
        let mut names = Vec::new();
        files_below(dir, "", &mut names)?;
        names.sort();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            files.push(RunFile {
                digest: Digest::of_file(&dir.join(&name))?,
                name,
                damaged: false,
            });
        }
        let run = id.to_owned();
        self.backend
            .put(&path, &Envelope::Run { run, files }.encode())
    }

    /// The files that a run ended with; `None` when it has not ended. An `Err` inside says why its
    /// list cannot be read.
    pub(crate) fn sealed_files(&self, id: &str) -> Result<Option<Result<Vec<RunFile>, String>>> {
        let Some(bytes) = self.backend.get(&object_path(id, SEALED)?)? else {
            return Ok(None);
        };
        Ok(Some(match Envelope::decode(&bytes) {
            Ok(Envelope::Run { run, files }) if run == id => Ok(files),
            Ok(_) => Err("it belongs to another place".into()),
            Err(why) => Err(why),
        }))
    }

    /// The files of a run whose digests its list does not hold, whatever became of the list: it proves the others, read
    /// as a whole or not.
    pub(crate) fn unproved(&self, id: &str) -> Result<Vec<String>> {
        let list = self.backend.get(&object_path(id, SEALED)?)?;
        let list = String::from_utf8_lossy(&list.unwrap_or_default()).into_owned();
        let mut names = Vec::new();
        for name in self.list_run_files(id)? {
            let bytes = self.get_run(id, &name)?.unwrap_or_default();
            if !list.contains(&Digest::of(&bytes).hex()) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Replaces the list of a run's files.
    pub(crate) fn put_sealed(&self, id: &str, files: Vec<RunFile>) -> Result<()> {
        let run = id.to_owned();
        let path = object_path(id, SEALED)?;
        self.backend
            .put(&path, &Envelope::Run { run, files }.encode())
    }

    /// The results that a run used, from its record; none when that cannot be read.
    pub(crate) fn used_by(&self, id: &str) -> Result<Vec<Used>> {
        #[derive(serde::Deserialize)]
        struct Record {
            stages: Vec<Stage>,
        }
        #[derive(serde::Deserialize)]
        struct Stage {
            key: Option<Key>,
            attempt: Option<u32>,
            #[serde(default)]
            outputs: BTreeMap<String, Digest>,
        }
        let bytes = self.get_run(id, "record.json")?.unwrap_or_default();
        let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
            return Ok(Vec::new());
        };
        let used = record.stages.into_iter().filter_map(|stage| {
            Some(Used {
                key: stage.key?,
                attempt: stage.attempt.filter(|_| !stage.outputs.is_empty()),
            })
        });
        Ok(used.collect())
    }
}

/// A result that a run used.
pub(crate) struct Used {
    pub key: Key,
    /// Set when the run had outputs of it.
    pub attempt: Option<u32>,
}

fn files_below(dir: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(Error::io("stat", dir))?;
        if kind.is_dir() {
            files_below(&entry.path(), &format!("{name}/"), names)?;
        } else if kind.is_file() && name != SEALED {
            names.push(name);
        }
    }
    Ok(())
}

fn object_path(id: &str, name: &str) -> Result<String> {
    check_name("run", id)?;
    check_path(name).map_err(|why| Error::BadName {
        what: "file",
        name: name.to_owned(),
        why,
    })?;
    Ok(format!("runs/{id}/{name}"))
}

pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    let bad = |why| Error::BadName {
        what,
        name: name.to_owned(),
        why,
    };
    check_path(name).map_err(bad)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if !name.chars().all(plain) {
        return Err(bad(
            "it may hold letters, digits, '-', '_', '.' and '+' only",
        ));
    }
    Ok(())
}
