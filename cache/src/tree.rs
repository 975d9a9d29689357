//! Directories in and out of the store.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use crate::Digest;
use crate::blobs::{Found, Ingest, path_of};
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{Entry, Manifest};
use crate::memo::Blobs;
use crate::nonce;
use crate::store::Store;

/// How a file leaves the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A reflink where the file system can, else a copy. Writing to it does not reach the store.
    Reflink,
    /// A hard link to the read-only blob, for those who ask: root writes through it. Executable
    /// files, and stores on another file system, are copied.
    Hard,
}

/// Whether an artifact can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intact {
    Yes,
    Missing { digest: Digest },
    Corrupt { digest: Digest, why: String },
}

impl Intact {
    pub fn is_yes(&self) -> bool {
        *self == Intact::Yes
    }

    /// What a look at a blob of an artifact means; `size`: what a manifest says of it.
    pub(crate) fn from_look(blob: &Digest, size: Option<u64>, found: Found) -> Intact {
        let digest = *blob;
        match (found, size) {
            (Found::Good(has), Some(said)) if has != said => Intact::Corrupt {
                digest,
                why: format!("it has {has} bytes and its manifest says {said}"),
            },
            (Found::Good(_), _) => Intact::Yes,
            (Found::Missing, _) => Intact::Missing { digest },
            (Found::Corrupt(why), _) => Intact::Corrupt { digest, why },
        }
    }
}

impl Store {
    /// Stores a directory's files and their manifest: the artifact's digest. Links and special
    /// files are refused; empty folders are not content. With `Ingest::Move` the files are gone
    /// from `dir` afterwards.
    pub fn put_tree(&self, dir: &Path, how: Ingest) -> Result<(Digest, Manifest)> {
        let mut files = Vec::new();
        walk(dir, "", false, &mut files)?;
        self.put_files(files, how)
    }

    /// Stores what enters from outside: a directory, or one file under its own name. Links to
    /// files are followed.
    pub fn put_source(&self, path: &Path) -> Result<(Digest, Manifest)> {
        self.put_files(source_files(path)?, Ingest::Copy)
    }

    /// The digest and manifest that [`Store::put_source`] would give, storing nothing.
    pub fn hash_tree(&self, path: &Path) -> Result<(Digest, Manifest)> {
        let files = source_files(path)?;
        let entries = parallel(&files, self.width(), |file| {
            let (blob, size) = self.hashes.digest(&file.from, self.paranoid)?;
            Ok(file.entry(blob, size))
        })?;
        let manifest = Manifest::new(entries)?;
        Ok((manifest.digest(), manifest))
    }

    fn put_files(&self, files: Vec<Met>, how: Ingest) -> Result<(Digest, Manifest)> {
        let entries = parallel(&files, self.width(), |file| {
            let (blob, size) = self.put_regular(&file.from, how)?;
            Ok(file.entry(blob, size))
        })?;
        let manifest = Manifest::new(entries)?;
        Ok((self.put_manifest(&manifest)?, manifest))
    }

    /// Stores a manifest whose blobs are there: the artifact's digest.
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest> {
        self.put_bytes(&manifest.canonical())
    }

    /// Reads an artifact's manifest, verified.
    pub fn manifest(&self, artifact: &Digest) -> Result<Manifest> {
        let bytes = self.get_bytes(artifact)?;
        Manifest::parse(&bytes).map_err(|why| self.corrupt(&path_of(artifact), why))
    }

