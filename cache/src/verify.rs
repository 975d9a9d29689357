//! Looking at everything in a store, with memory for what is wrong and for one record at a time.
//!
//! | object | found when |
//! |---|---|
//! | blob | it is not what its name says, or something that counts refers to it and it is gone |
//! | result, claim, checkpoint, pin | its self-digest or its place does not fit; a result or claim that another record proves is gone |
//! | a finished run's files | their digests are not those of its list |
//! | `local/hashes`, `local/memory` | a record's check does not fit: it is not believed anyway |
//!
//! A checkpoint or pin that is gone, and a whole run that is gone, are what pruning, `unpin` and
//! `gc` leave: nothing tells them apart.

use std::collections::BTreeMap;

use crate::blobs::{Found, path_of};
use crate::checkpoints::read_checkpoint;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::pins::{read_move, read_pin};
use crate::protocol::{claim_path, number, read_ending, result_path};
use crate::record::{Ending, Envelope, Reason};
use crate::runs::SEALED;
use crate::store::Store;
use crate::{Digest, Key};

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// Something that counts refers to it, and it is not there.
    MissingBlob,
    CorruptBlob,
    CorruptManifest,
    /// A run had outputs of it, and it is not there.
    MissingResult,
    CorruptResult,
    CorruptCheckpoint,
    /// There is a result under it.
    MissingClaim,
    CorruptClaim,
    CorruptPin,
    CorruptRun,
    /// Nothing is lost: what it says is not believed.
    CorruptHashCache,
    MissingFormat,
    /// An object that this program does not write there.
    Foreign,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In the store.
    pub path: String,
    pub kind: ProblemKind,
    pub why: String,
    /// The records that cannot be served because of it.
    pub breaks: Vec<String>,
}

/// What [`Store::verify`] found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Objects looked at.
    pub objects: u64,
    /// Bytes of the blobs looked at.
    pub bytes: u64,
    /// Sorted by path.
    pub problems: Vec<Problem>,
    /// Results that do not verify and have a sound successor: nothing depends on them.
    pub healed: Vec<(String, String)>,
    /// Claims with neither result nor seal: attempts that run, or whose owner died.
    pub unfinished: Vec<(Key, u32)>,
}

impl Report {
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

#[derive(Default)]
struct Findings {
    report: Report,
    problems: BTreeMap<String, (ProblemKind, String, Vec<String>)>,
}

impl Findings {
    fn add(&mut self, path: &str, kind: ProblemKind, why: impl Into<String>) {
        let new = || (kind, why.into(), Vec::new());
        self.problems.entry(path.to_owned()).or_insert_with(new);
    }

    /// A blob that record `holder` cannot do without is not right.
    fn broken(&mut self, path: &str, kind: ProblemKind, why: String, holder: &str) {
        self.add(path, kind, why);
        if let Some((_, _, breaks)) = self.problems.get_mut(path) {
            breaks.push(holder.to_owned());
        }
    }
}

impl Store {
    /// Looks at every object. Local blobs are hashed unless their stat is that of their last hash;
    /// remote ones are looked at for presence; `paranoid` hashes all. Records must verify, and what
    /// the current results, the checkpoints and the pins refer to must be there. A result or
    /// checkpoint that is not sound but has a sound successor is healed, and no problem.
    pub fn verify(&self, paranoid: bool) -> Result<Report> {
        let mut found = Findings::default();
        self.verify_blobs(paranoid, &mut found)?;
        self.verify_results(&mut found)?;
        self.verify_checkpoints(&mut found)?;
        self.verify_claims(&mut found)?;
        self.verify_pins(&mut found)?;
        self.verify_runs(&mut found)?;
        let written = found.report.objects > 0;
        self.verify_local(&mut found)?;
        if written && self.backend.get("format")?.is_none() {
            found.add("format", ProblemKind::MissingFormat, "it is not there");
        }
        let mut report = found.report;
        report.problems = found
            .problems
            .into_iter()
            .map(|(path, (kind, why, breaks))| Problem {
                path,
                kind,
                why,
                breaks,
            })
            .collect();
        Ok(report)
    }

    fn verify_blobs(&self, paranoid: bool, found: &mut Findings) -> Result<()> {
        self.backend.list("blobs", &mut |object| {
            let path = object.path;
            found.report.objects += 1;
            let name = path.rsplit('/').next().unwrap_or_default();
            let digest = match name.parse::<Digest>() {
                Ok(digest) if path_of(&digest) == path => digest,
                _ => {
                    found.add(path, ProblemKind::Foreign, "it is not named like a blob");
                    return Ok(());
                }
            };
            found.report.bytes += object.size;
            if self.local.is_none() && !paranoid {
                return Ok(());
            }
            match self.look(&digest, paranoid) {
                Ok(Found::Good(_)) | Ok(Found::Missing) => {} // removed meanwhile
                Ok(Found::Corrupt(why)) => found.add(path, ProblemKind::CorruptBlob, why),
                Err(Error::Io { source, .. }) => {
                    found.add(
                        path,
                        ProblemKind::CorruptBlob,
                        format!("it cannot be read: {source}"),
                    );
                }
                Err(e) => return Err(e),
            }
            Ok(())
        })
    }

