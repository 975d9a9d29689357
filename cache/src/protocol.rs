//! Who computes what, and whose result counts.
//!
//! | stored | where | why |
//! |---|---|---|
//! | claim | `claims/<key>/<n>` | created once: one owner per attempt |
//! | result or seal | `results/<key>/<n>` | created once: an attempt ends once, and a fenced-out owner finds the seal |
//! | beat | `beats/<key>/<n>` | overwritten by the owner; what an observer sees change |
//! | lock | `local/locks/<nonce>` | held by the owner while it lives; local stores only |
//!
//! Only put-if-absent is needed. To take over attempt n: seal `results/<key>/<n>`; if a result is
//! there already, adopt it; else claim n + 1. The current result is the highest n that verifies; a
//! corrupt one counts as a seal. A create whose answer was lost is settled by reading the nonce back.

use std::sync::Mutex;

use crate::blobs::path_of;
use crate::error::{Error, Result};
use crate::lock::Lock;
use crate::record::{ClaimRecord, Ending, Envelope, Reason, ResultRecord};
use crate::store::Store;
use crate::{Key, machine, nonce};

/// How often a create is tried whose answer does not arrive.
const TRIES: usize = 4;
/// Claims lost in a row to others that were then sealed, before giving up.
const ROUNDS: usize = 1000;

/// The right to compute one attempt. On a local store it holds a file lock until it is dropped, by
/// which others learn that this process lives. Start children with exec: a fork that keeps the
/// descriptor keeps the claim alive.
pub struct Claim {
    pub key: Key,
    pub attempt: u32,
    pub reason: Reason,
    pub(crate) nonce: String,
    lock: Mutex<Option<Lock>>,
}

/// What asking for a claim came to.
pub enum Claimed {
    Claimed(Claim),
    /// Somebody else computes attempt `attempt`: wait for it with [`Store::watch`].
    Busy {
        attempt: u32,
        owner: ClaimRecord,
    },
    /// A result that verifies is there already. Ask [`Store::artifact_intact`] about its outputs.
    Done {
        attempt: u32,
        record: Box<ResultRecord>,
    },
}

/// What publishing came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Published {
    /// The result is there, and is this one.
    Published,
    /// The attempt was sealed: another took over, and this result does not count.
    Sealed { why: String },
    /// Another result is there under this attempt.
    Other { record: Box<ResultRecord> },
}

/// What sealing came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Sealing {
    /// The attempt will never have a result.
    Sealed,
    /// A result was there first: adopt it.
    Adopted { record: Box<ResultRecord> },
}

pub(crate) fn claim_path(key: &Key, n: u32) -> String {
    format!("claims/{key}/{n}")
}

pub(crate) fn result_path(key: &Key, n: u32) -> String {
    format!("results/{key}/{n}")
}

/// The number that a name is, written as this store writes it.
pub(crate) fn number<N: std::str::FromStr + ToString>(name: &str) -> Option<N> {
    name.parse::<N>().ok().filter(|n| n.to_string() == name)
}

impl Store {
    /// The highest attempt whose result verifies: its own bytes, its key and its preimage. Its
    /// outputs are the business of [`Store::artifact_intact`]. What only the store behind has comes
    /// from there, its blobs when they are read.
    pub fn current(&self, key: &Key) -> Result<Option<(u32, ResultRecord)>> {
        match self.current_here(key)? {
            None => self.pull_result(key),
            found => Ok(found),
        }
    }

    /// The same from this store alone.
    pub(crate) fn current_here(&self, key: &Key) -> Result<Option<(u32, ResultRecord)>> {
        for n in self.attempts(&format!("results/{key}"))?.into_iter().rev() {
            if let Some(Ending::Result(record)) = self.ending(key, n)? {
                return Ok(Some((n, *record)));
            }
        }
        Ok(None)
    }

    /// What lies at `results/<key>/<n>`; `None` while the attempt runs.
    pub fn ending(&self, key: &Key, attempt: u32) -> Result<Option<Ending>> {
        Ok(self
            .ending_and_nonce(key, attempt)?
            .map(|(ending, _)| ending))
    }

