//! Committed steps of attempts.
//!
//! | stored | where | why |
//! |---|---|---|
//! | record | `checkpoints/<key>/<n>/<step>` | written last, created once: a step without one was never committed |
//! | files | blobs and a manifest | what the trainer reads back |

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::blobs::{Ingest, path_of};
use crate::error::{Error, Result};
use crate::protocol::number;
use crate::record::{Checkpoint, Ending, Envelope};
use crate::store::Store;
use crate::{Digest, Key};

pub(crate) fn checkpoint_path(key: &Key, attempt: u32, step: u64) -> String {
    format!("checkpoints/{key}/{attempt}/{step}")
}

impl Store {
    /// Commits `dir` as the checkpoint after `step` steps: blobs, manifest, then the record.
    /// Refused with [`Error::Sealed`] when the attempt has ended. A step that is committed already
    /// and intact stays as it is.
    pub fn commit_checkpoint(
        &self,
        key: &Key,
        attempt: u32,
        step: u64,
        dir: &Path,
        how: Ingest,
        meta: Value,
    ) -> Result<Checkpoint> {
        self.refuse_ended(key, attempt)?;
        let _keep = self.keep_blobs()?;
        let (manifest, _) = self.put_tree(dir, how)?;
        self.commit_checkpoint_manifest(key, attempt, step, manifest, meta)
    }

    /// Commits a checkpoint whose blobs and manifest are in the store already.
    pub fn commit_checkpoint_manifest(
        &self,
        key: &Key,
        attempt: u32,
        step: u64,
        manifest: Digest,
        meta: Value,
    ) -> Result<Checkpoint> {
        self.refuse_ended(key, attempt)?;
        self.sync_small(&manifest)?;
        let checkpoint = Checkpoint {
            key: *key,
            attempt,
            step,
            manifest,
            meta,
        };
        let bytes = Envelope::Checkpoint(checkpoint.clone()).encode();
        let path = checkpoint_path(key, attempt, step);
        for _ in 0..2 {
            let found = self.create(&path, &bytes, true, |found| found == bytes)?;
            let Some(found) = found else {
                return Ok(checkpoint);
            };
            if let Ok(there) = read_checkpoint(key, attempt, step, &found)
                && self.artifact_intact(&there.manifest)?.is_yes()
            {
                return Ok(there);
            }
            // what is there can serve nobody
            self.backend.delete(&path)?;
        }
        Err(self.corrupt(&path, "it comes back each time it is replaced"))
    }

    fn refuse_ended(&self, key: &Key, attempt: u32) -> Result<()> {
        let why = match self.ending(key, attempt)? {
            None => return Ok(()),
            Some(Ending::Seal { why, .. }) => why,
            Some(Ending::Result(_)) => "it has a result".into(),
        };
        Err(Error::Sealed {
            key: *key,
            attempt,
            why,
        })
    }

    /// A checkpoint's record. Refuses one of another key, attempt or step.
    pub fn checkpoint(&self, key: &Key, attempt: u32, step: u64) -> Result<Option<Checkpoint>> {
        let path = checkpoint_path(key, attempt, step);
        let Some(bytes) = self.backend.get(&path)? else {
            return Ok(None);
        };
        let read = read_checkpoint(key, attempt, step, &bytes);
        read.map(Some).map_err(|why| self.corrupt(&path, why))
    }

    /// The furthest checkpoint of any attempt that verifies, blobs included.
    pub fn newest_checkpoint(&self, key: &Key) -> Result<Option<Checkpoint>> {
        self.newest_checkpoint_from(key, 0)
    }

    /// The same, of attempts from `from` on: a forced attempt does not resume from before it.
    pub fn newest_checkpoint_from(&self, key: &Key, from: u32) -> Result<Option<Checkpoint>> {
        self.furthest(key, |_, attempt| attempt >= from)
    }

    /// The same, of no step beyond `last`.
    pub fn newest_checkpoint_until(&self, key: &Key, last: u64) -> Result<Option<Checkpoint>> {
        self.furthest(key, |step, _| step <= last)
    }

