//! Attempt directories: scratch of this machine, removed after the attempt, or by a later run when this one was killed.
//!
//! They lie beside a local store, so that outputs enter it by a rename. Each run holds a lock for as long as it lives:
//! what belongs to a free lock is garbage.

use std::fs::File;
use std::path::{Path, PathBuf};

use cache::Store;
use nix::fcntl::{Flock, FlockArg};

use crate::error::Error;
use crate::trainer::node_local;

/// The scratch of one run.
pub struct Scratch {
    root: PathBuf,
    lock: PathBuf,
    /// Held until the run ends.
    _held: Flock<File>,
}

impl Scratch {
    pub fn open(store: &Store, run: &str) -> Result<Scratch, Error> {
        let base = match store.local() {
            Some(_) => node_local(store),
            None => None,
        };
        let base = base
            .unwrap_or_else(|| std::env::temp_dir().join("recipe"))
            .join("attempts");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io {
                what: "cannot create",
                path,
                source,
            }
        };
        std::fs::create_dir_all(&base).map_err(io(&base))?;
        let lock = base.join(format!("{run}.lock"));
        let file = File::create(&lock).map_err(io(&lock))?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, e)| io(&lock)(e.into()))?;
        sweep(&base);
        Ok(Scratch {
            root: base.join(run),
            lock,
            _held: held,
        })
    }

    /// A new directory for an attempt.
    pub fn attempt(&self, stage: &str, attempt: u32) -> Result<Attempt, Error> {
        let path = self.root.join(format!("{stage}-{attempt}"));
        std::fs::create_dir_all(&path).map_err(|source| Error::Io {
            what: "cannot create",
            path: path.clone(),
            source,
        })?;
        Ok(Attempt { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
        let _ = std::fs::remove_file(&self.lock);
    }
}

/// One attempt's directory, removed when dropped.
pub struct Attempt {
    pub path: PathBuf,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Removes the scratch of runs that are gone. A failure here is no reason not to run.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        // Our own lock is held through another descriptor, so it is refused here like anyone's.
        if let Ok(_taken) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            let _ = std::fs::remove_dir_all(path.with_extension(""));
            let _ = std::fs::remove_file(&path);
        }
    }
}
