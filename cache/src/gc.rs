//! Taking out of the store what nothing needs any more.
//!
//! Runs are what keeps results: the runs of the last days (`older_than`), fewer when the store must
//! get smaller (`max_size`), and what is pinned, locked (`keep`) or in use by living runs. Results
//! that none of them used go, with their claims, checkpoints and beats; then the blobs that nothing
//! refers to. What was written within the grace stays in any case.
//!
//! A local store is quiet meanwhile: who puts or asks waits for the collection, and the collection
//! waits for those who are between put and publish (see [`crate::keep`]). On a remote store, where
//! there are no locks, age alone protects what runs are about to use, so the grace is a day at
//! least; a runner that loses what it had only planned to use computes it again.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use crate::blobs::path_of;
use crate::error::{Error, Result};
use crate::lock::Liveness;
use crate::protocol::{number, result_path};
use crate::record::Envelope;
use crate::stat::Count;
use crate::store::Store;
use crate::{Digest, Key};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Nobody is between put and publish for longer than this while a collection waits.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a collection keeps.
#[derive(Clone, Debug)]
pub struct Gc {
    /// Runs that ended longer ago are forgotten, and with them the results that only they used.
    pub older_than: Duration,
    /// Forget further runs, the oldest first, until the blobs in use are at most this many bytes.
    pub max_size: Option<u64>,
    /// Artifacts that stay: the sources that lock files name.
    pub keep: Vec<Digest>,
    /// What was written within this time stays. At least a day on a remote store.
    pub grace: Duration,
    /// Remove nothing.
    pub dry_run: bool,
}

impl Default for Gc {
    fn default() -> Gc {
        Gc {
            older_than: 30 * DAY,
            max_size: None,
            keep: Vec::new(),
            grace: Duration::from_secs(3600),
            dry_run: false,
        }
    }
}

/// What a collection removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub runs: u64,
    /// Keys with all their attempts.
    pub results: u64,
    pub checkpoints: u64,
    pub blobs: Count,
    /// Leftovers of processes that are gone, also those that listings of an object store hide.
    pub temporary: Count,
    /// What stays.
    pub kept: Count,
}

/// What the records of a store say, and what of it stays.
#[derive(Default)]
struct Marked {
    /// When each key was last used, and the artifacts it holds.
    keys: HashMap<Key, Held>,
    /// Artifacts that stay whatever becomes of keys.
    artifacts: HashSet<Digest>,
    /// Runs that pins stand for.
    pinned: HashSet<String>,
    /// Runs that stay.
    runs: Vec<(String, SystemTime, Vec<Key>)>,
    forgotten: Vec<String>,
}

struct Held {
    used: SystemTime,
    /// Living runs, pins and claims hold it whatever its age.
    needed: bool,
    artifacts: Vec<Digest>,
}

/// Called with key, attempt, when it was written, and the record's bytes.
type EachRecord<'a> = dyn FnMut(Key, u32, SystemTime, Option<&[u8]>) -> Result<()> + 'a;

impl Store {
    /// Removes what nothing needs; see [`Gc`]. Fails with class infra when runners do not let it.
    pub fn gc(&self, options: &Gc) -> Result<Collected> {
        let _alone = match &self.local {
            None => None,
            Some(local) if !local.exists() => return Ok(Collected::default()),
            Some(_) => Some(self.alone(PATIENCE)?.ok_or_else(|| Error::Remote {
                action: "collect",
                path: "blobs".into(),
                store: self.url().to_owned(),
                message: format!(
                    "a run has been storing outputs for {} s; try again later",
                    PATIENCE.as_secs()
                ),
            })?),
        };
        let now = self.backend.now()?;
        let grace = match &self.local {
            Some(_) => options.grace,
            None => options.grace.max(DAY),
        };
        let mut marked = self.mark(options, now, grace)?;
        if let Some(limit) = options.max_size {
            self.shrink(&mut marked, limit)?;
        }
        self.sweep(&marked, options, now, grace)
    }

