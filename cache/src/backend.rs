//! What the store asks of the place it lies in. Two implementations: [`crate::local::Local`]
//! (std::fs, no runtime) and [`crate::remote::Remote`] (any object_store). Tests wrap one to fail,
//! delay or lose the acknowledgement of any operation.
//!
//! Paths are relative, `/` between parts. Only `put_new` needs to be atomic against others.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// An object as a listing has it.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    pub path: &'a str,
    /// Bytes.
    pub size: u64,
    /// When it was last written, by the clock of [`Backend::now`].
    pub modified: SystemTime,
}

/// What a listing calls for each object.
pub type Each<'a> = dyn FnMut(Listed<'_>) -> Result<()> + 'a;

/// How far a transfer of a large object is.
#[derive(Clone, Debug)]
pub struct Progress {
    /// In the remote store.
    pub path: String,
    /// Bytes that have arrived, those of an earlier try among them.
    pub done: u64,
    pub total: u64,
}

/// Called as pieces of large objects arrive, from the thread that transfers.
pub type Observer = std::sync::Arc<dyn Fn(&Progress) + Send + Sync>;

/// A flat namespace of objects.
pub trait Backend: Send + Sync {
    /// How people name this store.
    fn url(&self) -> &str;

    /// The directory, when objects are plain files that may be read directly.
    fn local(&self) -> Option<&Path> {
        None
    }

    /// The whole object, or `None` when there is none.
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>>;

    /// Creates the object unless one is there: false when one was. Never leaves a part of it.
    /// `durable`: returns only when it would survive a power loss.
    fn put_new(&self, path: &str, bytes: &[u8], durable: bool) -> Result<bool>;

    /// Creates or replaces the object, never leaving a part of it.
    fn put(&self, path: &str, bytes: &[u8]) -> Result<()>;

    /// Creates or replaces the object with the content of `source`. A local store renames `source`,
    /// which must lie in [`Backend::local`]; a remote one sends it and leaves it.
    fn put_from(&self, path: &str, source: &Path) -> Result<()>;

    /// Writes the object's bytes to the file `to`: false when there is no object. A remote store
    /// goes on where `to` ends: give it what an earlier fetch of the same object left, or nothing.
    fn fetch(&self, path: &str, to: &Path) -> Result<bool>;

    /// Tells how transfers get on, where they take long.
    fn observe(&self, _observer: Observer) {}

    /// Bytes of the object, or `None` when there is none.
    fn size(&self, path: &str) -> Result<Option<u64>>;

    /// Calls `each` for all objects below `prefix`, in no particular order.
    fn list(&self, prefix: &str, each: &mut Each) -> Result<()>;

    /// The clock that stamps objects; other machines' clocks are not compared with it.
    fn now(&self) -> Result<SystemTime> {
        Ok(SystemTime::now())
    }

    /// The objects below `prefix`, or `None` when there are more than `limit`.
    fn list_at_most(&self, prefix: &str, limit: usize) -> Result<Option<Vec<(String, u64)>>> {
        let mut found = Vec::new();
        let mut over = false;
        let listed = self.list(prefix, &mut |object| {
            over = found.len() == limit;
            found.push((object.path.to_owned(), object.size));
            // any error ends a listing
            if over { Err(Error::enough()) } else { Ok(()) }
        });
        if over {
            return Ok(None);
        }
        listed.map(|()| Some(found))
    }

    /// The names directly below `prefix`, files and folders alike, in no particular order.
    fn children(&self, prefix: &str) -> Result<Vec<String>>;

    /// Removes the object: false when there was none.
    fn delete(&self, path: &str) -> Result<bool>;

    /// Where an object's file lies, in a local store.
    fn file(&self, path: &str) -> Option<PathBuf> {
        self.local().map(|root| root.join(path))
    }
}
