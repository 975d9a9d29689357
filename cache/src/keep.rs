//! What is in use and not yet, or no longer, referred to: nothing of it may be collected.
//!
//! | stored | where | why |
//! |---|---|---|
//! | lock, shared | `local/references` | held from the first put of an output to the publishing of its result |
//! | lock, exclusive | `local/references` | held while blobs are removed: nobody is between put and publish |
//! | lock | `local/turnstile` | who wants the exclusive lock is not passed by newcomers |
//! | digests | `local/views/<nonce>` | what a living run was told is there; a file lock tells that it lives |
//!
//! Local stores only: elsewhere there are no locks, and a collection goes by age alone.

use std::cell::RefCell;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::local::with_parent;
use crate::store::Store;
use crate::{Digest, nonce};

/// See [`Store::keep_blobs`].
pub struct Keep {
    _file: Option<Rc<File>>,
}

thread_local! {
    /// What this thread holds. A second lock of its own would wait for a collection that waits for
    /// the first.
    static HELD: RefCell<Vec<(PathBuf, Weak<File>)>> = const { RefCell::new(Vec::new()) };
}

/// The lock on `path` that this thread holds already.
fn held(path: &Path) -> Option<Rc<File>> {
    HELD.with_borrow_mut(|all| {
        all.retain(|(_, file)| file.strong_count() > 0);
        all.iter().find(|(at, _)| at == path)?.1.upgrade()
    })
}

/// Nobody relies on what no record refers to, as long as this lives.
pub(crate) struct Alone {
    _turnstile: File,
    _references: File,
}

impl Store {
    /// Holds off the removal of blobs that no record refers to yet. Hold it from the first put of
    /// an output to the publishing of its result. Local stores only; others remove blobs by age.
    pub fn keep_blobs(&self) -> Result<Keep> {
        let Some(path) = self.backend.file("local/references") else {
            return Ok(Keep { _file: None });
        };
        if let Some(file) = held(&path) {
            return Ok(Keep { _file: Some(file) });
        }
        let turnstile = self.lock_file("local/turnstile")?;
        let failed = |e| Error::io("lock", Path::new("local/references"))(e);
        if let Some(turnstile) = &turnstile {
            turnstile.lock_shared().map_err(failed)?;
        }
        let file = self.lock_file("local/references")?;
        let Some(file) = file.map(Rc::new) else {
            return Ok(Keep { _file: None });
        };
        file.lock_shared().map_err(failed)?;
        HELD.with_borrow_mut(|all| all.push((path, Rc::downgrade(&file))));
        Ok(Keep { _file: Some(file) })
    }

    /// Waits until nobody holds a [`Keep`] and keeps newcomers out; `None` when that takes too long.
    pub(crate) fn alone(&self, patience: Duration) -> Result<Option<Alone>> {
        let until = Instant::now() + patience;
        let files = ["local/turnstile", "local/references"].map(|path| self.lock_file(path));
        let [Some(turnstile), Some(references)] = files.map(Result::transpose) else {
            return Ok(None);
        };
        let (turnstile, references) = (turnstile?, references?);
        for file in [&turnstile, &references] {
            loop {
                match file.try_lock() {
                    Ok(()) => break,
                    Err(TryLockError::WouldBlock) if Instant::now() < until => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    Err(TryLockError::WouldBlock) => return Ok(None),
                    Err(TryLockError::Error(e)) => {
                        return Err(Error::io("lock", Path::new("local/references"))(e));
                    }
                }
            }
        }
        Ok(Some(Alone {
            _turnstile: turnstile,
            _references: references,
        }))
    }

    fn lock_file(&self, path: &str) -> Result<Option<File>> {
        let Some(path) = self.backend.file(path) else {
            return Ok(None);
        };
        let open = || OpenOptions::new().append(true).create(true).open(&path);
        with_parent(&path, open)
            .map(Some)
            .map_err(Error::io("open", &path))
    }

    /// What living runs were told is there: keys and artifacts. Lists of dead ones are removed.
    pub(crate) fn in_use(&self) -> Result<Vec<Digest>> {
        let mut used = Vec::new();
        if self.local.is_none() {
            return Ok(used);
        }
        for name in self.backend.children("local/views")? {
            let path = format!("local/views/{name}");
            let Some(at) = self.backend.file(&path) else {
                continue;
            };
            let Ok(mut file) = File::open(&at) else {
                continue;
            };
            if file.try_lock_shared().is_ok() {
                self.backend.delete(&path)?;
                continue;
            }
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)
                .map_err(Error::io("read", &at))?;
            let digests = bytes.chunks_exact(32);
            used.extend(digests.map(|d| Digest(d.try_into().expect("32 bytes"))));
        }
        Ok(used)
    }
}

/// A living run's list of what it was told; gone when dropped.
pub(crate) struct InUse {
    file: File,
    path: PathBuf,
}

impl InUse {
    /// Begins a list. `None` where there are no locks, or nothing can be written: then nothing can
    /// be removed there either.
    pub(crate) fn begin(store: &Store) -> Option<InUse> {
        let path = store.backend.file(&format!("local/views/{}", nonce()))?;
        if !store.local.as_ref()?.exists() {
            return None;
        }
        let open = || OpenOptions::new().append(true).create_new(true).open(&path);
        let file = with_parent(&path, open).ok()?;
        file.try_lock().ok()?;
        Some(InUse { file, path })
    }

    pub(crate) fn add(&mut self, digests: &[Digest]) -> Result<()> {
        let bytes: Vec<u8> = digests.iter().flat_map(|d| d.0).collect();
        self.file
            .write_all(&bytes)
            .map_err(Error::io("write", &self.path))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
