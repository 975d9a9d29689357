//! Files of a commit into the hub's own cache directory, laid out as its other clients do: `blobs/<etag>`, and
//! `snapshots/<commit>/<file>` that points there. What came of a file before an interruption is gone on with, and what
//! came is held against the name that the hub gives its content.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::{Flock, FlockArg};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::Repository;
use crate::source::http::{Client, Failure};

/// Files on their way at a time.
const AT_A_TIME: usize = 4;

/// Why a file of a repository is not there.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("'{file}': {failure}")]
    Http { file: String, failure: Failure },
    #[error("'{file}': the hub's own protocol: {message}")]
    Pieces { file: String, message: String },
    #[error(
        "'{file}' is not what the hub says it is: its content is {found}, and should be {wanted}"
    )]
    Damaged {
        file: String,
        wanted: String,
        found: String,
    },
    #[error("'{0}' is no name for a file of a repository")]
    Name(String),
    #[error("the hub does not say what the content of '{0}' is called")]
    NoEtag(String),
    #[error("the hub cache at '{}': {source}", path.display())]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// The hub cache's part that is a repository's.
pub struct Folder {
    /// `hub/models--owner--name`.
    root: PathBuf,
    locks: PathBuf,
    /// `https://huggingface.co/owner/name/resolve/`, with `datasets/` before the owner where it is one.
    files: Url,
}

impl Folder {
    pub fn new(
        cache: &Path,
        endpoint: &str,
        repository: &Repository,
    ) -> Result<Folder, url::ParseError> {
        let plural = if repository.dataset {
            "datasets"
        } else {
            "models"
        };
        let name = format!("{plural}--{}", repository.id.replace('/', "--"));
        let prefix = if repository.dataset { "datasets/" } else { "" };
        let endpoint = endpoint.trim_end_matches('/');
        Ok(Folder {
            root: cache.join(&name),
            locks: cache.join(".locks").join(name),
            files: Url::parse(&format!("{endpoint}/{prefix}{}/resolve", repository.id))?,
        })
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Notes which commit a revision stood for, so that it is found without network.
    pub fn note_revision(&self, revision: &str, commit: &str) -> Result<(), Fault> {
        let plain = |c: Component| matches!(c, Component::Normal(_));
        if revision == commit || !Path::new(revision).components().all(plain) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(&self.root))?;
            fs::write(&path, commit)
        };
        write().map_err(|source| Fault::Cache {
            path: path.clone(),
            source,
        })
    }

    fn address(&self, commit: &str, file: &str) -> Url {
        let mut url = self.files.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.push(commit).extend(file.split('/'));
        }
        url
    }
}

/// How a download goes.
pub struct Download<'a> {
    pub folder: &'a Folder,
    pub client: &'a Client,
    pub token: Option<&'a str>,
    pub commit: &'a str,
    /// Whether files that are there are held against their names too.
    pub verify: bool,
    /// Fetches a file that is stored in pieces, by the hub's own protocol.
    pub in_pieces: &'a (dyn Fn(&str) -> Result<(), String> + Sync),
}