    fn mark(&self, options: &Gc, now: SystemTime, grace: Duration) -> Result<Marked> {
        let mut marked = Marked::default();
        marked.artifacts.extend(&options.keep);
        marked
            .artifacts
            .extend(self.pins()?.into_iter().map(|(_, a)| a));
        let (pinned, all) = self.moved()?;
        marked.artifacts.extend(all);
        for moved in pinned {
            marked.artifacts.extend(moved.keep);
            marked.pinned.insert(moved.run);
        }
        let in_use: HashSet<Digest> = self.in_use()?.into_iter().collect();
        marked.artifacts.extend(&in_use);
        let before = |age| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let (since, young) = (before(options.older_than), before(grace));
        self.mark_runs(&mut marked, since.min(young))?;
        let mut used: HashMap<Key, SystemTime> = HashMap::new();
        for (_, ended, keys) in &marked.runs {
            for key in keys {
                let last = used.entry(*key).or_insert(*ended);
                *last = (*last).max(*ended);
            }
        }
        let mut beats: HashSet<String> = HashSet::new();
        self.backend.list("beats", &mut |object| {
            if object.modified >= young {
                beats.insert(object.path.to_owned());
            }
            Ok(())
        })?;
        self.each_record(&mut |key, n, modified, bytes| {
            let artifacts: Vec<Digest> = match bytes.map(Envelope::decode) {
                Some(Ok(Envelope::Result { record, .. })) => record.artifacts().copied().collect(),
                Some(Ok(Envelope::Checkpoint(checkpoint))) => vec![checkpoint.manifest],
                _ => Vec::new(),
            };
            // an attempt without an end is somebody's, until it is taken over
            let open = bytes.is_none()
                && (modified >= young
                    || beats.contains(&crate::lock::beat_path(&key, n))
                    || self.claim_is_held(&key, n)?);
            let held = marked.keys.entry(key).or_insert(Held {
                used: SystemTime::UNIX_EPOCH,
                needed: in_use.contains(&key),
                artifacts: Vec::new(),
            });
            held.needed |= open || modified >= young;
            held.needed |= artifacts.iter().any(|a| marked.artifacts.contains(a));
            held.used = held.used.max(used.get(&key).copied().unwrap_or(held.used));
            // what no run that stays has used goes by its own age
            if bytes.is_some() && modified >= since {
                held.used = held.used.max(modified);
            }
            held.artifacts.extend(artifacts);
            Ok(())
        })?;
        Ok(marked)
    }

