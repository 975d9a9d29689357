//! A store in a local directory, through std::fs alone.
//!
//! | below the store | what | why |
//! |---|---|---|
//! | `local/tmp/` | files being written | an object appears whole or not at all: written here, then renamed |
//! | `local/locks/<nonce>` | one file lock per claim | tells at once that an owner on this machine died |
//! | `local/hashes` | the hash cache | see [`crate::hashcache`] |

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::backend::{Backend, Each, Listed};
use crate::error::{Error, Result};
use crate::nonce;

/// Temporary files older than this belong to nobody any more.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// A directory as a [`Backend`].
pub struct Local {
    root: PathBuf,
    url: String,
}

impl Local {
    /// Uses `root`, which is made on the first write.
    pub fn open(root: &Path) -> Result<Local> {
        let root = std::path::absolute(root).map_err(Error::io("find", root))?;
        match fs::metadata(&root) {
            Ok(meta) if !meta.is_dir() => {
                return Err(Error::BadUrl {
                    url: root.display().to_string(),
                    why: "it is a file".into(),
                });
            }
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(Error::io("open", &root)(e));
            }
            _ => {}
        }
        let local = Local {
            url: root.display().to_string(),
            root,
        };
        local.sweep();
        Ok(local)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the directory has been made.
    pub fn exists(&self) -> bool {
        self.root.is_dir()
    }

    /// A fresh name in the folder for temporary files, which exists afterwards. The file is
    /// removed when the value is dropped unless it was renamed away.
    pub fn temporary(&self) -> Result<Temporary> {
        Ok(Temporary {
            path: self.root.join("local/tmp").join(nonce()),
        })
    }

    /// Removes what killed processes left behind long ago.
    fn sweep(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("local/tmp")) else {
            return;
        };
        for entry in entries.flatten() {
            let old = entry.metadata().and_then(|m| m.modified()).ok();
            if old
                .and_then(|t| t.elapsed().ok())
                .is_some_and(|age| age > STALE)
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn write_temporary(&self, bytes: &[u8], mode: u32, durable: bool) -> Result<Temporary> {
        let temporary = self.temporary()?;
        let path = &temporary.path;
        let mut file = with_parent(path, || {
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(path)
        })
        .map_err(Error::io("create", path))?;
        file.write_all(bytes).map_err(Error::io("write", path))?;
        if durable {
            file.sync_all().map_err(Error::io("sync", path))?;
        }
        Ok(temporary)
    }
}

/// A file below `local/tmp`, removed when dropped.
pub struct Temporary {
    pub path: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Runs `action`; when a folder is missing, makes the parent of `path` and runs it again. Again, as
/// others may remove a folder that they found empty.
pub fn with_parent<T>(path: &Path, action: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut result = action();
    for _ in 0..8 {
        match result {
            Err(ref e) if e.kind() == ErrorKind::NotFound => {}
            _ => break,
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        result = action();
    }
    result
}

/// Puts `bytes` in the place of the file at `path`; it is never there in part.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = Temporary {
        path: path.with_extension(nonce()),
    };
    with_parent(path, || fs::write(&temporary.path, bytes))
        .and_then(|()| fs::rename(&temporary.path, path))
        .map_err(Error::io("write", path))
}

/// Makes a rename in `path`'s folder survive a power loss.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|d| d.sync_all())
        .map_err(Error::io("sync", parent))
}

/// Gives `from` the name `to` unless that exists: false when it does.
fn rename_new(from: &Path, to: &Path) -> io::Result<bool> {
    use nix::errno::Errno;
    let result = with_parent(to, || {
        renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)
            .map_err(io::Error::from)
    });
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        // file systems without RENAME_NOREPLACE: a hard link refuses an existing name as well
        Err(e)
            if [Errno::EINVAL as i32, Errno::ENOSYS as i32]
                .contains(&e.raw_os_error().unwrap_or(0)) =>
        {
            match fs::hard_link(from, to) {
                Ok(()) => Ok(true),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    }
}

