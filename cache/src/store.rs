//! Opening a store, and what all its parts share.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::Digest;
use crate::backend::{Backend, Observer};
use crate::behind::Behind;
use crate::error::{Error, Result};
use crate::hashcache::HashCache;
use crate::local::Local;
use crate::remote::Remote;

/// What this code writes below a store's root in the object `format`.
const FORMAT: &str = "recipe-store 1\n";
/// How long an owner may go without a beat.
const TTL: Duration = Duration::from_secs(60);

/// An artifact store. Cheap to clone; threads may share it.
#[derive(Clone)]
pub struct Store {
    pub(crate) backend: Arc<dyn Backend>,
    /// The same place as `backend`, when it is a local directory.
    pub(crate) local: Option<Arc<Local>>,
    pub(crate) hashes: Arc<HashCache>,
    /// A folder of this machine for a store that is not local.
    pub(crate) beside: Option<PathBuf>,
    pub(crate) paranoid: bool,
    pub(crate) ttl: Duration,
    /// Remote blobs that this process has sent: while they are there they are not sent again.
    pub(crate) sent: Arc<Mutex<HashSet<Digest>>>,
    /// The store behind this local one.
    pub(crate) behind: Option<Arc<Behind>>,
    /// Remote blobs whose bytes this process has read and found wrong.
    pub(crate) wrong: Arc<Mutex<HashSet<Digest>>>,
    /// The object `format` is known to be there.
    formatted: Arc<AtomicBool>,
}

impl Store {
    /// Opens a path, or a URL: `file:///path`, `s3://bucket/prefix`, `gs://..`, `az://..`,
    /// `memory://` (empty, gone with the value; for tests). A local directory is made by the first
    /// write. Local stores start no runtime and no thread.
    pub fn open(at: &str) -> Result<Store> {
        if let Some(path) = local_path(at)? {
            return Store::open_local(&path);
        }
        let beside = user_cache();
        let transfers = beside.as_ref().map(|folder| folder.join("transfers"));
        let remote = Remote::open(at)?.keeping(transfers);
        Store::with_backend(Arc::new(remote), beside)
    }

    /// Opens `at`, with `remote` behind it when there is one; `push` sends what is published there.
    pub fn open_with(at: &str, remote: Option<&str>, push: bool) -> Result<Store> {
        let mut store = Store::open(at)?;
        if let Some(remote) = remote {
            store.set_behind(Store::open(remote)?, push)?;
        }
        Ok(store)
    }

    /// Opens a local directory.
    pub fn open_local(root: &Path) -> Result<Store> {
        Store::with_backend(Arc::new(Local::open(root)?), None)
    }

    /// Uses a backend of one's own. `beside`: the folder where a store that is not local keeps what
    /// it knows of local files and of earlier runs; with none it is kept in memory.
    pub fn with_backend(backend: Arc<dyn Backend>, beside: Option<PathBuf>) -> Result<Store> {
        let local = match backend.local() {
            Some(root) => Some(Arc::new(Local::open(root)?)),
            None => None,
        };
        let hashes = match &local {
            Some(_) => backend.file("local/hashes"),
            None => beside.as_ref().map(|folder| folder.join("hashes")),
        };
        let store = Store {
            backend,
            local,
            hashes: Arc::new(HashCache::new(hashes)),
            beside,
            paranoid: false,
            ttl: TTL,
            sent: Arc::default(),
            wrong: Arc::default(),
            behind: None,
            formatted: Arc::default(),
        };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<()> {
        match self.backend.get("format")? {
            Some(text) if text == FORMAT.as_bytes() => {
                self.formatted.store(true, Ordering::Relaxed);
                Ok(())
            }
            Some(text) => Err(Error::BadUrl {
                url: self.url().to_owned(),
                why: format!(
                    "its format is '{}' and this program reads '{}'",
                    String::from_utf8_lossy(&text).trim(),
                    FORMAT.trim()
                ),
            }),
            None => Ok(()),
        }
    }

    /// Marks the store's format, once, before the first record is written.
    pub(crate) fn mark_format(&self) -> Result<()> {
        if !self.formatted.load(Ordering::Relaxed) {
            self.write_format()?;
        }
        Ok(())
    }

    pub(crate) fn write_format(&self) -> Result<()> {
        self.backend.put_new("format", FORMAT.as_bytes(), true)?;
        self.formatted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Tells `observer` how transfers to and from a remote store get on.
    pub fn observe(&self, observer: Observer) {
        self.backend.observe(observer);
    }

    /// How people name this store.
    pub fn url(&self) -> &str {
        self.backend.url()
    }

    /// The directory of a local store.
    pub fn local(&self) -> Option<&Path> {
        self.backend.local()
    }

    /// Hash again wherever the stat cache would be believed.
    pub fn set_paranoid(&mut self, paranoid: bool) {
        self.paranoid = paranoid;
    }

    /// How long an owner may go without a beat before it counts as dead (60 s; it beats six times
    /// as often).
    pub fn set_ttl(&mut self, ttl: Duration) {
        self.ttl = ttl;
    }

    /// Believes nothing that only the running machine vouches for, as after it was started again:
    /// for tests of power loss.
    #[doc(hidden)]
    pub fn assume_reboot(&mut self) {
        let path = self.backend.file("local/hashes");
        self.hashes = Arc::new(HashCache::after_reboot(path));
    }

    /// Settles and writes what was learnt about files, and sends to the store behind what was
    /// published and is not there yet. Call it at the end of a run; dropping the last clone does
    /// the first too, without saying when that failed.
    pub fn flush(&self) -> Result<()> {
        self.hashes.flush()?;
        self.push_pending()
    }

    /// The digest of any file, inside or outside the store, through the stat cache.
    pub fn hash_file(&self, path: &Path) -> Result<Digest> {
        Ok(self.hashes.digest(path, self.paranoid)?.0)
    }

    pub(crate) fn corrupt(&self, path: &str, why: impl Into<String>) -> Error {
        Error::Corrupt {
            path: path.to_owned(),
            store: self.url().to_owned(),
            why: why.into(),
        }
    }
}

/// The path meant by `at`, unless it is the URL of something remote.
fn local_path(at: &str) -> Result<Option<PathBuf>> {
    let Some((scheme, rest)) = at.split_once("://") else {
        if at.is_empty() {
            return Err(Error::BadUrl {
                url: at.to_owned(),
                why: "it is empty".into(),
            });
        }
        return Ok(Some(PathBuf::from(at)));
    };
    if scheme != "file" {
        return Ok(None);
    }
    let bad = |why: &str| Error::BadUrl {
        url: at.to_owned(),
        why: why.into(),
    };
    let url = url::Url::parse(at).map_err(|e| bad(&e.to_string()))?;
    if rest.is_empty() {
        return Err(bad("it names no directory"));
    }
    url.to_file_path()
        .map(Some)
        .map_err(|()| bad("it names no path on this machine"))
}

/// Where this machine keeps what it knows beside a remote store.
fn user_cache() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    Some(base.or_else(home)?.join("recipe"))
}