    fn ending_and_nonce(&self, key: &Key, attempt: u32) -> Result<Option<(Ending, String)>> {
        let Some(bytes) = self.backend.get(&result_path(key, attempt))? else {
            return Ok(None);
        };
        let corrupt = |why: String| (Ending::Seal { why, corrupt: true }, String::new());
        Ok(Some(match read_ending(key, attempt, &bytes) {
            Ok(found) => found,
            Err(why) => corrupt(why),
        }))
    }

    /// Asks for the right to compute `key`. With a result there already only `Reason::Forced` gets
    /// one; for outputs that are not intact see [`Store::repair`].
    pub fn claim(&self, key: &Key, reason: Reason, owner: &str) -> Result<Claimed> {
        self.claim_beyond(
            key,
            reason,
            owner,
            if reason == Reason::Forced {
                u32::MAX
            } else {
                0
            },
        )
    }

    /// Asks for the right to compute `key` again because the outputs of attempt `broken` are
    /// missing or corrupt. `Done` when a newer result is there.
    pub fn repair(&self, key: &Key, broken: u32, owner: &str) -> Result<Claimed> {
        self.claim_beyond(key, Reason::Repair, owner, broken)
    }

    /// Claims the next attempt unless one is running, or a result above attempt `beyond` is there.
    fn claim_beyond(&self, key: &Key, reason: Reason, owner: &str, beyond: u32) -> Result<Claimed> {
        for _ in 0..ROUNDS {
            let claims = self.attempts(&format!("claims/{key}"))?;
            let results = self.attempts(&format!("results/{key}"))?;
            let top = claims.last().max(results.last()).copied().unwrap_or(0);
            if top > 0 && results.last() != Some(&top) {
                // listings are not a moment in time: ask for the result once more
                if self.backend.size(&result_path(key, top))?.is_some() {
                    continue;
                }
                let owner = self.claim_record(key, top)?;
                return Ok(Claimed::Busy {
                    attempt: top,
                    owner,
                });
            }
            for n in results.into_iter().rev().take_while(|n| *n > beyond) {
                if let Some(Ending::Result(record)) = self.ending(key, n)? {
                    return Ok(Claimed::Done { attempt: n, record });
                }
            }
            if let Some(claim) = self.try_claim(key, top + 1, reason, owner)? {
                return Ok(Claimed::Claimed(claim));
            }
        }
        Err(Error::Remote {
            action: "claim",
            path: format!("claims/{key}"),
            store: self.url().to_owned(),
            message: format!("{ROUNDS} attempts were claimed and given up by others meanwhile"),
        })
    }

    fn try_claim(&self, key: &Key, n: u32, reason: Reason, owner: &str) -> Result<Option<Claim>> {
        self.mark_format()?;
        let nonce = nonce();
        // held before the claim can be seen: a claim without a held lock is a dead one
        let lock = match &self.local {
            Some(_) => Lock::hold(&self.backend.file(&lock_path(&nonce)).expect("local"))?,
            None => None,
        };
        let record = ClaimRecord {
            key: *key,
            attempt: n,
            reason,
            owner: owner.to_owned(),
            machine: if lock.is_some() {
                machine().to_owned()
            } else {
                String::new()
            },
            nonce: nonce.clone(),
        };
        let bytes = Envelope::Claim(record).encode();
        let created = self.create(
            &claim_path(key, n),
            &bytes,
            false,
            |found| matches!(Envelope::decode(found), Ok(Envelope::Claim(c)) if c.nonce == nonce),
        );
        if matches!(created, Ok(None)) {
            let lock = Mutex::new(lock);
            return Ok(Some(Claim {
                key: *key,
                attempt: n,
                reason,
                nonce,
                lock,
            }));
        }
        if lock.is_some() {
            let _ = self.backend.delete(&lock_path(&nonce));
        }
        created.map(|_| None)
    }