    fn verify_results(&self, found: &mut Findings) -> Result<()> {
        for name in self.backend.children("results")? {
            let Ok(key) = name.parse::<Key>() else {
                found.add(
                    &format!("results/{name}"),
                    ProblemKind::Foreign,
                    "its folder is no key",
                );
                continue;
            };
            let mut names = self.backend.children(&format!("results/{key}"))?;
            // the highest first: what is below a sound result is healed
            names.sort_by_key(|name| std::cmp::Reverse(number::<u32>(name)));
            let mut current = false;
            for name in names {
                found.report.objects += 1;
                let path = format!("results/{key}/{name}");
                let Some(n) = number::<u32>(&name) else {
                    found.add(&path, ProblemKind::Foreign, "its name is no attempt");
                    continue;
                };
                let Some(bytes) = self.backend.get(&path)? else {
                    continue;
                };
                if self.backend.size(&claim_path(&key, n))?.is_none() {
                    let why = "there is a result, and it is not there";
                    found.add(&claim_path(&key, n), ProblemKind::MissingClaim, why);
                }
                match read_ending(&key, n, &bytes) {
                    Ok((Ending::Result(record), _)) if !current => {
                        current = true;
                        for artifact in record.outputs.values() {
                            self.verify_artifact(artifact, &path, found)?;
                        }
                    }
                    Ok(_) => {}
                    Err(why) if current => found.report.healed.push((path, why)),
                    Err(why) => found.add(&path, ProblemKind::CorruptResult, why),
                }
            }
        }
        Ok(())
    }

    fn verify_checkpoints(&self, found: &mut Findings) -> Result<()> {
        self.backend.list("checkpoints", &mut |object| {
            let path = object.path;
            found.report.objects += 1;
            let parts: Vec<&str> = path.split('/').collect();
            let place = match parts[..] {
                [_, key, n, step] => key.parse::<Key>().ok().zip(number(n)).zip(number(step)),
                _ => None,
            };
            let Some(((key, n), step)) = place else {
                found.add(
                    path,
                    ProblemKind::Foreign,
                    "it is not named like a checkpoint",
                );
                return Ok(());
            };
            let Some(bytes) = self.backend.get(path)? else {
                return Ok(());
            };
            match read_checkpoint(&key, n, step, &bytes) {
                Ok(checkpoint) => self.verify_artifact(&checkpoint.manifest, path, found),
                Err(why) => {
                    found.add(path, ProblemKind::CorruptCheckpoint, why);
                    Ok(())
                }
            }
        })
    }

    fn verify_claims(&self, found: &mut Findings) -> Result<()> {
        self.backend.list("claims", &mut |object| {
            let path = object.path;
            found.report.objects += 1;
            let parts: Vec<&str> = path.split('/').collect();
            let place = match parts[..] {
                [_, key, n] => key.parse::<Key>().ok().zip(number::<u32>(n)),
                _ => None,
            };
            let Some((key, n)) = place else {
                found.add(path, ProblemKind::Foreign, "it is not named like a claim");
                return Ok(());
            };
            let Some(bytes) = self.backend.get(path)? else {
                return Ok(());
            };
            match Envelope::decode(&bytes) {
                Ok(Envelope::Claim(c)) if c.key == key && c.attempt == n => {}
                Ok(_) => {
                    found.add(
                        path,
                        ProblemKind::CorruptClaim,
                        "it belongs to another place",
                    );
                }
                Err(why) => found.add(path, ProblemKind::CorruptClaim, why),
            }
            if self.backend.size(&result_path(&key, n))?.is_none() {
                found.report.unfinished.push((key, n));
            }
            Ok(())
        })
    }

    fn verify_pins(&self, found: &mut Findings) -> Result<()> {
        for name in self.backend.children("pins")? {
            found.report.objects += 1;
            let path = format!("pins/{name}");
            let Some(bytes) = self.backend.get(&path)? else {
                continue;
            };
            let read = match name.contains('@') {
                true => read_move(&name, &bytes).map(|moved| moved.artifact),
                false => read_pin(&name, &bytes),
            };
            match read {
                Ok(artifact) => self.verify_artifact(&artifact, &path, found)?,
                Err(why) => found.add(&path, ProblemKind::CorruptPin, why),
            }
        }
        Ok(())
    }

