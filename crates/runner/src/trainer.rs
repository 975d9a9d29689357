//! The worker binary: where it is, and what it computes.
//!
//! Its identity is part of every key that it makes. Asking it takes a process that loads libtorch, so the answer is kept
//! with the file's stat, which changes whenever the binary does.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use cache::Store;
use serde::{Deserialize, Serialize};
use spec::Trainer;

use crate::error::Error;
use crate::options::Options;
use crate::source::write_atomic;

/// Finds the worker: the option, `RECIPE_WORKER`, or `recipe-worker` beside this program.
pub fn worker(options: &Options) -> Result<PathBuf, Error> {
    let named = options
        .worker
        .clone()
        .or_else(|| std::env::var_os("RECIPE_WORKER").map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None => std::env::current_exe()
            .map_err(|source| Error::System {
                what: "cannot find this program's own file",
                source,
            })?
            .with_file_name("recipe-worker"),
    };
    if !path.is_file() {
        return Err(Error::Worker {
            path,
            message: "no such file".into(),
            help: Some(
                "build it with `cargo xtask build`, or set RECIPE_WORKER to where it is".into(),
            ),
        });
    }
    std::path::absolute(&path).map_err(|source| Error::Io {
        what: "cannot find",
        path,
        source,
    })
}

/// Device, inode, size, mtime and ctime of a file.
type Stat = (u64, u64, u64, i64, i64, i64, i64);

#[derive(Serialize, Deserialize)]
struct Remembered {
    stat: Stat,
    trainer: Trainer,
}

/// Asks a worker who it is, by a process that loads libtorch.
pub fn ask(worker: &Path) -> Result<Trainer, Error> {
    let out = Command::new(worker)
        .arg("identity")
        .output()
        .map_err(|e| unusable(worker, e.to_string()))?;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        return Err(unusable(
            worker,
            format!("`identity` ended with {}: {}", out.status, said.trim()),
        ));
    }
    serde_json::from_slice(&out.stdout)
        .map_err(|e| unusable(worker, format!("`identity` printed something else: {e}")))
}

fn unusable(worker: &Path, message: String) -> Error {
    Error::Worker {
        path: worker.to_owned(),
        message,
        help: Some("run it by hand to see what is wrong: `recipe-worker identity`".into()),
    }
}

/// What the worker computes, asked once per binary.
pub fn identity(worker: &Path, store: &Store) -> Result<Trainer, Error> {
    let meta = std::fs::metadata(worker).map_err(|e| unusable(worker, e.to_string()))?;
    let stat: Stat = (
        meta.dev(),
        meta.ino(),
        meta.size(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    let memory = remembered_at(store);
    let name = worker.display().to_string();
    let mut all: BTreeMap<String, Remembered> = memory
        .as_ref()
        .and_then(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
        .unwrap_or_default();
    if let Some(known) = all.get(&name).filter(|r| r.stat == stat) {
        return Ok(known.trainer.clone());
    }
    let trainer = ask(worker)?;
    all.insert(
        name,
        Remembered {
            stat,
            trainer: trainer.clone(),
        },
    );
    if let Some(path) = memory {
        // Forgetting costs a second the next time, no more.
        let _ = path.parent().map(std::fs::create_dir_all);
        let _ = write_atomic(&path, &serde_json::to_vec_pretty(&all).unwrap_or_default());
    }
    Ok(trainer)
}

fn remembered_at(store: &Store) -> Option<PathBuf> {
    Some(node_local(store)?.join("trainer.json"))
}

/// A directory of this machine for what is not in the store: beside a local store, else the user's cache.
pub fn node_local(store: &Store) -> Option<PathBuf> {
    if let Some(root) = store.local() {
        return Some(root.join("local"));
    }
    let home = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache")))?;
    Some(home.join("recipe"))
}
