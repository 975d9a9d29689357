//! Making a store whole again: what is damaged is fetched from the remote, else what cannot be
//! served any more is taken out of the way, so that the next run computes it.

use crate::blobs::path_of;
use crate::error::Result;
use crate::protocol::{claim_path, number, result_path};
use crate::record::{ClaimRecord, Envelope, Reason};
use crate::runs::SEALED;
use crate::store::Store;
use crate::verify::{Problem, ProblemKind, Report};
use crate::{Digest, Key, nonce};

/// What was done about a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Healed {
    /// It is as it was: the remote had it.
    Fetched,
    /// What depended on it counts no more, and is computed when it is needed.
    Dropped,
    /// It was written again from what is there.
    Rewritten,
    /// Nothing: a person has to look.
    Left,
}

/// What [`Store::repair_all`] did.
#[derive(Clone, Debug, Default)]
pub struct Repaired {
    /// Each problem and what became of it.
    pub healed: Vec<(Problem, Healed)>,
}

impl Store {
    /// Repairs what `report` found. Verify again afterwards: a record that came back may show more.
    pub fn repair_all(&self, report: Report) -> Result<Repaired> {
        let mut done = Repaired::default();
        for problem in report.problems {
            let healed = self.heal(&problem)?;
            done.healed.push((problem, healed));
        }
        for (path, why) in report.healed {
            if let Some((key, n)) = result_place(&path) {
                self.replace_by_seal(&key, n, &why)?;
            }
        }
        Ok(done)
    }

    fn heal(&self, problem: &Problem) -> Result<Healed> {
        let path = problem.path.as_str();
        Ok(match problem.kind {
            ProblemKind::MissingBlob | ProblemKind::CorruptBlob | ProblemKind::CorruptManifest => {
                self.heal_blob(problem)?
            }
            ProblemKind::CorruptResult | ProblemKind::MissingResult => {
                let Some((key, n)) = result_place(path) else {
                    return Ok(Healed::Left);
                };
                self.replace_by_seal(&key, n, &problem.why)?;
                match self.pull_result(&key)? {
                    Some(_) => Healed::Fetched,
                    None => Healed::Dropped,
                }
            }
            ProblemKind::CorruptCheckpoint | ProblemKind::CorruptPin => {
                self.backend.delete(path)?;
                Healed::Dropped
            }
            ProblemKind::MissingClaim | ProblemKind::CorruptClaim => {
                let Some((key, attempt)) = place(path) else {
                    return Ok(Healed::Left);
                };
                let record = ClaimRecord {
                    key,
                    attempt,
                    reason: Reason::Repair,
                    owner: "unknown (its claim was damaged)".into(),
                    machine: String::new(),
                    nonce: String::new(),
                };
                let bytes = Envelope::Claim(record).encode();
                self.backend.put(&claim_path(&key, attempt), &bytes)?;
                Healed::Rewritten
            }
            ProblemKind::CorruptRun => self.heal_run(path)?,
            ProblemKind::CorruptHashCache => {
                self.backend.delete(path)?;
                Healed::Rewritten
            }
            ProblemKind::MissingFormat => {
                self.write_format()?;
                Healed::Rewritten
            }
            ProblemKind::Foreign => Healed::Left,
        })
    }

    /// Fetches a blob again, or takes out of the way what cannot do without it.
    fn heal_blob(&self, problem: &Problem) -> Result<Healed> {
        let name = problem.path.rsplit('/').next().unwrap_or_default();
        let Ok(digest) = name.parse::<Digest>() else {
            return Ok(Healed::Left);
        };
        if self.pull_blob(&digest)? {
            return Ok(Healed::Fetched);
        }
        self.backend.delete(&path_of(&digest))?;
        for holder in &problem.breaks {
            match result_place(holder) {
                Some((key, n)) => {
                    let why = format!("blob {digest} was damaged: {}", problem.why);
                    self.replace_by_seal(&key, n, &why)?;
                }
                None => {
                    self.backend.delete(holder)?;
                }
            }
        }
        Ok(Healed::Dropped)
    }

    /// A run's files cannot be made again: the list says from now on which are damaged.
    fn heal_run(&self, path: &str) -> Result<Healed> {
        let Some((id, name)) = path.strip_prefix("runs/").and_then(|p| p.split_once('/')) else {
            return Ok(Healed::Left);
        };
        let files = match self.sealed_files(id)? {
            Some(Ok(mut files)) => {
                for file in files.iter_mut().filter(|file| file.name == name) {
                    file.damaged = true;
                }
                files
            }
            _ => {
                let unproved = self.unproved(id)?;
                let mut files = Vec::new();
                for name in self.list_run_files(id)? {
                    let bytes = self.get_run(id, &name)?.unwrap_or_default();
                    files.push(crate::record::RunFile {
                        digest: Digest::of(&bytes),
                        damaged: unproved.contains(&name),
                        name,
                    });
                }
                files
            }
        };
        debug_assert!(name == SEALED || files.iter().any(|file| file.damaged));
        self.put_sealed(id, files)?;
        Ok(Healed::Rewritten)
    }

    /// The attempt's result counts no more.
    fn replace_by_seal(&self, key: &Key, attempt: u32, why: &str) -> Result<()> {
        let seal = Envelope::Seal {
            key: *key,
            attempt,
            nonce: nonce(),
            why: format!("dropped by a repair: {why}"),
        };
        self.backend.put(&result_path(key, attempt), &seal.encode())
    }
}

/// Key and attempt of `results/<key>/<n>`.
pub(crate) fn result_place(path: &str) -> Option<(Key, u32)> {
    path.starts_with("results/").then(|| place(path)).flatten()
}

fn place(path: &str) -> Option<(Key, u32)> {
    let mut parts = path.split('/').skip(1);
    let key = parts.next()?.parse().ok()?;
    Some((key, number(parts.next()?)?))
}