    /// The files of runs that have ended, and the results that they had.
    fn verify_runs(&self, found: &mut Findings) -> Result<()> {
        for id in self.list_runs()? {
            found.report.objects += 1;
            let sealed = format!("runs/{id}/{SEALED}");
            // a damaged record does not tell which results there were
            let mut believed = true;
            match self.sealed_files(&id)? {
                Some(Err(why)) => {
                    found.add(&sealed, ProblemKind::CorruptRun, why);
                    believed = self.verify_unlisted(&id, found)?;
                }
                Some(Ok(files)) => {
                    believed = !files.iter().any(|f| f.damaged && f.name == "record.json");
                    for file in files.iter().filter(|file| !file.damaged) {
                        found.report.objects += 1;
                        let path = format!("runs/{id}/{}", file.name);
                        let record = file.name == "record.json";
                        match self.backend.get(&path)? {
                            Some(bytes) if Digest::of(&bytes) == file.digest => {}
                            Some(_) => {
                                believed &= !record;
                                let why = "it is not what it was when the run ended";
                                found.add(&path, ProblemKind::CorruptRun, why);
                            }
                            None => found.add(&path, ProblemKind::CorruptRun, "it is not there"),
                        }
                    }
                }
                None if self.has_ended(&id)? => {
                    let why = "the run has ended, and the list of its files is not there";
                    found.add(&sealed, ProblemKind::CorruptRun, why);
                    believed = self.verify_unlisted(&id, found)?;
                }
                None => {}
            }
            let used = if believed {
                self.used_by(&id)?
            } else {
                Vec::new()
            };
            for used in used {
                let Some(attempt) = used.attempt else {
                    continue;
                };
                let path = result_path(&used.key, attempt);
                if self.backend.size(&path)?.is_none() {
                    let why = format!("run {id} had outputs of it");
                    found.add(&path, ProblemKind::MissingResult, why);
                }
            }
        }
        Ok(())
    }

    /// The files of a run whose list cannot be read; whether its record is proved all the same.
    fn verify_unlisted(&self, id: &str, found: &mut Findings) -> Result<bool> {
        let unproved = self.unproved(id)?;
        for name in &unproved {
            found.report.objects += 1;
            let why = "the list of the run's files is damaged, and does not prove it";
            found.add(&format!("runs/{id}/{name}"), ProblemKind::CorruptRun, why);
        }
        Ok(!unproved.iter().any(|name| name == "record.json"))
    }

    /// Whether a run's record says that it has ended, or nothing that can be read: it is whole while a run lasts.
    fn has_ended(&self, id: &str) -> Result<bool> {
        let Some(record) = self.get_run(id, "record.json")? else {
            return Ok(false);
        };
        let record = serde_json::from_slice::<serde_json::Value>(&record);
        Ok(record.map_or(true, |record| record["state"] == "finished"))
    }

    /// What a local store only remembers.
    fn verify_local(&self, found: &mut Findings) -> Result<()> {
        if self.local.is_none() {
            return Ok(());
        }
        if let Some(bytes) = self.backend.get("local/hashes")? {
            found.report.objects += 1;
            if let Err(why) = crate::hashcache::check_log(&bytes) {
                found.add("local/hashes", ProblemKind::CorruptHashCache, why);
            }
        }
        for name in self.backend.children("local/memory")? {
            found.report.objects += 1;
            let path = format!("local/memory/{name}");
            if let Some(bytes) = self.backend.get(&path)?
                && crate::memo::Memo::decode(&bytes).is_none()
            {
                let why = "its bytes do not hash to its digest";
                found.add(&path, ProblemKind::CorruptHashCache, why);
            }
        }
        Ok(())
    }

    /// Whether a record is a result whose blobs are fetched when they are read.
    fn is_copy(&self, holder: &str) -> Result<bool> {
        let Some((key, n)) = crate::repair::result_place(holder) else {
            return Ok(false);
        };
        Ok(self.local.is_some() && self.claim_record(&key, n)?.reason == Reason::Copied)
    }

    /// Notes what of an artifact is missing. Bytes were looked at before.
    fn verify_artifact(&self, artifact: &Digest, holder: &str, found: &mut Findings) -> Result<()> {
        use ProblemKind::{CorruptBlob, CorruptManifest, MissingBlob};
        let path = path_of(artifact);
        let Some(bytes) = self.backend.get(&path)? else {
            if self.is_copy(holder)? {
                return Ok(());
            }
            let why = "the manifest of an artifact is not there".into();
            found.broken(&path, MissingBlob, why, holder);
            return Ok(());
        };
        let manifest = if Digest::of(&bytes) == *artifact {
            Manifest::parse(&bytes)
        } else {
            Err("its bytes do not hash to its name".into())
        };
        let manifest = match manifest {
            Ok(manifest) => manifest,
            Err(why) => {
                found.broken(&path, CorruptManifest, why, holder);
                return Ok(());
            }
        };
        for file in &manifest.files {
            let path = path_of(&file.blob);
            match self.backend.size(&path)? {
                // its bytes were found wrong before
                Some(_) if found.problems.contains_key(&path) => {
                    found.broken(&path, CorruptBlob, String::new(), holder);
                }
                Some(size) if size == file.size => {}
                Some(size) => {
                    let why = format!("it has {size} bytes and a manifest says {}", file.size);
                    found.broken(&path, CorruptBlob, why, holder);
                }
                None if self.is_copy(holder)? => {}
                None => {
                    let why = format!("it is '{}' of artifact {artifact}", file.path);
                    found.broken(&path, MissingBlob, why, holder);
                }
            }
        }
        Ok(())
    }
}
