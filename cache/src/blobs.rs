//! Immutable content, named by blake3.
//!
//! | stored | where | why |
//! |---|---|---|
//! | content | `blobs/<first 2 digits>/<64 digits>` | read-only (0444): the name is a promise about the bytes |
//!
//! A put is never skipped because a blob exists: the one there is verified first, and replaced when
//! it is not what its name says. Large blobs are synced to disk; small ones are hashed again after
//! a reboot (see [`crate::hashcache`]), so that power loss cannot make them lie.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use crate::Digest;
use crate::error::{Error, Result};
use crate::hashcache::FileId;
use crate::local::{self, Local, Temporary, with_parent};
use crate::store::Store;

/// From this many bytes a blob is synced, and its put waits out the clock's tick, so that its
/// digest can be kept at once.
pub(crate) const LARGE: u64 = 1 << 20;

/// From this many bytes a fetch that was killed is gone on with.
const RESUMED: u64 = 64 << 20;

/// How a file enters the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingest {
    /// Renamed where that is possible; the source is gone afterwards.
    Move,
    /// A reflink where the file system can, else a copy.
    Copy,
}

/// Where a blob lies in the store.
pub(crate) fn path_of(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("blobs/{}/{hex}", &hex[..2])
}

/// What a look at a blob found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is what its name says; bytes.
    Good(u64),
    Missing,
    Corrupt(String),
}

