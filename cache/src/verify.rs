//! Looking at everything in a store, with memory for what is wrong and for one record at a time.

use std::collections::BTreeMap;

use crate::blobs::{Found, path_of};
use crate::checkpoints::read_checkpoint;
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::protocol::{number, read_ending, result_path};
use crate::record::{Ending, Envelope};
use crate::store::Store;
use crate::{Digest, Key};

/// What is wrong with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// Something that counts refers to it, and it is not there.
    MissingBlob,
    CorruptBlob,
    CorruptManifest,
    CorruptResult,
    CorruptCheckpoint,
    CorruptClaim,
    CorruptPin,
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
    /// Claims with neither result nor seal: attempts that run, or whose owner died.
    pub unfinished: Vec<(Key, u32)>,
}

impl Report {
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Counts and bytes of one kind of object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub objects: u64,
    pub bytes: u64,
}

/// What a store holds, by kind: the folders of its layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    pub kinds: Vec<(&'static str, Count)>,
}

impl Stat {
    /// One kind's count.
    pub fn kind(&self, name: &str) -> Count {
        self.kinds
            .iter()
            .find(|(kind, _)| *kind == name)
            .map(|(_, c)| *c)
            .unwrap_or_default()
    }

    /// All kinds together.
    pub fn total(&self) -> Count {
        self.kinds
            .iter()
            .fold(Count::default(), |sum, (_, c)| Count {
                objects: sum.objects + c.objects,
                bytes: sum.bytes + c.bytes,
            })
    }
}

#[derive(Default)]
struct Findings {
    report: Report,
    problems: BTreeMap<String, (ProblemKind, String)>,
}

impl Findings {
    fn add(&mut self, path: &str, kind: ProblemKind, why: impl Into<String>) {
        self.problems.insert(path.to_owned(), (kind, why.into()));
    }
}

impl Store {
    /// Objects and bytes of each kind. `local` is what is no object: the hash cache, locks, and
    /// what killed writers left behind (removed after a day).
    pub fn stat(&self) -> Result<Stat> {
        let mut stat = Stat::default();
        for kind in [
            "blobs",
            "claims",
            "beats",
            "results",
            "checkpoints",
            "runs",
            "pins",
            "local",
        ] {
            let mut count = Count::default();
            self.backend.list(kind, &mut |_, size| {
                count.objects += 1;
                count.bytes += size;
                Ok(())
            })?;
            stat.kinds.push((kind, count));
        }
        Ok(stat)
    }

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
        let mut report = found.report;
        report.problems = found
            .problems
            .into_iter()
            .map(|(path, (kind, why))| Problem { path, kind, why })
            .collect();
        Ok(report)
    }

    fn verify_blobs(&self, paranoid: bool, found: &mut Findings) -> Result<()> {
        self.backend.list("blobs", &mut |path, size| {
            found.report.objects += 1;
            let name = path.rsplit('/').next().unwrap_or_default();
            let digest = match name.parse::<Digest>() {
                Ok(digest) if path_of(&digest) == path => digest,
                _ => {
                    found.add(path, ProblemKind::Foreign, "it is not named like a blob");
                    return Ok(());
                }
            };
            found.report.bytes += size;
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
                if current {
                    continue;
                }
                let Some(bytes) = self.backend.get(&path)? else {
                    continue;
                };
                match read_ending(&key, n, &bytes) {
                    Ok((Ending::Result(record), _)) => {
                        current = true;
                        for artifact in record.outputs.values() {
                            self.verify_artifact(artifact, found)?;
                        }
                    }
                    Ok((Ending::Seal { .. }, _)) => {}
                    Err(why) => found.add(&path, ProblemKind::CorruptResult, why),
                }
            }
        }
        Ok(())
    }

    fn verify_checkpoints(&self, found: &mut Findings) -> Result<()> {
        self.backend.list("checkpoints", &mut |path, _| {
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
                Ok(checkpoint) => self.verify_artifact(&checkpoint.manifest, found),
                Err(why) => {
                    found.add(path, ProblemKind::CorruptCheckpoint, why);
                    Ok(())
                }
            }
        })
    }

    fn verify_claims(&self, found: &mut Findings) -> Result<()> {
        self.backend.list("claims", &mut |path, _| {
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
            match String::from_utf8_lossy(&bytes).trim_end().parse::<Digest>() {
                Ok(artifact) => self.verify_artifact(&artifact, found)?,
                Err(_) => found.add(&path, ProblemKind::CorruptPin, "it holds no digest"),
            }
        }
        Ok(())
    }

    /// Notes what of an artifact is missing. Bytes were looked at before.
    fn verify_artifact(&self, artifact: &Digest, found: &mut Findings) -> Result<()> {
        let path = path_of(artifact);
        let Some(bytes) = self.backend.get(&path)? else {
            found.add(
                &path,
                ProblemKind::MissingBlob,
                "the manifest of an artifact is not there",
            );
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
                found.add(&path, ProblemKind::CorruptManifest, why);
                return Ok(());
            }
        };
        for file in &manifest.files {
            let path = path_of(&file.blob);
            match self.backend.size(&path)? {
                Some(size) if size == file.size => {}
                Some(size) => {
                    let why = format!("it has {size} bytes and a manifest says {}", file.size);
                    found.add(&path, ProblemKind::CorruptBlob, why);
                }
                None => {
                    let why = format!("it is '{}' of artifact {artifact}", file.path);
                    found.add(&path, ProblemKind::MissingBlob, why);
                }
            }
        }
        Ok(())
    }
}
