#![allow(unused_variables, clippy::todo, clippy::missing_errors_doc)]
use crate::*;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How a file enters the store. `Move` renames (the source is gone); `Copy` reflinks, else copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingest { Move, Copy }
/// How a file leaves the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A reflink where the file system can, else a copy; writable.
    Reflink,
    /// A hard link to the read-only blob: only when asked for, because root writes through it.
    Hard,
}
/// Whether an artifact can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Intact { Yes, Missing { digest: Digest }, Corrupt { digest: Digest, why: String } }
impl Intact { pub fn is_yes(&self) -> bool { matches!(self, Intact::Yes) } }

/// The right to compute attempt `attempt` of `key`. Holds a file lock until dropped (local store).
pub struct Claim { pub key: Key, pub attempt: u32, pub reason: Reason }
/// Beats in a thread and watches for a seal. Dropping it stops the thread.
pub struct Heart;
impl Heart {
    /// True once the attempt was sealed by another: stop, nothing can be published.
    pub fn lost(&self) -> bool { todo!() }
    /// The same, to be handed to other threads.
    pub fn flag(&self) -> Arc<AtomicBool> { todo!() }
}
pub enum Claimed {
    Claimed(Claim),
    /// Somebody else computes attempt `attempt`: wait (`Store::watch`).
    Busy { attempt: u32, owner: ClaimRecord },
    /// Reason::First / Takeover only: a result that verifies is there.
    Done { attempt: u32, record: ResultRecord },
}
pub enum Published { Published, Sealed { why: String }, Other { record: ResultRecord } }
pub enum Sealed { Sealed, /** a result was there first: adopt it */ Adopted { record: ResultRecord } }
/// Watches another owner's attempt with the observer's own monotonic clock.
pub struct Watch;
#[derive(Clone, Debug, PartialEq)]
pub enum Liveness { Alive, Dead { why: String }, /** result or seal is there: look at `current` */ Ended }
impl Watch { pub fn poll(&mut self) -> Result<Liveness> { todo!() } }

pub struct Store;
impl Store {
    /// `at`: a path, or file://, s3://bucket/prefix, gs://, az://, memory://. A local directory is made.
    pub fn open(at: &str) -> Result<Store> { todo!() }
    pub fn url(&self) -> &str { todo!() }
    /// The directory of a local store.
    pub fn local(&self) -> Option<&Path> { todo!() }
    /// Hash everything again instead of trusting the stat cache.
    pub fn set_paranoid(&mut self, paranoid: bool) { todo!() }
    /// Time to live of an owner without a beat (default 60 s; beats every ttl/6).
    pub fn set_ttl(&mut self, ttl: Duration) { todo!() }
    /// Writes what was learnt (hash cache). Call it at the end of a run.
    pub fn flush(&self) -> Result<()> { todo!() }

    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> { todo!() }
    pub fn put_file(&self, path: &Path, how: Ingest) -> Result<Digest> { todo!() }
    pub fn get_bytes(&self, digest: &Digest) -> Result<Vec<u8>> { todo!() }
    /// A verified local file with the blob's bytes (remote: fetched to a temporary file).
    pub fn open_blob(&self, digest: &Digest) -> Result<File> { todo!() }

    pub fn put_tree(&self, dir: &Path, how: Ingest) -> Result<(Digest, Manifest)> { todo!() }
    pub fn put_manifest(&self, manifest: &Manifest) -> Result<Digest> { todo!() }
    pub fn manifest(&self, artifact: &Digest) -> Result<Manifest> { todo!() }
    /// `to` must not exist or be empty; it appears complete or not at all.
    pub fn materialize(&self, artifact: &Digest, to: &Path, link: Link) -> Result<Manifest> { todo!() }
    pub fn artifact_intact(&self, artifact: &Digest) -> Result<Intact> { todo!() }