    /// Writes an artifact's files, verified, to `to`, which must not exist or be empty. It appears
    /// whole or not at all.
    pub fn materialize(&self, artifact: &Digest, to: &Path, link: Link) -> Result<Manifest> {
        let manifest = self.manifest(artifact)?;
        let to = std::path::absolute(to).map_err(Error::io("find", to))?;
        match fs::read_dir(&to).map(|mut entries| entries.next().is_none()) {
            Ok(true) => {}
            Ok(false) => return Err(Error::NotEmpty { path: to }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(Error::NotEmpty { path: to });
            }
            Err(e) => return Err(Error::io("list", &to)(e)),
        }
        let parent = to.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        let part = Part(parent.join(format!(".recipe-{}", nonce())));
        fs::create_dir(&part.0).map_err(Error::io("create", &part.0))?;
        let mut folders: Vec<&str> = manifest
            .files
            .iter()
            .filter_map(|f| f.path.rsplit_once('/').map(|(d, _)| d))
            .collect();
        folders.dedup();
        for folder in folders {
            let folder = part.0.join(folder);
            fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        }
        parallel(&manifest.files, self.width(), |file| {
            self.take_out(file, &part.0.join(&file.path), link)
        })?;
        fs::rename(&part.0, &to).map_err(Error::io("create", &to))?;
        Ok(manifest)
    }

    /// Writes one file of an artifact, verified, to `to`, which must not exist. A reflink where the
    /// file system can, else a copy.
    pub fn materialize_file(&self, file: &Entry, to: &Path) -> Result<()> {
        self.take_out(file, to, Link::Reflink)
    }

    fn take_out(&self, file: &Entry, to: &Path, link: Link) -> Result<()> {
        let path = path_of(&file.blob);
        let Some(from) = self.backend.file(&path) else {
            self.fetch_verified(&file.blob, to, file.size)?;
            return self.finish(file, to);
        };
        let size = self.demand(&file.blob)?;
        if size != file.size {
            let why = format!("it has {size} bytes and its manifest says {}", file.size);
            return Err(self.corrupt(&path, why));
        }
        if link == Link::Hard && !file.executable {
            let stat = || fs::symlink_metadata(&from).map_err(Error::io("stat", &from));
            let before = crate::hashcache::FileId::of(&stat()?);
            if fs::hard_link(&from, to).is_ok() {
                // linking changes ctime, and nothing else
                return self
                    .hashes
                    .moved(&before, &from, file.blob, false, crate::blobs::LARGE);
            }
        }
        local::copy(&from, to).map_err(Error::io("copy", &from))?;
        // the blob may have been written to between the look and the copy
        self.demand(&file.blob)?;
        self.finish(file, to)
    }

    fn finish(&self, file: &Entry, to: &Path) -> Result<()> {
        let mode = if file.executable { 0o755 } else { 0o644 };
        local::set_mode(to, mode).map_err(Error::io("set the mode of", to))
    }

    /// Whether an artifact can be served: its manifest and every blob are what their names say.
    /// Local: each file's stat against its last hash; remote: presence and size; paranoid: hashes.
    /// What is missing or corrupt is reported, not an error: the stage that makes it runs again.
    pub fn artifact_intact(&self, artifact: &Digest) -> Result<Intact> {
        Ok(self.intact_and_blobs(artifact)?.0)
    }

    /// The same, and the blobs that its manifest names when that can be read.
    pub(crate) fn intact_and_blobs(&self, artifact: &Digest) -> Result<(Intact, Option<Blobs>)> {
        let manifest = match self.manifest(artifact) {
            Ok(manifest) => manifest,
            Err(Error::Missing { digest, .. }) => return Ok((Intact::Missing { digest }, None)),
            Err(Error::Corrupt { why, .. }) => {
                let digest = *artifact;
                return Ok((Intact::Corrupt { digest, why }, None));
            }
            Err(e) => return Err(e),
        };
        let looks = parallel(
            &manifest.files,
            self.width_for(manifest.files.len()),
            |file| {
                let found = self.look(&file.blob, self.paranoid)?;
                self.or_behind(Intact::from_look(&file.blob, Some(file.size), found))
            },
        )?;
        let bad = looks.into_iter().find(|look| !look.is_yes());
        let blobs: Blobs = manifest.files.iter().map(|f| (f.blob, f.size)).collect();
        Ok((bad.unwrap_or(Intact::Yes), Some(blobs)))
    }

    /// Looks done at once when there are `n`: threads pay from some dozens of local ones on.
    pub(crate) fn width_for(&self, n: usize) -> usize {
        match self.local {
            Some(_) if n < 64 => 1,
            _ => self.width(),
        }
    }

