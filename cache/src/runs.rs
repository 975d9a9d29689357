//! Run records and pins.
//!
//! | stored | where | why |
//! |---|---|---|
//! | a run's files | `runs/<id>/..` | record, events, logs per attempt: what happened, never what is reused |
//! | pin | `pins/<name>` | an artifact that no collection may remove |

use std::path::PathBuf;

use crate::Digest;
use crate::error::{Error, Result};
use crate::manifest::check_path;
use crate::store::Store;

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
        self.backend.list(&prefix, &mut |path, _| {
            names.push(path[prefix.len() + 1..].to_owned());
            Ok(())
        })?;
        names.sort();
        Ok(names)
    }

    /// Keeps an artifact under a name, which moves if it exists.
    pub fn pin(&self, name: &str, artifact: &Digest) -> Result<()> {
        check_name("pin", name)?;
        self.mark_format()?;
        self.backend
            .put(&format!("pins/{name}"), format!("{artifact}\n").as_bytes())
    }

    /// Removes a pin: false when there was none.
    pub fn unpin(&self, name: &str) -> Result<bool> {
        check_name("pin", name)?;
        self.backend.delete(&format!("pins/{name}"))
    }

    /// All pins, sorted by name.
    pub fn pins(&self) -> Result<Vec<(String, Digest)>> {
        let mut names = self.backend.children("pins")?;
        names.sort();
        let mut pins = Vec::with_capacity(names.len());
        for name in names {
            let path = format!("pins/{name}");
            let Some(bytes) = self.backend.get(&path)? else {
                continue;
            };
            let text = String::from_utf8_lossy(&bytes);
            let digest = text
                .trim_end()
                .parse()
                .map_err(|_| self.corrupt(&path, "it holds no digest"))?;
            pins.push((name, digest));
        }
        Ok(pins)
    }
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

fn check_name(what: &'static str, name: &str) -> Result<()> {
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
