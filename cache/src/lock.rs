//! Whether an owner lives: file locks on one machine, beats everywhere.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::local::with_parent;
use crate::protocol::{Claim, lock_path, result_path};
use crate::record::ClaimRecord;
use crate::store::Store;
use crate::{Key, machine, nonce};

/// The shortest time between two looks at an owner.
const FASTEST: Duration = Duration::from_millis(1);

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
    /// Looks until the attempt has ended (`None`) or its owner is dead (why).
    pub(crate) fn wait(&mut self) -> Result<Option<String>> {
        loop {
            match self.poll()? {
                Liveness::Alive => std::thread::sleep((self.store.ttl / 60).max(FASTEST)),
                Liveness::Ended => return Ok(None),
                Liveness::Dead { why } => return Ok(Some(why)),
            }
        }
    }

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

/// Beats for a claim, and sees when the attempt is sealed. Ends when dropped.
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
        *unpoisoned(&self.stop.0) = true;
        young::remove(&self.stop);
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
    /// first pause writes none, and costs no thread.
    pub fn heart(&self, claim: &Claim) -> Heart {
        let heart = Heart {
            lost: Arc::new(AtomicBool::new(false)),
            stop: Arc::new((Mutex::new(false), Condvar::new())),
        };
        let pause = (self.ttl / 6).max(Duration::from_millis(1));
        let (store, flag, signal) = (self.clone(), heart.flag(), heart.stop.clone());
        let (key, attempt) = (claim.key, claim.attempt);
        let beat = move || {
            let (stopped, wake) = &*signal;
            let mut guard = unpoisoned(stopped);
            while !*guard {
                drop(guard);
                // a store out of reach is not a lost attempt: the next beat may arrive
                if matches!(store.is_sealed(&key, attempt), Ok(true)) {
                    flag.store(true, Ordering::Relaxed);
                    return;
                }
                let _ = store
                    .backend
                    .put(&beat_path(&key, attempt), nonce().as_bytes());
                guard = unpoisoned(stopped);
                (guard, _) = wake
                    .wait_timeout_while(guard, pause, |stopped| !*stopped)
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
            }
        };
        young::add(Instant::now() + pause, heart.stop.clone(), Box::new(beat));
        heart
    }
}

/// Hearts that have not beaten yet: one thread waits for all of them, and each gets its own when
/// its time comes, so that a store which answers slowly holds up one claim alone.
mod young {
    use super::{Arc, Condvar, Duration, Instant, Mutex, unpoisoned};

    type Stop = Arc<(Mutex<bool>, Condvar)>;

    struct Young {
        due: Instant,
        stop: Stop,
        beat: Box<dyn FnOnce() + Send>,
    }

    struct Waiting {
        hearts: Vec<Young>,
        watched: bool,
    }

    static WAITING: Mutex<Waiting> = Mutex::new(Waiting {
        hearts: Vec::new(),
        watched: false,
    });
    static EARLIER: Condvar = Condvar::new();
    /// How long the thread stays without a heart to wait for.
    const IDLE: Duration = Duration::from_secs(1);

    pub(super) fn add(due: Instant, stop: Stop, beat: Box<dyn FnOnce() + Send>) {
        let mut waiting = unpoisoned(&WAITING);
        let earlier = waiting.hearts.iter().all(|heart| due < heart.due);
        waiting.hearts.push(Young { due, stop, beat });
        if !std::mem::replace(&mut waiting.watched, true) {
            std::thread::spawn(watch);
        } else if earlier {
            EARLIER.notify_one();
        }
    }

    pub(super) fn remove(stop: &Stop) {
        let mut waiting = unpoisoned(&WAITING);
        waiting
            .hearts
            .retain(|heart| !Arc::ptr_eq(&heart.stop, stop));
    }

    fn watch() {
        let mut waiting = unpoisoned(&WAITING);
        loop {
            let now = Instant::now();
            while let Some(at) = waiting.hearts.iter().position(|heart| heart.due <= now) {
                std::thread::spawn(waiting.hearts.swap_remove(at).beat);
            }
            let next = waiting.hearts.iter().map(|heart| heart.due).min();
            let pause = next.map_or(IDLE, |due| due - now);
            let (back, slept) = EARLIER
                .wait_timeout(waiting, pause)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            waiting = back;
            if slept.timed_out() && next.is_none() && waiting.hearts.is_empty() {
                waiting.watched = false;
                return;
            }
        }
    }
}

fn unpoisoned<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
