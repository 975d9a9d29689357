//! Digests of files that have not changed since they were last hashed.
//!
//! A file is the same content as long as (device, inode, size, mtime_ns, ctime_ns) is the same:
//! every write changes mtime, and setting mtime back changes ctime. Two holes are closed:
//!
//! - *Racy*: a write within one tick of the clock after the hash leaves equal times behind. So a
//!   digest is kept only if its hashing began more than a tick after the file's last change
//!   (git's racy-clean rule); until then the file is hashed again each time it is asked for.
//! - *Power loss*: metadata may survive that data did not. So a digest of data that was not synced
//!   is believed only until the machine boots again.
//!
//! | in `local/hashes` | bytes | why |
//! |---|---|---|
//! | header | 88 | magic and version; a file that starts otherwise is started over |
//! | record: dev, ino, size, mtime_ns, ctime_ns | 5 x 8 | which file |
//! | boot | 8 | 0: synced; else the boot it may be believed in |
//! | digest | 32 | what it holds |
//! | check | 8 | a record torn by a crash is ignored |
//!
//! The file is an append-only log, the last record of a (dev, ino) counts. Appends are made under a
//! file lock, so that processes share it; it is compacted when most of it is outdated.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::Digest;
use crate::error::{Error, Result};
use crate::local::{replace_file, with_parent};

const RECORD: usize = 88;
const MAGIC: &[u8; 16] = b"recipe-hashes-1\n";
/// Longer than a tick of the clock that stamps files (10 ms at most on Linux).
const TICK_NS: i64 = 20_000_000;
/// File systems that stamp whole seconds, or pairs of them.
const COARSE_TICK_NS: i64 = 2_000_000_000;
/// Dirty pages are long written back after this.
const SETTLED_NS: i64 = 3600 * 1_000_000_000;

/// Which content a file holds, as far as its metadata can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

impl FileId {
    /// From a stat.
    pub fn of(meta: &fs::Metadata) -> FileId {
        FileId {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
            ctime_ns: meta.ctime() * 1_000_000_000 + meta.ctime_nsec(),
        }
    }

    /// As stored.
    pub(crate) fn words(&self) -> [u64; 5] {
        let times = [self.mtime_ns as u64, self.ctime_ns as u64];
        [self.dev, self.ino, self.size, times[0], times[1]]
    }

    pub(crate) fn from_words([dev, ino, size, mtime, ctime]: [u64; 5]) -> FileId {
        FileId {
            dev,
            ino,
            size,
            mtime_ns: mtime as i64,
            ctime_ns: ctime as i64,
        }
    }

    /// Whether a change after `now_ns` would show in the times.
    pub(crate) fn settled_at(&self, now_ns: i64) -> bool {
        self.wait(now_ns).is_zero()
    }

    /// How long after `now_ns` a hash may begin and be kept; zero when it may begin at once.
    fn wait(&self, now_ns: i64) -> Duration {
        let changed = self.mtime_ns.max(self.ctime_ns);
        let tick = if changed % 1_000_000_000 == 0 {
            COARSE_TICK_NS
        } else {
            TICK_NS
        };
        Duration::from_nanos((changed + tick - now_ns).max(0) as u64)
    }
}

#[derive(Clone, Copy)]
struct Known {
    id: FileId,
    boot: u64,
    digest: Digest,
}

/// (dev, ino) are spread well by one multiplication.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0 ^ value, 0x9e37_79b9_7f4a_7c15);
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let wide = u128::from(a) * u128::from(b);
    (wide >> 64) as u64 ^ wide as u64
}

#[derive(Default)]
struct State {
    loaded: bool,
    known: HashMap<(u64, u64), Known, BuildHasherDefault<Mix>>,
    /// Learnt and not yet written.
    fresh: Vec<Known>,
    /// Too young to be kept when they were hashed.
    young: Vec<PathBuf>,
    /// Records in the file when it was read.
    on_disk: usize,
}

/// The cache. Shared by threads; several processes may use one file.
pub struct HashCache {
    path: Option<PathBuf>,
    boot: u64,
    state: Mutex<State>,
}

impl HashCache {
    /// Persists in `path`, or in memory alone. The file is read at the first question.
    pub fn new(path: Option<PathBuf>) -> HashCache {
        let boot = Digest::of(crate::machine().as_bytes()).0;
        let boot = u64::from_le_bytes(boot[..8].try_into().expect("8 of 32 bytes")).max(1);
        HashCache {
            path,
            boot,
            state: Mutex::default(),
        }
    }

    /// As on the same machine after it was started again.
    pub(crate) fn after_reboot(path: Option<PathBuf>) -> HashCache {
        let mut cache = HashCache::new(path);
        cache.boot = cache.boot.wrapping_add(1).max(1);
        cache
    }