    fn furthest(&self, key: &Key, counts: impl Fn(u64, u32) -> bool) -> Result<Option<Checkpoint>> {
        for (step, attempt) in self.checkpoint_steps(key)?.into_iter().rev() {
            if !counts(step, attempt) {
                continue;
            }
            if let Some(found) = self.sound_checkpoint(key, attempt, step)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn sound_checkpoint(&self, key: &Key, attempt: u32, step: u64) -> Result<Option<Checkpoint>> {
        match self.checkpoint(key, attempt, step) {
            Ok(Some(found)) if self.artifact_intact(&found.manifest)?.is_yes() => Ok(Some(found)),
            Ok(_) | Err(Error::Corrupt { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// (step, attempt) of all records, ascending.
    pub(crate) fn checkpoint_steps(&self, key: &Key) -> Result<Vec<(u64, u32)>> {
        let mut found = Vec::new();
        for attempt in self.attempts(&format!("checkpoints/{key}"))? {
            for name in self
                .backend
                .children(&format!("checkpoints/{key}/{attempt}"))?
            {
                found.extend(number::<u64>(&name).map(|step| (step, attempt)));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Removes all checkpoints of `key` but the `keep` furthest that verify and those of the steps `also`, and, from
    /// a local store, the blobs that nothing else refers to. The number of records removed.
    pub fn prune_checkpoints(&self, key: &Key, keep: usize, also: &[u64]) -> Result<usize> {
        let mut kept = 0;
        let mut removed = 0;
        let mut artifacts = Vec::new();
        for (step, attempt) in self.checkpoint_steps(key)?.into_iter().rev() {
            if kept < keep && self.sound_checkpoint(key, attempt, step)?.is_some() {
                kept += 1;
                continue;
            }
            if also.contains(&step) {
                continue;
            }
            if let Ok(Some(old)) = self.checkpoint(key, attempt, step) {
                artifacts.push(old.manifest);
            }
            removed += usize::from(self.backend.delete(&checkpoint_path(key, attempt, step))?);
        }
        if self.local.is_some() && !artifacts.is_empty() {
            self.reclaim(&artifacts)?;
        }
        Ok(removed)
    }

    /// Removes the blobs of `artifacts` that no record refers to; later, when anybody is putting.
    fn reclaim(&self, artifacts: &[Digest]) -> Result<()> {
        let Some(_alone) = self.alone(Duration::ZERO)? else {
            return Ok(());
        };
        let mut unused: HashSet<Digest> = artifacts.iter().copied().collect();
        for artifact in artifacts {
            unused.extend(self.blobs_of(artifact)?.into_iter().map(|(blob, _)| blob));
        }
        let mut referred = HashSet::new();
        self.referred_artifacts(&mut |artifact| {
            referred.insert(artifact);
        })?;
        for artifact in referred {
            unused.remove(&artifact);
            for (blob, _) in self.blobs_of(&artifact)? {
                unused.remove(&blob);
            }
        }
        for blob in unused {
            self.backend.delete(&path_of(&blob))?;
        }
        Ok(())
    }

    /// Calls `each` with every artifact that a result, checkpoint or pin refers to.
    pub(crate) fn referred_artifacts(&self, each: &mut dyn FnMut(Digest)) -> Result<()> {
        self.backend.list("results", &mut |object| {
            if let Some(bytes) = self.backend.get(object.path)?
                && let Ok(Envelope::Result { record, .. }) = Envelope::decode(&bytes)
            {
                record.artifacts().for_each(|artifact| each(*artifact));
            }
            Ok(())
        })?;
        self.backend.list("checkpoints", &mut |object| {
            if let Some(bytes) = self.backend.get(object.path)?
                && let Ok(Envelope::Checkpoint(found)) = Envelope::decode(&bytes)
            {
                each(found.manifest);
            }
            Ok(())
        })?;
        self.pins()?
            .into_iter()
            .for_each(|(_, artifact)| each(artifact));
        let (last, all) = self.moved()?;
        let kept = last.into_iter().flat_map(|moved| moved.keep);
        kept.chain(all).for_each(each);
        Ok(())
    }
}

/// Reads a checkpoint's record; says why it does not verify here.
pub(crate) fn read_checkpoint(
    key: &Key,
    attempt: u32,
    step: u64,
    bytes: &[u8],
) -> Result<Checkpoint, String> {
    match Envelope::decode(bytes)? {
        Envelope::Checkpoint(c) if c.key != *key => {
            Err(format!("it is a checkpoint of another key, {}", c.key))
        }
        Envelope::Checkpoint(c) if c.attempt == attempt && c.step == step => Ok(c),
        _ => Err("it belongs to another place".into()),
    }
}