impl Download<'_> {
    /// Brings these files into the snapshot of the commit. What is done stays done when one of them fails.
    pub fn all(&self, files: &[String]) -> Result<(), Fault> {
        let next = Mutex::new(files.iter());
        let failed: Mutex<Option<Fault>> = Mutex::new(None);
        let work = || {
            loop {
                let stop = failed.lock().unwrap_or_else(|e| e.into_inner()).is_some();
                let file = next.lock().unwrap_or_else(|e| e.into_inner()).next();
                let Some(file) = file.filter(|_| !stop) else {
                    return;
                };
                if let Err(fault) = self.one(file) {
                    let mut failed = failed.lock().unwrap_or_else(|e| e.into_inner());
                    failed.get_or_insert(fault);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..AT_A_TIME.min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
        match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            None => Ok(()),
            Some(fault) => Err(fault),
        }
    }

    fn one(&self, file: &str) -> Result<(), Fault> {
        let inside = |c: Component| matches!(c, Component::Normal(_));
        if file.is_empty() || !Path::new(file).components().all(inside) {
            return Err(Fault::Name(file.to_owned()));
        }
        let pointer = self.folder.snapshot(self.commit).join(file);
        if !self.verify && pointer.exists() {
            return Ok(());
        }
        let http = |failure| Fault::Http {
            file: file.to_owned(),
            failure,
        };
        let url = self.folder.address(self.commit, file);
        let head = self.client.head(&url, self.token).map_err(http)?;
        let etag = head.etag.filter(|tag| {
            !tag.is_empty()
                && tag
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        });
        let etag = etag.ok_or_else(|| Fault::NoEtag(file.to_owned()))?;
        let blob = self.folder.root.join("blobs").join(&etag);
        let cache = |path: &Path| {
            let path = path.to_owned();
            move |source| Fault::Cache { path, source }
        };
        let lock = self.folder.locks.join(format!("{etag}.lock"));
        for path in [&blob, &lock, &pointer] {
            let parent = path.parent().unwrap_or(path);
            fs::create_dir_all(parent).map_err(cache(parent))?;
        }
        let held = File::create(&lock).map_err(cache(&lock))?;
        let held =
            Flock::lock(held, FlockArg::LockExclusive).map_err(|(_, e)| cache(&lock)(e.into()))?;
        if blob.exists() && self.verify && check(&blob, &etag).map_err(cache(&blob))?.is_err() {
            fs::remove_file(&blob).map_err(cache(&blob))?;
        }
        if !blob.exists() {
            if head.in_pieces {
                // takes the same lock
                drop(held);
                (self.in_pieces)(file).map_err(|message| Fault::Pieces {
                    file: file.to_owned(),
                    message,
                })?;
            } else {
                let partial = blob.with_file_name(format!("{etag}.incomplete"));
                self.fetch(&url, file, &partial, head.size, &etag)?;
                fs::rename(&partial, &blob).map_err(cache(&blob))?;
            }
        }
        let up = "../".repeat(1 + file.split('/').count());
        let _ = fs::remove_file(&pointer);
        let target = format!("{up}blobs/{etag}");
        std::os::unix::fs::symlink(target, &pointer).map_err(cache(&pointer))
    }

    /// Downloads to `partial`; once more from the start where what came is not right, since what was there before the
    /// download went on may have been damaged.
    fn fetch(
        &self,
        url: &Url,
        file: &str,
        partial: &Path,
        size: Option<u64>,
        etag: &str,
    ) -> Result<(), Fault> {
        let cache = |source| Fault::Cache {
            path: partial.to_owned(),
            source,
        };
        let mut again = partial.exists();
        loop {
            self.client
                .get(url, self.token, partial, size)
                .map_err(|failure| Fault::Http {
                    file: file.to_owned(),
                    failure,
                })?;
            let Err(found) = check(partial, etag).map_err(cache)? else {
                return Ok(());
            };
            fs::remove_file(partial).map_err(cache)?;
            if !std::mem::take(&mut again) {
                return Err(Fault::Damaged {
                    file: file.to_owned(),
                    wanted: etag.to_owned(),
                    found,
                });
            }
        }
    }
}

/// Holds a file against the name that the hub gives its content: the SHA-256 of a large file, git's name of a small
/// one, which is a SHA-1. A server that names content otherwise cannot be held to it. The content's own name, if it is
/// another.
fn check(path: &Path, etag: &str) -> std::io::Result<Result<(), String>> {
    let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
    if !hex || !matches!(etag.len(), 40 | 64) {
        return Ok(Ok(()));
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let (mut large, mut git, mut plain) = (Sha256::new(), Sha1::new(), Sha1::new());
    git.update(format!("blob {size}\0"));
    let mut bytes = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut bytes)?;
        if n == 0 {
            break;
        }
        if etag.len() == 64 {
            large.update(&bytes[..n]);
        } else {
            git.update(&bytes[..n]);
            plain.update(&bytes[..n]);
        }
    }
    let etag = etag.to_ascii_lowercase();
    if etag.len() == 64 {
        let found = hex_of(&large.finalize());
        return Ok(if found == etag { Ok(()) } else { Err(found) });
    }
    let found = hex_of(&git.finalize());
    // mirrors that are no git servers name small files by the SHA-1 of their bytes
    let right = found == etag || hex_of(&plain.finalize()) == etag;
    Ok(if right { Ok(()) } else { Err(found) })
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