    /// The digest and size of a file's content; links are followed. Hashes when metadata cannot tell, or
    /// always with `again`.
    pub fn digest(&self, path: &Path, again: bool) -> Result<(Digest, u64)> {
        let meta = fs::metadata(path).map_err(Error::io("stat", path))?;
        if !again && let Some(digest) = self.known(&FileId::of(&meta)) {
            return Ok((digest, meta.len()));
        }
        let file = File::open(path).map_err(Error::io("open", path))?;
        self.hash(&file, path)
    }

    /// What is known of a file without reading it.
    pub fn known(&self, id: &FileId) -> Option<Digest> {
        let state = self.loaded();
        let known = state.known.get(&(id.dev, id.ino))?;
        (known.id == *id && (known.boot == 0 || known.boot == self.boot)).then_some(known.digest)
    }

    /// Hashes an open file. Fails when it changes meanwhile; the digest is kept unless too young.
    pub fn hash(&self, file: &File, path: &Path) -> Result<(Digest, u64)> {
        let began = now_ns();
        let before = FileId::of(&file.metadata().map_err(Error::io("stat", path))?);
        let digest = Digest::of_open(file, path)?;
        let after = FileId::of(&file.metadata().map_err(Error::io("stat", path))?);
        if before != after {
            return Err(Error::Changed {
                path: path.to_owned(),
            });
        }
        let mut state = self.loaded();
        if after.wait(began).is_zero() {
            let settled = began - after.mtime_ns.max(after.ctime_ns) > SETTLED_NS;
            let boot = if settled { 0 } else { self.boot };
            learn(
                &mut state,
                Known {
                    id: after,
                    boot,
                    digest,
                },
            );
        } else {
            state.young.push(path.to_owned());
        }
        Ok((digest, after.size))
    }

    /// Keeps `digest` for a file whose content was hashed as `before` and that this process has
    /// renamed or linked since: only ctime may differ. `synced`: its data is on the disk. Waits
    /// out the tick for a file of at least `patient` bytes; a smaller one is cheaper hashed again.
    pub fn moved(
        &self,
        before: &FileId,
        path: &Path,
        digest: Digest,
        synced: bool,
        patient: u64,
    ) -> Result<()> {
        let stat = || {
            fs::symlink_metadata(path)
                .map(|m| FileId::of(&m))
                .map_err(Error::io("stat", path))
        };
        let mut id = stat()?;
        let wait = id.wait(now_ns());
        if !wait.is_zero() && id.size >= patient && wait <= Duration::from_nanos(TICK_NS as u64) {
            std::thread::sleep(wait);
            id = stat()?;
        }
        let same = FileId {
            ctime_ns: before.ctime_ns,
            ..id
        } == *before;
        if !same {
            return Err(Error::Changed {
                path: path.to_owned(),
            });
        }
        let mut state = self.loaded();
        if id.wait(now_ns()).is_zero() {
            let boot = if synced { 0 } else { self.boot };
            learn(&mut state, Known { id, boot, digest });
        } else {
            state.young.push(path.to_owned());
        }
        Ok(())
    }

    /// Hashes again what was too young to be kept, and appends what was learnt to the file. Where
    /// nothing can be written (a read-only store) that costs time later, and is no error.
    pub fn flush(&self) -> Result<()> {
        use ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self.write() {
            Err(Error::Io { source, .. })
                if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    fn write(&self) -> Result<()> {
        let young = std::mem::take(&mut self.loaded().young);
        for path in young {
            // gone or changed meanwhile: whoever asks for it next finds out
            let _ = self.digest(&path, false);
        }
        let mut state = self.loaded();
        state.young.clear();
        let fresh = std::mem::take(&mut state.fresh);
        let (Some(path), false) = (&self.path, fresh.is_empty()) else {
            return Ok(());
        };
        let outdated = (state.on_disk + fresh.len()).saturating_sub(state.known.len());
        if outdated > state.known.len() + 1024 {
            return self.compact(path, &mut state);
        }
        state.on_disk += fresh.len();
        let mut bytes = Vec::with_capacity((fresh.len() + 1) * RECORD);
        let mut file = lock(path)?;
        let mut len = file.metadata().map_err(Error::io("stat", path))?.len();
        if len < RECORD as u64 || !has_header(path) {
            len = 0;
            file.set_len(0).map_err(Error::io("write", path))?;
            bytes.extend_from_slice(&header());
        } else {
            // a record torn by a crash would shift all that follow
            file.set_len(len - len % RECORD as u64)
                .map_err(Error::io("write", path))?;
        }
        for known in &fresh {
            bytes.extend_from_slice(&encode(known));
        }
        file.write_all(&bytes).map_err(|e| {
            // a full disk leaves no part of a record
            let _ = file.set_len(len - len % RECORD as u64);
            Error::io("write", path)(e)
        })
    }

    /// Writes all that is known to a new file in the place of the old one.
    fn compact(&self, path: &Path, state: &mut State) -> Result<()> {
        let held = lock(path)?;
        let mut known: HashMap<_, _, _> = std::mem::take(&mut state.known);
        state.on_disk = read_log(path, &mut known);
        for (key, mine) in &known {
            state.known.insert(*key, *mine);
        }
        let mut bytes = header().to_vec();
        for known in state.known.values() {
            bytes.extend_from_slice(&encode(known));
        }
        let written = replace_file(path, &bytes);
        state.on_disk = state.known.len();
        drop(held);
        written
    }

    fn loaded(&self) -> MutexGuard<'_, State> {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        if !state.loaded {
            state.loaded = true;
            if let Some(path) = &self.path {
                let mut known = std::mem::take(&mut state.known);
                state.on_disk = read_log(path, &mut known);
                state.known = known;
            }
        }
        state
    }
}

