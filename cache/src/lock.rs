//! Whether an owner lives: file locks on one machine, beats everywhere.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::local::with_parent;
use crate::protocol::{Claim, lock_path, result_path};
use crate::record::ClaimRecord;
use crate::store::Store;
use crate::{Key, machine, nonce};

/// A file lock (flock) that ends with the process, however that ends.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Makes and locks `path`. `None` where the file system has no locks.
    pub(crate) fn hold(path: &Path) -> Result<Option<Lock>> {
        let file = with_parent(path, || {
            OpenOptions::new().write(true).create_new(true).open(path)
        })
        .map_err(Error::io("create", path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None), // it was ours alone to make
            Err(TryLockError::Error(_)) => {
                let _ = fs::remove_file(path);
                Ok(None)
            }
        }
    }
}

/// What an observer knows of another owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Liveness {
    Alive,
    /// Take over.
    Dead {
        why: String,
    },
    /// A result or a seal is there: look at [`Store::current`].
    Ended,
}

/// Watches another owner's attempt by the observer's own monotonic clock: clocks of machines are
/// never compared, and a beat's content means nothing but that it changed.
pub struct Watch {
    store: Store,
    key: Key,
    attempt: u32,
    lock: Option<PathBuf>,
    last: Option<Vec<u8>>,
    since: Instant,
}

impl Watch {
    /// Looks once. Call it every fraction of a second (local) or every few (remote).
    pub fn poll(&mut self) -> Result<Liveness> {
        let ended = |store: &Store| store.backend.size(&result_path(&self.key, self.attempt));
        if ended(&self.store)?.is_some() {
            return Ok(Liveness::Ended);
        }
        if let Some(path) = &self.lock {
            let free = match OpenOptions::new().read(true).open(path) {
                Ok(file) => file.try_lock_shared().is_ok(),
                Err(e) => e.kind() == std::io::ErrorKind::NotFound,
            };
            if free {
                // an owner lets go of its lock after it has published, too
                if ended(&self.store)?.is_some() {
                    return Ok(Liveness::Ended);
                }
                let why = "its process on this machine is gone".into();
                return Ok(Liveness::Dead { why });
            }
        }
        let beat = self
            .store
            .backend
            .get(&beat_path(&self.key, self.attempt))?;
        if beat != self.last {
            self.last = beat;
            self.since = Instant::now();
        }
        let silent = self.since.elapsed();
        if silent > self.store.ttl {
            let why = format!("no beat was seen for {} s", silent.as_secs());
            return Ok(Liveness::Dead { why });
        }
        Ok(Liveness::Alive)
    }
}

/// Beats for a claim in a thread of its own, and sees when the attempt is sealed. Ends when dropped.
pub struct Heart {
    lost: Arc<AtomicBool>,
    stop: Arc<(Mutex<bool>, Condvar)>,
}

impl Heart {
    /// True once another sealed the attempt: stop, nothing can be published.
    pub fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }

    /// The same, for other threads.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.lost.clone()
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        *self
            .stop
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = true;
        // not joined: a store out of reach must not hold up its owner
        self.stop.1.notify_all();
    }
}

pub(crate) fn beat_path(key: &Key, attempt: u32) -> String {
    format!("beats/{key}/{attempt}")
}

impl Store {
    /// Starts watching another owner's attempt; `owner` as `Busy` gave it.
    pub fn watch(&self, key: &Key, attempt: u32, owner: &ClaimRecord) -> Watch {
        let here = !owner.machine.is_empty() && owner.machine == machine();
        let lock = here
            .then(|| self.backend.file(&lock_path(&owner.nonce)))
            .flatten();
        Watch {
            store: self.clone(),
            key: *key,
            attempt,
            lock,
            last: None,
            since: Instant::now(),
        }
    }

    /// Says that the owner lives. [`Store::heart`] does it by itself.
    pub fn beat(&self, claim: &Claim) -> Result<()> {
        self.backend
            .put(&beat_path(&claim.key, claim.attempt), nonce().as_bytes())
    }

    /// Beats for `claim`, six times in the time to live, until dropped. A stage shorter than the
    /// first pause writes none.
    pub fn heart(&self, claim: &Claim) -> Heart {
        let lost = Arc::new(AtomicBool::new(false));
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let pause = (self.ttl / 6).max(Duration::from_millis(1));
        let (store, flag, signal) = (self.clone(), lost.clone(), stop.clone());
        let (key, attempt) = (claim.key, claim.attempt);
        std::thread::spawn(move || {
            let (stopped, wake) = &*signal;
            let mut guard = stopped
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            loop {
                (guard, _) = wake
                    .wait_timeout_while(guard, pause, |stopped| !*stopped)
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                if *guard {
                    return;
                }
                drop(guard);
                // a store out of reach is not a lost attempt: the next beat may arrive
                if matches!(store.is_sealed(&key, attempt), Ok(true)) {
                    flag.store(true, Ordering::Relaxed);
                    return;
                }
                let _ = store
                    .backend
                    .put(&beat_path(&key, attempt), nonce().as_bytes());
                guard = stopped
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
            }
        });
        Heart { lost, stop }
    }
}