    /// The highest attempt whose result verifies (its own bytes; ask `artifact_intact` for its outputs).
    pub fn current(&self, key: &Key) -> Result<Option<(u32, ResultRecord)>> { todo!() }
    pub fn claim(&self, key: &Key, reason: Reason, owner: &str) -> Result<Claimed> { todo!() }
    /// Seals `attempt` (adopting a result found there), else claims the next.
    pub fn takeover(&self, key: &Key, attempt: u32, why: &str, owner: &str) -> Result<Claimed> { todo!() }
    pub fn watch(&self, key: &Key, attempt: u32, owner: &ClaimRecord) -> Watch { todo!() }
    pub fn heart(&self, claim: &Claim) -> Heart { todo!() }
    pub fn beat(&self, claim: &Claim) -> Result<()> { todo!() }
    pub fn seal(&self, key: &Key, attempt: u32, why: &str) -> Result<Sealed> { todo!() }
    pub fn is_sealed(&self, key: &Key, attempt: u32) -> Result<bool> { todo!() }
    pub fn publish(&self, claim: &Claim, record: &ResultRecord) -> Result<Published> { todo!() }
    /// Gives a claim up: seals it, so that nobody waits for it.
    pub fn abandon(&self, claim: Claim, why: &str) -> Result<()> { todo!() }
    /// All results that verify, newest attempt of each key: for `why` and cost history.
    pub fn results(&self) -> Result<Vec<(Key, u32, ResultRecord)>> { todo!() }

    pub fn commit_checkpoint(&self, key: &Key, attempt: u32, step: u64, dir: &Path, how: Ingest, meta: Value) -> Result<Checkpoint> { todo!() }
    /// When ranks have put their blobs already: only the record.
    pub fn commit_checkpoint_manifest(&self, key: &Key, attempt: u32, step: u64, manifest: Digest, meta: Value) -> Result<Checkpoint> { todo!() }
    pub fn newest_checkpoint(&self, key: &Key) -> Result<Option<Checkpoint>> { todo!() }
    /// Only of attempts >= `from` (a forced attempt does not resume from before).
    pub fn newest_checkpoint_from(&self, key: &Key, from: u32) -> Result<Option<Checkpoint>> { todo!() }
    pub fn prune_checkpoints(&self, key: &Key, keep: usize) -> Result<usize> { todo!() }

    /// Run records: runs/<id>/<name>; name such as "record.json", "events.jsonl", "logs/sft-1.txt".
    pub fn put_run(&self, id: &str, name: &str, bytes: &[u8]) -> Result<()> { todo!() }
    /// Local store: where a run's file lies, for appending directly (parents made). Remote: None.
    pub fn run_path(&self, id: &str, name: &str) -> Result<Option<PathBuf>> { todo!() }
    pub fn get_run(&self, id: &str, name: &str) -> Result<Option<Vec<u8>>> { todo!() }
    /// Ids, sorted (make them sortable by time).
    pub fn list_runs(&self) -> Result<Vec<String>> { todo!() }
    pub fn list_run_files(&self, id: &str) -> Result<Vec<String>> { todo!() }
    pub fn pin(&self, name: &str, target: &Digest) -> Result<()> { todo!() }
    pub fn unpin(&self, name: &str) -> Result<bool> { todo!() }
    pub fn pins(&self) -> Result<Vec<(String, Digest)>> { todo!() }

    pub fn verify(&self, paranoid: bool) -> Result<Report> { todo!() }
    pub fn stat(&self) -> Result<Stat> { todo!() }
    /// Digest of any file through the stat cache (sources outside the store too).
    pub fn hash_file(&self, path: &Path) -> Result<Digest> { todo!() }
    /// Manifest and digest of a directory (or one file) outside the store, through the stat cache; nothing is stored.
    pub fn hash_tree(&self, path: &Path) -> Result<(Digest, Manifest)> { todo!() }
}
/// What `verify` found.
#[derive(Clone, Debug, Default)]
pub struct Report { pub checked: u64, pub bytes: u64, pub problems: Vec<Problem> }
#[derive(Clone, Debug)]
pub struct Problem { /** path in the store */ pub path: String, pub kind: ProblemKind, pub why: String }
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProblemKind { MissingBlob, CorruptBlob, CorruptManifest, CorruptResult, CorruptCheckpoint, CorruptClaim, Foreign }
/// Counts and bytes per kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat { pub kinds: Vec<(&'static str, u64, u64)> }