impl Drop for HashCache {
    fn drop(&mut self) {
        let _ = self.flush();
    }
}

fn learn(state: &mut State, known: Known) {
    state.known.insert((known.id.dev, known.id.ino), known);
    state.fresh.push(known);
}

/// Opens the log for appending, alone: another process may have put a new file in its place.
fn lock(path: &Path) -> Result<File> {
    loop {
        let file = with_parent(path, || {
            OpenOptions::new().append(true).create(true).open(path)
        })
        .map_err(Error::io("open", path))?;
        file.lock().map_err(Error::io("lock", path))?;
        let opened = file.metadata().map_err(Error::io("stat", path))?;
        match fs::metadata(path) {
            Ok(now) if now.ino() == opened.ino() => return Ok(file),
            _ => continue,
        }
    }
}

fn has_header(path: &Path) -> bool {
    let mut start = [0u8; MAGIC.len()];
    File::open(path)
        .and_then(|mut f| f.read_exact(&mut start))
        .is_ok()
        && start == *MAGIC
}

fn header() -> [u8; RECORD] {
    let mut bytes = [0u8; RECORD];
    bytes[..MAGIC.len()].copy_from_slice(MAGIC);
    bytes
}

/// Says what of a log's bytes is damaged.
pub(crate) fn check_log(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return Ok(());
    }
    if !bytes.starts_with(MAGIC) || !bytes.len().is_multiple_of(RECORD) {
        return Err("its header or its length is not that of a log".into());
    }
    let bad = bytes.chunks_exact(RECORD).skip(1);
    match bad.filter(|record| decode(record).is_none()).count() {
        0 if bytes[MAGIC.len()..RECORD].iter().all(|b| *b == 0) => Ok(()),
        bad => Err(format!("{bad} of its records are damaged")),
    }
}

/// Reads all sound records; the number of records in the file. A file that cannot be read is empty:
/// the cost is hashing again.
fn read_log(path: &Path, known: &mut HashMap<(u64, u64), Known, BuildHasherDefault<Mix>>) -> usize {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(_) => return 0,
    };
    if !bytes.starts_with(MAGIC) || bytes.len() < RECORD {
        return 0;
    }
    let records = bytes[RECORD..].chunks_exact(RECORD);
    known.reserve(records.len());
    let count = records.len();
    for record in records {
        if let Some(one) = decode(record) {
            known.insert((one.id.dev, one.id.ino), one);
        }
    }
    count
}

fn check(record: &[u8]) -> u64 {
    let mut sum = 0x2545_f491_4f6c_dd1d;
    for word in record[..RECORD - 8].chunks_exact(8) {
        let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
        sum = fold(sum ^ word, 0x9e37_79b9_7f4a_7c15).rotate_left(23) ^ word;
    }
    sum
}

fn encode(known: &Known) -> [u8; RECORD] {
    let mut bytes = [0u8; RECORD];
    let words = known.id.words().into_iter().chain([known.boot]);
    for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    bytes[48..80].copy_from_slice(&known.digest.0);
    let sum = check(&bytes);
    bytes[80..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn decode(record: &[u8]) -> Option<Known> {
    let word = |i: usize| u64::from_le_bytes(record[8 * i..8 * i + 8].try_into().expect("8 bytes"));
    if word(10) != check(record) {
        return None;
    }
    let id = FileId::from_words([0, 1, 2, 3, 4].map(word));
    let digest = Digest(record[48..80].try_into().ok()?);
    Some(Known {
        id,
        boot: word(5),
        digest,
    })
}

pub(crate) fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as i64)
}