/// `Ok(None)` where nothing is there.
fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Backend for Local {
    fn url(&self) -> &str {
        &self.url
    }

    fn local(&self) -> Option<&Path> {
        Some(&self.root)
    }

    fn now(&self) -> Result<SystemTime> {
        // a file server's clock shows in what it stamps
        let probe = self.write_temporary(b"", 0o644, false)?;
        fs::metadata(&probe.path)
            .and_then(|meta| meta.modified())
            .map_err(Error::io("stat", &probe.path))
    }

    fn get(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let path = self.root.join(path);
        optional(fs::read(&path)).map_err(Error::io("read", &path))
    }

    fn put_new(&self, path: &str, bytes: &[u8], durable: bool) -> Result<bool> {
        let to = self.root.join(path);
        let temporary = self.write_temporary(bytes, 0o444, durable)?;
        let new = rename_new(&temporary.path, &to).map_err(Error::io("create", &to))?;
        if durable {
            sync_parent(&to)?;
        }
        Ok(new)
    }

    fn put(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let to = self.root.join(path);
        let temporary = self.write_temporary(bytes, 0o644, false)?;
        with_parent(&to, || fs::rename(&temporary.path, &to)).map_err(Error::io("write", &to))
    }

    fn put_from(&self, path: &str, source: &Path) -> Result<()> {
        let to = self.root.join(path);
        with_parent(&to, || fs::rename(source, &to)).map_err(Error::io("write", &to))
    }

    fn fetch(&self, path: &str, to: &Path) -> Result<bool> {
        let from = self.root.join(path);
        let _ = fs::remove_file(to);
        let copied = optional(copy(&from, to)).map_err(Error::io("copy", &from))?;
        Ok(copied.is_some())
    }

    fn size(&self, path: &str) -> Result<Option<u64>> {
        let path = self.root.join(path);
        let meta = optional(fs::symlink_metadata(&path)).map_err(Error::io("stat", &path))?;
        Ok(meta.filter(|m| m.is_file()).map(|m| m.len()))
    }

    fn list(&self, prefix: &str, each: &mut Each) -> Result<()> {
        let folder = self.root.join(prefix);
        let Some(entries) = optional(fs::read_dir(&folder)).map_err(Error::io("list", &folder))?
        else {
            return Ok(());
        };
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let path = format!("{prefix}/{}", entry.file_name().to_string_lossy());
            let Some(meta) =
                optional(entry.metadata()).map_err(Error::io("stat", &entry.path()))?
            else {
                continue; // removed meanwhile
            };
            if meta.is_dir() {
                self.list(&path, each)?;
            } else {
                each(Listed {
                    path: &path,
                    size: meta.len(),
                    modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                })?;
            }
        }
        Ok(())
    }

    fn children(&self, prefix: &str) -> Result<Vec<String>> {
        let folder = self.root.join(prefix);
        let Some(entries) = optional(fs::read_dir(&folder)).map_err(Error::io("list", &folder))?
        else {
            return Ok(Vec::new());
        };
        entries
            .map(|entry| {
                let entry = entry.map_err(Error::io("list", &folder))?;
                Ok(entry.file_name().to_string_lossy().into_owned())
            })
            .collect()
    }

    fn delete(&self, path: &str) -> Result<bool> {
        let path = self.root.join(path);
        let removed = optional(fs::remove_file(&path)).map_err(Error::io("remove", &path))?;
        if removed.is_some() {
            // an emptied folder is only noise; one that is not empty refuses
            let _ = path.parent().map(fs::remove_dir);
        }
        Ok(removed.is_some())
    }
}

/// A reflink where the file system can, else a copy. `to` must not exist; its mode is 0644.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(to)?;
    // SAFETY: both descriptors are open; the call changes nothing where it fails.
    let cloned = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE, source.as_raw_fd()) };
    if cloned != 0 {
        io::copy(&mut source, &mut target)?;
    }
    Ok(())
}

/// Sets permission bits.
pub fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