impl Store {
    /// Stores bytes. Their digest is their name.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let Some(local) = &self.local else {
            self.send(&digest, |path| self.backend.put(path, bytes))?;
            return Ok(digest);
        };
        if matches!(self.look(&digest, self.paranoid)?, Found::Good(_)) {
            return Ok(digest);
        }
        let temporary = local.temporary()?;
        let path = &temporary.path;
        let mut file = with_parent(path, || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o444)
                .open(path)
        })
        .map_err(Error::io("create", path))?;
        file.write_all(bytes).map_err(Error::io("write", path))?;
        self.place(file, temporary, digest)?;
        Ok(digest)
    }

    /// Stores a regular file. Links are refused.
    pub fn put_file(&self, path: &Path, how: Ingest) -> Result<Digest> {
        let meta = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
        crate::tree::check_regular(path, &meta)?;
        Ok(self.put_regular(path, how)?.0)
    }

    /// Stores what `path` leads to: digest and bytes.
    pub(crate) fn put_regular(&self, path: &Path, how: Ingest) -> Result<(Digest, u64)> {
        let Some(local) = &self.local else {
            return self.send_file(path, how);
        };
        if how == Ingest::Copy {
            // already there, and known without reading a byte
            let known = self
                .hashes
                .known(&stat_at(path)?)
                .filter(|_| !self.paranoid);
            if let Some(digest) = known
                && let Found::Good(size) = self.look(&digest, false)?
            {
                return Ok((digest, size));
            }
        }
        let temporary = take(local, path, how)?;
        let file = File::open(&temporary.path).map_err(Error::io("open", &temporary.path))?;
        let before = stat(&file, path)?;
        let digest = Digest::of_open(&file, path)?;
        if stat(&file, path)? != before {
            return Err(Error::Changed {
                path: path.to_owned(),
            });
        }
        if !matches!(self.look(&digest, self.paranoid)?, Found::Good(_)) {
            self.place(file, temporary, digest)?;
        }
        Ok((digest, before.size))
    }

    /// Gives a hashed temporary file its name.
    pub(crate) fn place(&self, file: File, temporary: Temporary, digest: Digest) -> Result<()> {
        self.mark_format()?;
        let before = stat(&file, &temporary.path)?;
        let large = before.size >= LARGE;
        if large {
            file.sync_all()
                .map_err(Error::io("sync", &temporary.path))?;
        }
        let path = path_of(&digest);
        self.backend.put_from(&path, &temporary.path)?;
        let to = self.backend.file(&path).expect("a local store has files");
        if large {
            local::sync_parent(&to)?;
        }
        match self.hashes.moved(&before, &to, digest, large, LARGE) {
            // another put of the same content came second, or something writes to ours
            Err(Error::Changed { .. }) => self.demand(&digest).map(drop),
            other => other,
        }
    }

    /// Makes an artifact's manifest and small blobs survive a power loss; large ones were synced
    /// when they were put.
    pub(crate) fn sync_small(&self, artifact: &Digest) -> Result<()> {
        if self.local.is_none() {
            return Ok(());
        }
        let manifest = self.manifest(artifact)?;
        let small = manifest.files.iter().filter(|file| file.size < LARGE);
        for blob in small.map(|file| &file.blob).chain([artifact]) {
            let Some(at) = self.backend.file(&path_of(blob)) else {
                continue;
            };
            match File::open(&at).and_then(|file| file.sync_all()) {
                Ok(()) => local::sync_parent(&at)?,
                // it lies behind, or is missed by who publishes
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("sync", &at)(e)),
            }
        }
        Ok(())
    }

    /// Sends a file to a remote store.
    fn send_file(&self, path: &Path, how: Ingest) -> Result<(Digest, u64)> {
        let before = stat_at(path)?;
        let (digest, size) = self.hashes.digest(path, self.paranoid)?;
        self.send(&digest, |to| {
            self.backend.put_from(to, path)?;
            if stat_at(path)? != before {
                // what was sent may not be what was hashed: it must not keep that name
                self.backend.delete(to)?;
                return Err(Error::Changed {
                    path: path.to_owned(),
                });
            }
            Ok(())
        })?;
        if how == Ingest::Move {
            fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
        Ok((digest, size))
    }

    /// Sends a remote blob, unless this process has and it is still there.
    fn send(&self, digest: &Digest, put: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        let path = path_of(digest);
        let sent = set(&self.sent).contains(digest) && !set(&self.wrong).contains(digest);
        if sent && self.backend.size(&path)?.is_some() {
            return Ok(());
        }
        self.mark_format()?;
        put(&path)?;
        set(&self.wrong).remove(digest);
        set(&self.sent).insert(*digest);
        Ok(())
    }

    /// The bytes of a blob, verified.
    pub fn get_bytes(&self, digest: &Digest) -> Result<Vec<u8>> {
        match self.read_bytes(digest) {
            Err(Error::Missing { .. } | Error::Corrupt { .. }) if self.pull_blob(digest)? => {
                self.read_bytes(digest)
            }
            other => other,
        }
    }

    /// The same from this store alone.
    fn read_bytes(&self, digest: &Digest) -> Result<Vec<u8>> {
        let path = path_of(digest);
        let Some(bytes) = self.backend.get(&path)? else {
            return Err(self.missing(digest));
        };
        let found = Digest::of(&bytes);
        if found != *digest {
            set(&self.wrong).insert(*digest);
            return Err(self.corrupt(&path, format!("its bytes hash to {found}")));
        }
        Ok(bytes)
    }

    /// An open, verified file with a blob's bytes. A remote blob is fetched to an unnamed
    /// temporary file.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = path_of(digest);
        if let Some(at) = self.backend.file(&path) {
            self.demand(digest)?;
            return File::open(&at).map_err(Error::io("open", &at));
        }
        let folder = tempfile::tempdir().map_err(Error::io("create", &std::env::temp_dir()))?;
        let to = folder.path().join("blob");
        self.fetch_verified(digest, &to, 0)?;
        File::open(&to).map_err(Error::io("open", &to))
    }

    /// Brings a remote blob to `to`, verified. A large one goes by way of a file that a fetch
    /// killed halfway leaves for the next.
    pub(crate) fn fetch_verified(&self, digest: &Digest, to: &Path, size: u64) -> Result<()> {
        if size >= RESUMED
            && let Some(folder) = &self.beside
        {
            return self.fetch_resumed(digest, &folder.join("partial"), |part| {
                let moved = match fs::rename(part, to) {
                    Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => {
                        local::copy(part, to).and_then(|()| fs::remove_file(part))
                    }
                    other => other,
                };
                moved.map_err(Error::io("write", to))
            });
        }
        self.fetch_to(digest, to)
    }

    /// Fetches to a file in `folder` named by the digest, going on where the last fetch ended, and
    /// gives it to `place`, which moves it away.
    pub(crate) fn fetch_resumed(
        &self,
        digest: &Digest,
        folder: &Path,
        place: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let part = folder.join(digest.hex());
        let open = || OpenOptions::new().append(true).create(true).open(&part);
        let file = with_parent(&part, open).map_err(Error::io("create", &part))?;
        // one process at a time; who comes second finds the file gone
        file.lock().map_err(Error::io("lock", &part))?;
        let resumed = stat(&file, &part)?.size > 0;
        match self.fetch_to(digest, &part) {
            // what an earlier fetch left may be torn by a power cut
            Err(Error::Corrupt { .. }) if resumed => self.fetch_to(digest, &part)?,
            other => other?,
        }
        place(&part)
    }

    fn fetch_to(&self, digest: &Digest, to: &Path) -> Result<()> {
        let path = path_of(digest);
        if !self.backend.fetch(&path, to)? {
            let _ = fs::remove_file(to);
            return Err(self.missing(digest));
        }
        let found = Digest::of_file(to)?;
        if found != *digest {
            let _ = fs::remove_file(to);
            set(&self.wrong).insert(*digest);
            return Err(self.corrupt(&path, format!("its bytes hash to {found}")));
        }
        Ok(())
    }

    /// Fails unless the blob is what its name says.
    pub(crate) fn demand(&self, digest: &Digest) -> Result<u64> {
        let mut found = self.look(digest, self.paranoid)?;
        if !matches!(found, Found::Good(_)) && self.pull_blob(digest)? {
            found = self.look(digest, self.paranoid)?;
        }
        match found {
            Found::Good(size) => Ok(size),
            Found::Missing => Err(self.missing(digest)),
            Found::Corrupt(why) => Err(self.corrupt(&path_of(digest), why)),
        }
    }

    /// Looks at a blob: local, its stat against its last hash, or a hash; remote, its presence.
    /// `again` hashes in any case.
    pub(crate) fn look(&self, digest: &Digest, again: bool) -> Result<Found> {
        let path = path_of(digest);
        let Some(at) = self.backend.file(&path) else {
            let Some(size) = self.backend.size(&path)? else {
                return Ok(Found::Missing);
            };
            if !again && set(&self.wrong).contains(digest) {
                return Ok(Found::Corrupt(
                    "its bytes were read and hash to another name".into(),
                ));
            }
            if !again {
                return Ok(Found::Good(size));
            }
            let folder = tempfile::tempdir().map_err(Error::io("create", &std::env::temp_dir()))?;
            return match self.fetch_to(digest, &folder.path().join("blob")) {
                Ok(()) => Ok(Found::Good(size)),
                Err(Error::Missing { .. }) => Ok(Found::Missing),
                Err(Error::Corrupt { why, .. }) => Ok(Found::Corrupt(why)),
                Err(e) => Err(e),
            };
        };
        let meta = match fs::symlink_metadata(&at) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(e) => return Err(Error::io("stat", &at)(e)),
        };
        if !meta.is_file() {
            return Ok(Found::Corrupt("it is not a regular file".into()));
        }
        let found = match self.hashes.known(&FileId::of(&meta)).filter(|_| !again) {
            Some(found) => found,
            None => match self.hashes.digest(&at, true) {
                Ok((found, _)) => found,
                Err(Error::Changed { .. }) => {
                    return Ok(Found::Corrupt("something is writing to it".into()));
                }
                Err(e) => return Err(e),
            },
        };
        if found != *digest {
            return Ok(Found::Corrupt(format!(
                "its {} bytes hash to {found}",
                meta.len()
            )));
        }
        Ok(Found::Good(meta.len()))
    }

    pub(crate) fn missing(&self, digest: &Digest) -> Error {
        Error::Missing {
            digest: *digest,
            store: self.url().to_owned(),
        }
    }
}