    /// Calls `each(key, attempt, modified, bytes)` for results and checkpoints, and without bytes
    /// for claims that have no end.
    fn each_record(&self, each: &mut EachRecord) -> Result<()> {
        for kind in ["results", "checkpoints", "claims"] {
            self.backend.list(kind, &mut |object| {
                let mut parts = object.path.split('/').skip(1);
                let key = parts.next().and_then(|k| k.parse::<Key>().ok());
                let Some((key, n)) = key.zip(parts.next().and_then(number::<u32>)) else {
                    return Ok(());
                };
                if kind == "claims" {
                    if self.backend.size(&result_path(&key, n))?.is_none() {
                        each(key, n, object.modified, None)?;
                    }
                } else if let Some(bytes) = self.backend.get(object.path)? {
                    each(key, n, object.modified, Some(&bytes))?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Whether the owner of an attempt lives, as far as its lock tells.
    fn claim_is_held(&self, key: &Key, n: u32) -> Result<bool> {
        let owner = self.claim_record(key, n)?;
        Ok(self.watch(key, n, &owner).poll()? == Liveness::Alive && self.local.is_some())
    }

    fn mark_runs(&self, marked: &mut Marked, since: SystemTime) -> Result<()> {
        let mut written: HashMap<String, SystemTime> = HashMap::new();
        self.backend.list("runs", &mut |object| {
            if let Some(id) = object.path.split('/').nth(1) {
                let last = written.entry(id.to_owned()).or_insert(object.modified);
                *last = (*last).max(object.modified);
            }
            Ok(())
        })?;
        for (id, ended) in written {
            if ended >= since || marked.pinned.contains(&id) {
                let keys = self.used_by(&id)?.into_iter().map(|used| used.key);
                let keys = keys.collect();
                marked.runs.push((id, ended, keys));
            } else {
                marked.forgotten.push(id);
            }
        }
        marked.runs.sort_by_key(|(_, ended, _)| *ended);
        Ok(())
    }

    /// Forgets the oldest runs until what stays is at most `limit` bytes.
    fn shrink(&self, marked: &mut Marked, limit: u64) -> Result<()> {
        let mut references: HashMap<Digest, (u32, u64)> = HashMap::new();
        let mut total = 0u64;
        let kept = marked.keys.values().filter(|held| held.stays());
        let all = kept
            .flat_map(|held| &held.artifacts)
            .chain(&marked.artifacts);
        for artifact in all {
            for (blob, size) in self.blobs_of(artifact)? {
                let (count, _) = references.entry(blob).or_insert((0, size));
                total += if *count == 0 { size } else { 0 };
                *count += 1;
            }
        }
        let mut by_age: Vec<(SystemTime, Key)> = marked
            .keys
            .iter()
            .filter(|(_, held)| held.stays() && !held.needed)
            .map(|(key, held)| (held.used, *key))
            .collect();
        by_age.sort();
        for (_, key) in by_age {
            if total <= limit {
                break;
            }
            let Some(held) = marked.keys.get_mut(&key) else {
                continue;
            };
            held.used = SystemTime::UNIX_EPOCH;
            for artifact in std::mem::take(&mut held.artifacts) {
                for (blob, size) in self.blobs_of(&artifact)? {
                    if let Some((count, _)) = references.get_mut(&blob) {
                        *count -= 1;
                        total -= if *count == 0 { size } else { 0 };
                    }
                }
            }
            // a run that stays has all its results
            let (gone, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut marked.runs)
                .into_iter()
                .partition(|(id, _, keys)| keys.contains(&key) && !marked.pinned.contains(id));
            marked.runs = kept;
            marked.forgotten.extend(gone.into_iter().map(|(id, ..)| id));
        }
        Ok(())
    }

    /// An artifact's manifest and files with their sizes; nothing when they are lost. A store out
    /// of reach is an error: what cannot be asked may be in use.
    pub(crate) fn blobs_of(&self, artifact: &Digest) -> Result<Vec<(Digest, u64)>> {
        let manifest = match self.manifest(artifact) {
            Ok(manifest) => manifest,
            Err(Error::Missing { .. } | Error::Corrupt { .. }) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let own = (*artifact, manifest.canonical().len() as u64);
        let files = manifest.files.iter().map(|file| (file.blob, file.size));
        Ok(std::iter::once(own).chain(files).collect())
    }

    fn sweep(
        &self,
        marked: &Marked,
        options: &Gc,
        now: SystemTime,
        grace: Duration,
    ) -> Result<Collected> {
        let mut done = Collected::default();
        let delete = |path: &str| match options.dry_run {
            true => Ok(()),
            false => self.backend.delete(path).map(drop),
        };
        for id in &marked.forgotten {
            done.runs += 1;
            for object in self.paths(&format!("runs/{id}"))? {
                delete(&object)?;
            }
        }
        let mut referred: HashSet<Digest> = HashSet::new();
        for artifact in &marked.artifacts {
            referred.extend(self.blobs_of(artifact)?.iter().map(|(blob, _)| *blob));
        }
        for (key, held) in &marked.keys {
            if held.stays() {
                for artifact in &held.artifacts {
                    referred.insert(*artifact);
                    referred.extend(self.blobs_of(artifact)?.iter().map(|(blob, _)| *blob));
                }
                continue;
            }
            done.results += u64::from(!self.attempts(&format!("results/{key}"))?.is_empty());
            // from below, so that what is current stays current until it goes
            for kind in ["results", "claims", "checkpoints", "beats"] {
                for path in self.paths(&format!("{kind}/{key}"))? {
                    done.checkpoints += u64::from(kind == "checkpoints");
                    delete(&path)?;
                }
            }
        }
        let young = now.checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut unused = Vec::new();
        self.backend.list("blobs", &mut |object| {
            let name = object.path.rsplit('/').next().unwrap_or_default();
            let blob = name.parse::<Digest>().ok();
            let count = match blob.filter(|blob| path_of(blob) == object.path) {
                Some(blob) if referred.contains(&blob) || object.modified >= young => {
                    &mut done.kept
                }
                Some(_) => {
                    unused.push(object.path.to_owned());
                    &mut done.blobs
                }
                None => return Ok(()),
            };
            count.objects += 1;
            count.bytes += object.size;
            Ok(())
        })?;
        for path in unused {
            delete(&path)?;
        }
        self.sweep_temporary(options.dry_run, now, &mut done)?;
        Ok(done)
    }

    /// Removes what killed processes left: temporary files of ours and of object_store's (`name#1`,
    /// which its listings hide), beats of attempts that have ended, locks that nobody holds.
    fn sweep_temporary(&self, dry_run: bool, now: SystemTime, done: &mut Collected) -> Result<()> {
        let old = now.checked_sub(DAY).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut found: Vec<(String, u64)> = Vec::new();
        for kind in [
            "local/tmp",
            "local/partial",
            "local/memory",
            "local/locks",
            "beats",
        ] {
            let limit = match kind {
                "local/memory" => now.checked_sub(30 * DAY).unwrap_or(SystemTime::UNIX_EPOCH),
                _ => old,
            };
            self.backend.list(kind, &mut |object| {
                if object.modified < limit {
                    found.push((object.path.to_owned(), object.size));
                }
                Ok(())
            })?;
        }
        if self.local.is_some() {
            let folders = [
                "blobs",
                "claims",
                "results",
                "checkpoints",
                "beats",
                "pins",
                "runs",
            ];
            for folder in folders {
                self.backend.list(folder, &mut |object| {
                    let number = object.path.rsplit_once('#').map(|(_, n)| n);
                    let hidden = number.is_some_and(|n| n.bytes().all(|c| c.is_ascii_digit()));
                    if hidden && object.modified < old {
                        found.push((object.path.to_owned(), object.size));
                    }
                    Ok(())
                })?;
            }
        }
        for (path, size) in found {
            if self.is_held(&path)? {
                continue;
            }
            done.temporary.objects += 1;
            done.temporary.bytes += size;
            if !dry_run {
                self.backend.delete(&path)?;
            }
        }
        Ok(())
    }

    /// Whether a process holds the lock, or the attempt that beats has not ended.
    fn is_held(&self, path: &str) -> Result<bool> {
        if let Some(place) = path.strip_prefix("beats/") {
            return Ok(self.backend.size(&format!("results/{place}"))?.is_none());
        }
        let Some(at) = self
            .backend
            .file(path)
            .filter(|_| path.starts_with("local/"))
        else {
            return Ok(false);
        };
        Ok(std::fs::File::open(at).is_ok_and(|file| file.try_lock().is_err()))
    }

    fn paths(&self, prefix: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        self.backend.list(prefix, &mut |object| {
            found.push(object.path.to_owned());
            Ok(())
        })?;
        found.sort();
        Ok(found)
    }
}

impl Held {
    fn stays(&self) -> bool {
        self.needed || self.used > SystemTime::UNIX_EPOCH
    }
}
