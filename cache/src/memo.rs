//! What a run was told before, so that the next one need not read it again.
//!
//! | in the file | bytes | why |
//! |---|---|---|
//! | magic and version | 16 | a file that starts otherwise is started over |
//! | blake3 of all that follows | 32 | a torn or damaged file is started over |
//! | results: key, attempt, stats of the folder and the file, cost, metrics, outputs | | what a run asks of a result |
//! | artifacts: digest, files' blobs and sizes | | what has to be there for it to be served |
//!
//! Nothing here is believed by itself: see [`crate::view`]. Losing the file costs time only.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Map;

use crate::hashcache::FileId;
use crate::record::{Cost, ResultRecord};
use crate::{Digest, Key};

const MAGIC: &[u8; 16] = b"recipe-memory-2\n";

/// What a run asks of a result: all of its record but preimage, numerics and provenance, which
/// [`crate::Store::ending`] reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Brief {
    pub attempt: u32,
    pub outputs: BTreeMap<String, Digest>,
    pub metrics: Map<String, serde_json::Value>,
    pub cost: Cost,
}

impl Brief {
    pub fn of(attempt: u32, record: &ResultRecord) -> Brief {
        Brief {
            attempt,
            outputs: record.outputs.clone(),
            metrics: record.metrics.clone(),
            cost: record.cost,
        }
    }
}

/// A result as it was met: while folder and file are the same, so is what it says. A remote one has
/// no stats, and is the same while its attempt is the highest.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Met {
    pub folder: FileId,
    pub file: FileId,
    pub brief: Arc<Brief>,
}

/// The blobs of an artifact with their sizes.
pub(crate) type Blobs = Arc<[(Digest, u64)]>;

#[derive(Default)]
pub(crate) struct Memo {
    pub results: HashMap<Key, Met>,
    pub artifacts: HashMap<Digest, Blobs>,
}

impl Memo {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0u8; MAGIC.len() + 32];
        let number = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_le_bytes());
        number(&mut out, self.results.len() as u64);
        for (key, met) in &self.results {
            let brief = &met.brief;
            out.extend_from_slice(&key.0);
            number(&mut out, u64::from(brief.attempt));
            for id in [&met.folder, &met.file] {
                for word in id.words() {
                    number(&mut out, word);
                }
            }
            let cost = &brief.cost;
            for part in [cost.seconds, cost.gpu_seconds, cost.cpu_seconds] {
                number(&mut out, part.to_bits());
            }
            for joules in [cost.cpu_joules, cost.gpu_joules] {
                number(&mut out, joules.unwrap_or(f64::NAN).to_bits());
            }
            let metrics = match brief.metrics.is_empty() {
                true => Vec::new(),
                false => serde_json::to_vec(&brief.metrics).expect("metrics are plain data"),
            };
            number(&mut out, metrics.len() as u64);
            out.extend_from_slice(&metrics);
            number(&mut out, brief.outputs.len() as u64);
            for (name, artifact) in &brief.outputs {
                number(&mut out, name.len() as u64);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(&artifact.0);
            }
        }
        number(&mut out, self.artifacts.len() as u64);
        for (artifact, blobs) in &self.artifacts {
            out.extend_from_slice(&artifact.0);
            number(&mut out, blobs.len() as u64);
            for (blob, size) in blobs.iter() {
                out.extend_from_slice(&blob.0);
                number(&mut out, *size);
            }
        }
        let (head, body) = out.split_at_mut(MAGIC.len() + 32);
        head[..MAGIC.len()].copy_from_slice(MAGIC);
        head[MAGIC.len()..].copy_from_slice(&Digest::of(body).0);
        out
    }

    /// Nothing where the bytes are not what was written.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Memo> {
        let body = bytes.strip_prefix(MAGIC)?;
        let (own, body) = body.split_at_checked(32)?;
        if Digest::of(body).0 != own {
            return None;
        }
        let mut rest = Rest(body);
        let count = rest.count(184)?;
        let mut results = HashMap::with_capacity(count);
        for _ in 0..count {
            let key = rest.digest()?;
            let attempt = rest.number()? as u32;
            let (folder, file) = (rest.stat()?, rest.stat()?);
            let cost = Cost {
                seconds: rest.real()?,
                gpu_seconds: rest.real()?,
                cpu_seconds: rest.real()?,
                cpu_joules: Some(rest.real()?).filter(|j| !j.is_nan()),
                gpu_joules: Some(rest.real()?).filter(|j| !j.is_nan()),
            };
            let metrics = match rest.sized()? {
                [] => Map::new(),
                text => serde_json::from_slice(text).ok()?,
            };
            let mut outputs = BTreeMap::new();
            for _ in 0..rest.number()? {
                let name = std::str::from_utf8(rest.sized()?).ok()?.to_owned();
                outputs.insert(name, rest.digest()?);
            }
            let brief = Arc::new(Brief {
                attempt,
                outputs,
                metrics,
                cost,
            });
            results.insert(
                key,
                Met {
                    folder,
                    file,
                    brief,
                },
            );
        }
        let count = rest.count(40)?;
        let mut artifacts = HashMap::with_capacity(count);
        for _ in 0..count {
            let artifact = rest.digest()?;
            let blobs = (0..rest.count(40)?)
                .map(|_| Some((rest.digest()?, rest.number()?)))
                .collect::<Option<Vec<_>>>()?;
            artifacts.insert(artifact, blobs.into());
        }
        Some(Memo { results, artifacts })
    }
}

/// What is left to read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn real(&mut self) -> Option<f64> {
        Some(f64::from_bits(self.number()?))
    }

    /// A number of things of at least `each` bytes.
    fn count(&mut self, each: usize) -> Option<usize> {
        let n = usize::try_from(self.number()?).ok()?;
        (n <= self.0.len() / each).then_some(n)
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let n = usize::try_from(self.number()?).ok()?;
        self.take(n)
    }

    fn digest(&mut self) -> Option<Digest> {
        Some(Digest(self.take(32)?.try_into().ok()?))
    }

    fn stat(&mut self) -> Option<FileId> {
        let mut words = [0u64; 5];
        for word in &mut words {
            *word = self.number()?;
        }
        Some(FileId::from_words(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memo() -> Memo {
        let id = |n| FileId::from_words([n, 2, 3, 4, 5]);
        let brief = Brief {
            attempt: 3,
            outputs: [("model".to_owned(), Digest([7; 32]))].into(),
            metrics: [("loss".to_owned(), 0.5.into())].into_iter().collect(),
            cost: Cost {
                seconds: 1.5,
                gpu_seconds: 0.25,
                cpu_joules: Some(3.5),
                ..Cost::default()
            },
        };
        let met = Met {
            folder: id(1),
            file: id(9),
            brief: Arc::new(brief),
        };
        Memo {
            results: [(Digest([1; 32]), met)].into(),
            artifacts: [(Digest([7; 32]), vec![(Digest([8; 32]), 11)].into())].into(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let memo = memo();
        let back = Memo::decode(&memo.encode()).unwrap();
        assert_eq!(back.results, memo.results);
        assert_eq!(back.artifacts, memo.artifacts);
    }

    #[test]
    fn every_damage_is_noticed() {
        let bytes = memo().encode();
        for at in 0..bytes.len() {
            assert!(Memo::decode(&bytes[..at]).is_none(), "cut at {at}");
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(Memo::decode(&bad).is_none(), "flipped at {at}");
        }
    }
}