/// Brings a file into the store's temporary folder, read-only. A file with other names is copied
/// even when it may be moved: what is written through those would reach the store.
fn take(local: &Local, path: &Path, how: Ingest) -> Result<Temporary> {
    let temporary = local.temporary()?;
    let to = &temporary.path;
    let before = stat_at(path)?;
    let meta = fs::symlink_metadata(path).map_err(Error::io("stat", path))?;
    let renamed = how == Ingest::Move
        && meta.is_file()
        && meta.nlink() == 1
        && match with_parent(to, || fs::rename(path, to)) {
            Ok(()) => true,
            Err(e) if e.kind() == std::io::ErrorKind::CrossesDevices => false,
            Err(e) => return Err(Error::io("move", path)(e)),
        };
    if !renamed {
        with_parent(to, || local::copy(path, to)).map_err(Error::io("copy", path))?;
        if stat_at(path)? != before {
            return Err(Error::Changed {
                path: path.to_owned(),
            });
        }
        if how == Ingest::Move {
            fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
    }
    local::set_mode(to, 0o444).map_err(Error::io("protect", to))?;
    Ok(temporary)
}

fn set(of: &Mutex<HashSet<Digest>>) -> MutexGuard<'_, HashSet<Digest>> {
    of.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn stat(file: &File, path: &Path) -> Result<FileId> {
    Ok(FileId::of(
        &file.metadata().map_err(Error::io("stat", path))?,
    ))
}

fn stat_at(path: &Path) -> Result<FileId> {
    Ok(FileId::of(
        &fs::metadata(path).map_err(Error::io("stat", path))?,
    ))
}