    /// Files worked on at once: a disk wants few, a network many.
    fn width(&self) -> usize {
        if self.local.is_some() {
            // read once: it takes longer to learn than a small file to store
            static CORES: OnceLock<usize> = OnceLock::new();
            let cores = || std::thread::available_parallelism().map_or(1, |n| n.get());
            (*CORES.get_or_init(cores)).min(8)
        } else {
            16
        }
    }
}

/// A directory under construction, removed unless it was renamed away.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file met on a walk.
struct Met {
    from: PathBuf,
    path: String,
    executable: bool,
}

impl Met {
    fn entry(&self, blob: Digest, size: u64) -> Entry {
        Entry {
            path: self.path.clone(),
            size,
            blob,
            executable: self.executable,
        }
    }
}

fn source_files(path: &Path) -> Result<Vec<Met>> {
    let meta = fs::metadata(path).map_err(Error::io("open", path))?;
    let mut files = Vec::new();
    if meta.is_dir() {
        walk(path, "", true, &mut files)?;
    } else {
        check_regular(path, &meta)?;
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .ok_or_else(|| not_utf8(path))?;
        files.push(Met {
            from: path.to_owned(),
            path: name.to_owned(),
            executable: meta.permissions().mode() & 0o111 != 0,
        });
    }
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, follow: bool, files: &mut Vec<Met>) -> Result<()> {
    // a file system has paths of at most 4096 bytes; a loop of links does not
    if prefix.len() > 4096 {
        return Err(Error::NotAFile {
            path: dir.to_owned(),
            what: "nested without end",
            help: "remove the link that leads back up",
        });
    }
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let from = entry.path();
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| not_utf8(&from))?;
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        let meta = if follow {
            fs::metadata(&from)
        } else {
            entry.metadata()
        };
        let meta = meta.map_err(Error::io("stat", &from))?;
        if meta.is_dir() {
            walk(&from, &path, follow, files)?;
        } else {
            check_regular(&from, &meta)?;
            let executable = meta.permissions().mode() & 0o111 != 0;
            files.push(Met {
                from,
                path,
                executable,
            });
        }
    }
    Ok(())
}

fn not_utf8(path: &Path) -> Error {
    Error::BadName {
        what: "file",
        name: path.display().to_string(),
        why: "it is not UTF-8; rename the file",
    }
}

/// Refuses what is not a plain file.
pub(crate) fn check_regular(path: &Path, meta: &fs::Metadata) -> Result<()> {
    let kind = meta.file_type();
    let (what, help) = if kind.is_file() {
        return Ok(());
    } else if kind.is_symlink() {
        (
            "a symbolic link",
            "put a copy of what it points to in its place",
        )
    } else if kind.is_dir() {
        ("a directory", "name a file")
    } else if kind.is_fifo() || kind.is_socket() {
        ("a pipe or socket", "remove it")
    } else {
        ("a device", "remove it")
    };
    Err(Error::NotAFile {
        path: path.to_owned(),
        what,
        help,
    })
}

/// `each` of all items, `width` at a time, in order; the first error in order of occurrence.
pub(crate) fn parallel<T: Sync, R: Send>(
    items: &[T],
    width: usize,
    each: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let width = width.min(items.len());
    if width <= 1 {
        return items.iter().map(each).collect();
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..width {
            scope.spawn(|| {
                let mut mine = Vec::with_capacity(items.len() / width);
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { break };
                    match each(item) {
                        Ok(value) => mine.push((at, value)),
                        Err(e) => {
                            next.store(items.len(), Ordering::Relaxed);
                            failed
                                .lock()
                                .expect("no thread panics here")
                                .get_or_insert(e);
                            return;
                        }
                    }
                }
                done.lock().expect("no thread panics here").extend(mine);
            });
        }
    });
    if let Some(e) = failed.into_inner().expect("no thread panics here") {
        return Err(e);
    }
    let mut done = done.into_inner().expect("no thread panics here");
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, value)| value).collect())
}
