//! Large objects, in pieces side by side, and on from where a killed transfer ended.
//!
//! An upload's state is a file of lines: what is sent, then the number and tag of each part that
//! arrived. Objects sent by way of it are named by their content, so that parts of an earlier try
//! are parts of the same bytes. An upload that was not gone on with for a day is given up by the
//! next one from the same machine, so that nobody pays for its parts; where no machine comes back,
//! the bucket's rule for incomplete uploads has to remove it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use object_store::multipart::PartId;
use object_store::path::Path as Key;
use object_store::{MultipartId, ObjectStoreExt, PutPayload, WriteMultipart};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::{Remote, missing};
use crate::Digest;
use crate::backend::{Backend, Progress};
use crate::error::{Error, Result};
use crate::local::with_parent;

/// Files are sent and fetched in pieces of this many bytes, larger ones where there would be too
/// many: stores take 10,000 parts at most.
const PIECE: u64 = 8 << 20;
const MOST_PARTS: u64 = 9000;
/// Pieces of one file in flight.
const IN_FLIGHT: usize = 8;
/// An upload that nobody went on with for so long is given up.
const IDLE: Duration = Duration::from_secs(24 * 3600);

type Task<T> = JoinHandle<object_store::Result<T>>;

/// The first line of an upload's state.
#[derive(PartialEq, Serialize, Deserialize)]
struct Head {
    url: String,
    path: String,
    size: u64,
    piece: u64,
    id: MultipartId,
}

/// An upload under way: its state's file, and the parts that arrived.
struct Upload {
    head: Head,
    /// Absent where no folder for it is, or another process uses it.
    file: Option<(File, PathBuf)>,
    parts: BTreeMap<u64, String>,
}

impl Remote {
    fn tell(&self, path: &str, done: u64, total: u64) {
        if let Some(observer) = self.observer.get() {
            let path = path.to_owned();
            observer(&Progress { path, done, total });
        }
    }

    pub(super) fn upload(&self, path: &str, source: &Path) -> Result<()> {
        let mut file = File::open(source).map_err(Error::io("open", source))?;
        let size = file.metadata().map_err(Error::io("stat", source))?.len();
        if size <= PIECE {
            let mut bytes = Vec::with_capacity(size as usize);
            file.read_to_end(&mut bytes)
                .map_err(Error::io("read", source))?;
            return self.put(path, &bytes);
        }
        if self.multipart.is_none() {
            return self.upload_anew(path, source, &mut file);
        }
        self.idle.get_or_init(|| self.give_up_idle());
        let there = self.size(path)?.is_some();
        let (upload, resumed) = self.begin(path, size)?;
        match self.send_parts(path, source, &file, upload, there) {
            // the store may have forgotten what an earlier try sent
            Err(Error::Remote { .. }) if resumed => {
                self.forget(path);
                let (upload, _) = self.begin(path, size)?;
                self.send_parts(path, source, &file, upload, there)
            }
            other => other,
        }
    }

    /// Where the state of an upload is kept.
    fn state_of(&self, path: &str) -> Option<PathBuf> {
        let name = Digest::of(format!("{}\n{path}", self.url).as_bytes()).hex();
        Some(self.transfers.as_ref()?.join(&name[..16]))
    }

    fn forget(&self, path: &str) {
        if let Some(at) = self.state_of(path) {
            let _ = std::fs::remove_file(at);
        }
    }

