//! Attempt directories: scratch of this machine, removed after the attempt, or by a later run when this one was killed.
//!
//! They lie beside a local store, so that outputs enter it by a rename. Each run holds a lock for as long as it lives:
//! what belongs to a free lock is garbage. An attempt's directory, emptied, serves the next one: file systems take
//! longer to make and remove directories than a short stage takes to run.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use cache::{Digest, Store};
use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;
use crate::trainer::node_local;

/// The directories in every attempt's directory.
const FOLDERS: [&str; 4] = ["in", "out", "work", "tmp"];

/// The scratch of one run.
pub struct Scratch {
    root: PathBuf,
    lock: PathBuf,
    /// Emptied directories.
    spare: Mutex<Vec<PathBuf>>,
    /// Held until the run ends.
    _held: Flock<File>,
}

impl Scratch {
    pub fn open(store: &Store, run: &str) -> Result<Scratch, Error> {
        let base = base(store);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                what: "cannot create",
                path,
                source,
            }
        };
        fs::create_dir_all(&base).map_err(io(&base))?;
        let lock = base.join(format!("{run}.lock"));
        let file = File::create(&lock).map_err(io(&lock))?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| io(&lock)(e.into()))?;
        sweep(&base);
        Ok(Scratch {
            root: base.join(run),
            lock,
            spare: Mutex::default(),
            _held: held,
        })
    }

    /// A directory for an attempt, with empty `in`, `out`, `work` and `tmp`.
    pub fn attempt(self: &Arc<Self>, stage: &str, attempt: u32) -> Result<Attempt, Error> {
        let path = self.root.join(format!("{}-{attempt}", folder(stage)));
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .pop()
            .is_some_and(|spare| fs::rename(spare, &path).is_ok());
        let attempt = Attempt {
            scratch: self.clone(),
            path,
        };
        if !spare {
            for folder in FOLDERS {
                let path = attempt.path.join(folder);
                fs::create_dir_all(&path).map_err(|source| Error::Io {
                    what: "cannot create",
                    path,
                    source,
                })?;
            }
        }
        Ok(attempt)
    }
}

/// A stage's name for paths that scripts meet: what a shell would expand in a cell's name is replaced, and a digest
/// keeps such names apart.
fn folder(stage: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if stage.chars().all(plain) {
        return stage.to_owned();
    }
    let name: String = stage
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    format!("{name}{}", Digest::of(stage.as_bytes()).short())
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
        let _ = fs::remove_file(&self.lock);
    }
}

/// One attempt's directory, emptied or removed when dropped.
pub struct Attempt {
    scratch: Arc<Scratch>,
    pub path: PathBuf,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        match empty(&self.path) {
            Ok(()) => {
                let mut spare = self.scratch.spare.lock().unwrap_or_else(|e| e.into_inner());
                spare.push(std::mem::take(&mut self.path));
            }
            Err(_) => drop(fs::remove_dir_all(&self.path)),
        }
    }
}

/// Leaves nothing in an attempt's directory but its folders, as they were made; fails where that cannot be.
fn empty(path: &Path) -> std::io::Result<()> {
    let mode = |meta: fs::Metadata| meta.permissions().mode();
    let made_as = mode(fs::symlink_metadata(path)?);
    let mut left = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let folder = FOLDERS.iter().any(|name| entry.file_name() == *name);
        if !folder || mode(meta.clone()) != made_as {
            remove(&entry.path(), meta.is_dir())?;
            continue;
        }
        left += 1;
        for inner in fs::read_dir(entry.path())? {
            let inner = inner?;
            remove(&inner.path(), inner.file_type()?.is_dir())?;
        }
    }
    if left == FOLDERS.len() {
        Ok(())
    } else {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

fn remove(path: &Path, dir: bool) -> std::io::Result<()> {
    if dir {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}

/// Where runs have their scratch.
fn base(store: &Store) -> PathBuf {
    let beside = match store.local() {
        Some(_) => node_local(store),
        None => None,
    };
    beside
        .unwrap_or_else(|| std::env::temp_dir().join("recipe"))
        .join("attempts")
}

/// Removes what dead runs left, for a run that needs no scratch of its own.
pub fn tidy(store: &Store) {
    sweep(&base(store));
}

/// Removes the scratch of runs that are gone. A failure here is no reason not to run.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        // Our own lock is held through another descriptor, so it is refused here like anyone's.
        if let Ok(_taken) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let _ = fs::remove_dir_all(path.with_extension(""));
            let _ = fs::remove_file(&path);
        }
    }
}