    /// Creates an object, and settles by reading back when the answer is not certain. `None`: it
    /// is there and ours; else the bytes of who was first.
    pub(crate) fn create(
        &self,
        path: &str,
        bytes: &[u8],
        durable: bool,
        ours: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let failed = match self.backend.put_new(path, bytes, durable) {
                Ok(true) => return Ok(None),
                Ok(false) => None,
                Err(e) if e.is_full() => return Err(e),
                Err(e) => Some(e),
            };
            match self.backend.get(path) {
                Ok(Some(found)) if ours(&found) => return Ok(None),
                Ok(Some(found)) => return Ok(Some(found)),
                // neither created nor there: the create failed, or the object was removed
                Ok(None) if tries < TRIES => {}
                Ok(None) => {
                    return Err(failed.unwrap_or_else(|| Error::Remote {
                        action: "create",
                        path: path.to_owned(),
                        store: self.url().to_owned(),
                        message: "the store says that it exists and that it does not".into(),
                    }));
                }
                Err(_) if tries < TRIES => {}
                Err(e) => return Err(failed.unwrap_or(e)),
            }
        }
    }

    /// Who claimed an attempt. An unreadable claim is somebody's whose death only time can tell.
    pub fn claim_record(&self, key: &Key, attempt: u32) -> Result<ClaimRecord> {
        let bytes = self
            .backend
            .get(&claim_path(key, attempt))?
            .unwrap_or_default();
        Ok(match Envelope::decode(&bytes) {
            Ok(Envelope::Claim(c)) if c.key == *key && c.attempt == attempt => c,
            _ => ClaimRecord {
                key: *key,
                attempt,
                reason: Reason::First,
                owner: "unknown (its claim cannot be read)".into(),
                machine: String::new(),
                nonce: String::new(),
            },
        })
    }

    /// Ends another owner's attempt and claims the next. `Done` when it had published after all, or
    /// when an older attempt has a result; `Busy` when yet another was faster.
    pub fn takeover(&self, key: &Key, attempt: u32, why: &str, owner: &str) -> Result<Claimed> {
        let dead = self.claim_record(key, attempt)?;
        if let Sealing::Adopted { record } = self.seal(key, attempt, why)? {
            return Ok(Claimed::Done { attempt, record });
        }
        if let (Some(_), false) = (&self.local, dead.nonce.is_empty()) {
            // a dead owner cannot tidy up; a living one holds the descriptor, not the name
            let _ = self.backend.delete(&lock_path(&dead.nonce));
        }
        self.claim(key, Reason::Takeover, owner)
    }

    /// Makes sure that an attempt will never have a result, unless it has one already.
    pub fn seal(&self, key: &Key, attempt: u32, why: &str) -> Result<Sealing> {
        let nonce = nonce();
        let seal = Envelope::Seal {
            key: *key,
            attempt,
            nonce: nonce.clone(),
            why: why.to_owned(),
        };
        let found = self.create(
            &result_path(key, attempt),
            &seal.encode(),
            true,
            |found| matches!(read_ending(key, attempt, found), Ok((_, n)) if n == nonce),
        )?;
        Ok(match found.map(|bytes| read_ending(key, attempt, &bytes)) {
            Some(Ok((Ending::Result(record), _))) => Sealing::Adopted { record },
            _ => Sealing::Sealed,
        })
    }

    /// Whether an attempt is sealed: its owner must stop.
    pub fn is_sealed(&self, key: &Key, attempt: u32) -> Result<bool> {
        Ok(matches!(
            self.ending(key, attempt)?,
            Some(Ending::Seal { .. })
        ))
    }

    /// Publishes an attempt's result. Every blob of its outputs must be in the store. After an error
    /// of class infra it is not known whether the result is there: call again with the same claim.
    pub fn publish(&self, claim: &Claim, record: &ResultRecord) -> Result<Published> {
        self.note_pending(&claim.key)?;
        let published = self.publish_here(claim, record, false)?;
        if published == Published::Published {
            self.push_soon(&claim.key);
        }
        Ok(published)
    }

    /// Publishes here alone. `pulled`: the store behind has the blobs.
    pub(crate) fn publish_here(
        &self,
        claim: &Claim,
        record: &ResultRecord,
        pulled: bool,
    ) -> Result<Published> {
        let bad = |why: String| Error::BadRecord {
            key: claim.key,
            why,
        };
        let hash = crate::Digest::of(record.preimage.as_bytes());
        if hash != claim.key {
            return Err(bad(format!("its preimage hashes to {hash}")));
        }
        for (name, artifact) in &record.outputs {
            let manifest = self.manifest(artifact)?;
            if self.local.is_some() && !pulled {
                for file in &manifest.files {
                    if self.backend.size(&path_of(&file.blob))? != Some(file.size) {
                        return Err(bad(format!(
                            "blob {} of output '{name}' is not in the store",
                            file.blob
                        )));
                    }
                }
            }
        }
        let envelope = Envelope::Result {
            key: claim.key,
            attempt: claim.attempt,
            nonce: claim.nonce.clone(),
            record: Box::new(record.clone()),
        };
        // a second of work may be lost to a power cut, hours may not
        let durable = record.cost.seconds >= 1.0;
        if durable {
            for artifact in record.artifacts() {
                self.sync_small(artifact)?;
            }
        }
        let path = result_path(&claim.key, claim.attempt);
        let read = |bytes: &[u8]| read_ending(&claim.key, claim.attempt, bytes);
        let found = self.create(
            &path,
            &envelope.encode(),
            durable,
            |bytes| matches!(read(bytes), Ok((Ending::Result(_), nonce)) if nonce == claim.nonce),
        )?;
        self.release(claim);
        Ok(match found.map(|bytes| read(&bytes)) {
            None => Published::Published,
            Some(Ok((Ending::Result(record), _))) => Published::Other { record },
            Some(Ok((Ending::Seal { why, .. }, _))) => Published::Sealed { why },
            Some(Err(why)) => Published::Sealed {
                why: format!("the result there is corrupt: {why}"),
            },
        })
    }

    /// Gives a claim up: seals the attempt, so that nobody waits for it.
    pub fn abandon(&self, claim: Claim, why: &str) -> Result<()> {
        self.seal(&claim.key, claim.attempt, why)?;
        self.release(&claim);
        Ok(())
    }

    /// The attempt has ended: nobody will ask for its lock or its beats again.
    fn release(&self, claim: &Claim) {
        let held = claim
            .lock
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .take();
        if held.is_some() {
            let _ = self.backend.delete(&lock_path(&claim.nonce));
        }
    }

    /// The current result of every key, in the order of keys: for history and `why`. Results that
    /// do not verify are passed over; `verify` reports them.
    pub fn results(&self) -> Result<Vec<(Key, u32, ResultRecord)>> {
        let keys = self.keys()?;
        let width = if self.local.is_some() { 1 } else { 16 };
        let found = crate::tree::parallel(&keys, width, |key| {
            Ok(self.current_here(key)?.map(|(n, record)| (*key, n, record)))
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The keys that have results or seals here, sorted.
    pub fn keys(&self) -> Result<Vec<Key>> {
        let names = self.backend.children("results")?;
        let mut keys: Vec<Key> = names.iter().filter_map(|k| k.parse().ok()).collect();
        keys.sort();
        Ok(keys)
    }

    /// The attempts named directly below `prefix`, ascending.
    pub(crate) fn attempts(&self, prefix: &str) -> Result<Vec<u32>> {
        let mut found: Vec<u32> = self
            .backend
            .children(prefix)?
            .iter()
            .filter_map(|name| number(name))
            .collect();
        found.sort_unstable();
        Ok(found)
    }
}

pub(crate) fn lock_path(nonce: &str) -> String {
    format!("local/locks/{nonce}")
}

/// Reads what lies at `results/<key>/<n>`; says why it does not verify.
pub(crate) fn read_ending(key: &Key, n: u32, bytes: &[u8]) -> Result<(Ending, String), String> {
    match Envelope::decode(bytes)? {
        Envelope::Result {
            key: k,
            attempt,
            nonce,
            record,
        } if k == *key && attempt == n => {
            if crate::Digest::of(record.preimage.as_bytes()) != *key {
                return Err("its preimage does not hash to its key".into());
            }
            Ok((Ending::Result(record), nonce))
        }
        Envelope::Seal {
            key: k,
            attempt,
            nonce,
            why,
        } if k == *key && attempt == n => Ok((
            Ending::Seal {
                why,
                corrupt: false,
            },
            nonce,
        )),
        _ => Err("it belongs to another place".into()),
    }
}