    /// Aborts uploads to this store that were left long ago. What cannot be asked now is tried another day.
    fn give_up_idle(&self) {
        let (Some(folder), Some(multipart)) = (&self.transfers, &self.multipart) else {
            return;
        };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let idle = |at: &Path| {
                let left = at.metadata().ok()?.modified().ok()?.elapsed().ok()?;
                let file = File::open(at).ok().filter(|_| left > IDLE)?;
                file.try_lock().ok()?;
                let head = read_state(&file).0.filter(|head| head.url == self.url)?;
                Some((file, head))
            };
            let Some((_held, head)) = idle(&entry.path()) else {
                continue;
            };
            let key = self.key(&head.path);
            let gone = self.block(async { multipart.abort_multipart(&key, &head.id).await });
            if matches!(gone, Ok(()) | Err(object_store::Error::NotFound { .. })) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Begins an upload, or finds the one that was begun; whether it was.
    fn begin(&self, path: &str, size: u64) -> Result<(Upload, bool)> {
        let piece = PIECE.max(size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20));
        let state = self.state_of(path).and_then(|at| {
            let open = || {
                OpenOptions::new()
                    .read(true)
                    .append(true)
                    .create(true)
                    .open(&at)
            };
            let file = with_parent(&at, open).ok()?;
            file.try_lock().ok()?;
            Some((file, at))
        });
        let mut file = None;
        if let Some((state, at)) = state {
            let (head, parts) = read_state(&state);
            let fits = |head: &Head| {
                (&*head.url, &*head.path, head.size, head.piece) == (&*self.url, path, size, piece)
            };
            if let Some(head) = head.filter(fits) {
                let file = Some((state, at));
                return Ok((Upload { head, file, parts }, true));
            }
            state.set_len(0).map_err(Error::io("write", &at))?;
            file = Some((state, at));
        }
        let key = self.key(path);
        let multipart = self.multipart.clone().expect("asked before");
        let id = self
            .block(async { multipart.create_multipart(&key).await })
            .map_err(self.error("write", path))?;
        let head = Head {
            url: self.url.clone(),
            path: path.to_owned(),
            size,
            piece,
            id,
        };
        if let Some((file, at)) = &mut file {
            let mut line = serde_json::to_vec(&head).expect("plain data");
            line.push(b'\n');
            file.write_all(&line).map_err(Error::io("write", at))?;
        }
        let parts = BTreeMap::new();
        Ok((Upload { head, file, parts }, false))
    }

    /// Sends what is missing of an upload and ends it. One that breaks off is gone on with later.
    /// `there`: an object of that name was, before anything was sent.
    fn send_parts(
        &self,
        path: &str,
        source: &Path,
        file: &File,
        mut upload: Upload,
        there: bool,
    ) -> Result<()> {
        let sent = self.send_missing(path, source, file, &mut upload);
        let ended = sent.and_then(|()| {
            let key = self.key(path);
            let multipart = self.multipart.clone().expect("asked before");
            let parts = upload.parts.values().cloned();
            let parts = parts.map(|content_id| PartId { content_id }).collect();
            self.block(async {
                multipart
                    .complete_multipart(&key, &upload.head.id, parts)
                    .await
            })
            .map_err(self.error("write", path))
        });
        // the parts may have been put together, and the answer lost
        if let Err(error) = ended
            && (there || self.size(path)? != Some(upload.head.size))
        {
            return Err(error);
        }
        if upload.file.is_some() {
            self.forget(path);
        }
        Ok(())
    }

    fn send_missing(
        &self,
        path: &str,
        source: &Path,
        file: &File,
        upload: &mut Upload,
    ) -> Result<()> {
        let Head { size, piece, .. } = upload.head;
        let count = size.div_ceil(piece);
        let length = |part: u64| piece.min(size - part * piece);
        let mut done: u64 = upload.parts.keys().map(|part| length(*part)).sum();
        let todo: Vec<u64> = (0..count)
            .filter(|part| !upload.parts.contains_key(part))
            .collect();
        let mut flying: VecDeque<(u64, Task<PartId>)> = VecDeque::new();
        let mut todo = todo.into_iter();
        loop {
            while flying.len() < IN_FLIGHT
                && let Some(part) = todo.next()
            {
                let mut bytes = vec![0u8; length(part) as usize];
                file.read_exact_at(&mut bytes, part * piece)
                    .map_err(Error::io("read", source))?;
                let multipart = self.multipart.clone().expect("asked before");
                let (key, id) = (self.key(path), upload.head.id.clone());
                let put = async move {
                    let payload = PutPayload::from(bytes);
                    multipart.put_part(&key, &id, part as usize, payload).await
                };
                flying.push_back((part, self.runtime().spawn(put)));
            }
            let Some((part, task)) = flying.pop_front() else {
                return Ok(());
            };
            let tag = self.landed(task).map_err(self.error("write", path))?;
            if let Some((file, at)) = &mut upload.file {
                let line = format!("{part} {}\n", tag.content_id);
                file.write_all(line.as_bytes())
                    .map_err(Error::io("write", at))?;
            }
            upload.parts.insert(part, tag.content_id);
            done += length(part);
            self.tell(path, done, size);
        }
    }

    /// Sends a file in parts that nobody else can go on with.
    fn upload_anew(&self, path: &str, source: &Path, file: &mut File) -> Result<()> {
        let key = self.key(path);
        let upload = self
            .block(self.store.put_multipart(&key))
            .map_err(self.error("write", path))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PIECE as usize);
        let mut piece = vec![0u8; PIECE as usize];
        loop {
            let read = match file.read(&mut piece) {
                Ok(read) => read,
                Err(e) => {
                    let _ = self.block(upload.abort());
                    return Err(Error::io("read", source)(e));
                }
            };
            if read == 0 {
                break;
            }
            let sent = self.block(async {
                upload.wait_for_capacity(IN_FLIGHT).await?;
                upload.write(&piece[..read]);
                Ok::<(), object_store::Error>(())
            });
            if let Err(e) = sent {
                let _ = self.block(upload.abort());
                return Err(self.error("write", path)(e));
            }
        }
        self.block(upload.finish())
            .map_err(self.error("write", path))?;
        Ok(())
    }

    pub(super) fn download(&self, path: &str, to: &Path) -> Result<bool> {
        let key = self.key(path);
        let found = missing(self.block(self.store.head(&key))).map_err(self.error("find", path))?;
        let Some(size) = found.map(|meta| meta.size) else {
            return Ok(false);
        };
        let failed = |e| Error::io("write", to)(e);
        let open = || OpenOptions::new().append(true).create(true).open(to);
        let mut file = with_parent(to, open).map_err(failed)?;
        let mut at = file.metadata().map_err(failed)?.len();
        if at > size {
            file.set_len(0).map_err(failed)?;
            at = 0;
        }
        let mut done = at;
        let mut flying: VecDeque<Task<Vec<u8>>> = VecDeque::new();
        loop {
            while flying.len() < IN_FLIGHT && at < size {
                let range = at..size.min(at + PIECE);
                at = range.end;
                flying.push_back(self.piece(&key, range));
            }
            let Some(task) = flying.pop_front() else {
                return Ok(true);
            };
            let bytes = self.landed(task).map_err(self.error("read", path))?;
            // in order, so that the file's length says how far it is
            file.write_all(&bytes).map_err(failed)?;
            done += bytes.len() as u64;
            if size > PIECE {
                self.tell(path, done, size);
            }
        }
    }

    fn piece(&self, key: &Key, range: std::ops::Range<u64>) -> Task<Vec<u8>> {
        let (store, key) = (self.store.clone(), key.clone());
        self.runtime()
            .spawn(async move { store.get_range(&key, range).await.map(Vec::from) })
    }

    fn landed<T: Send>(&self, task: Task<T>) -> object_store::Result<T> {
        self.block(task).unwrap_or_else(|e| {
            Err(object_store::Error::Generic {
                store: "transfer",
                source: Box::new(e),
            })
        })
    }
}

/// What a state's file says; lines cut short by a crash are ignored.
fn read_state(file: &File) -> (Option<Head>, BTreeMap<u64, String>) {
    let mut lines = BufReader::new(file)
        .split(b'\n')
        .map_while(|line| line.ok());
    let head = lines
        .next()
        .and_then(|line| serde_json::from_slice(&line).ok());
    let parts = lines.filter_map(|line| {
        let line = String::from_utf8(line).ok()?;
        let (part, tag) = line.split_once(' ')?;
        Some((part.parse().ok()?, tag.to_owned()))
    });
    (head, parts.collect())
}
