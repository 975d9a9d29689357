//! Names of content: blake3, 256 bits, written as 64 lower-case hexadecimal digits.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::{Error, Result};

/// The blake3 hash of some bytes. Also the type of a stage's key, which is the hash of its preimage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

/// What a result is filed under: blake3 of the preimage's bytes.
pub type Key = Digest;

/// Files at least this long are hashed from a memory map by all threads.
const PARALLEL_FROM: u64 = 1 << 20;

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(*blake3::hash(bytes).as_bytes())
    }

    /// The digest of a file's content, with bounded memory; large files by all threads.
    pub fn of_file(path: &Path) -> Result<Digest> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        Digest::of_open(&file, path)
    }

    /// The digest of everything in `file`, read from its start; `path` names it in errors.
    pub(crate) fn of_open(mut file: &File, path: &Path) -> Result<Digest> {
        let len = file.metadata().map_err(Error::io("stat", path))?.len();
        let mut hasher = blake3::Hasher::new();
        if len >= PARALLEL_FROM {
            hash_parallel(&mut hasher, file, len).map_err(Error::io("read", path))?;
            return Ok(Digest(*hasher.finalize().as_bytes()));
        }
        let mut buffer = [0u8; 1 << 16];
        loop {
            match file.read(&mut buffer).map_err(Error::io("read", path))? {
                0 => return Ok(Digest(*hasher.finalize().as_bytes())),
                n => {
                    hasher.update(&buffer[..n]);
                }
            }
        }
    }

    /// 64 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        self.to_string()
    }

    /// The first 12 digits: enough for a person to tell two apart.
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

/// Reads `len` bytes in large pieces, each hashed by all threads. Reading rather than mapping: a
/// file that is cut short meanwhile is an error here, and a SIGBUS there.
fn hash_parallel(hasher: &mut blake3::Hasher, file: &File, len: u64) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    const PIECE: u64 = 8 << 20;
    let mut front = vec![0u8; len.min(PIECE) as usize];
    let mut back = vec![0u8; len.saturating_sub(PIECE).min(PIECE) as usize];
    let fill = |buffer: &mut [u8], at: u64| -> std::io::Result<usize> {
        let want = buffer.len().min((len.saturating_sub(at)) as usize);
        file.read_exact_at(&mut buffer[..want], at)?;
        Ok(want)
    };
    let mut at = 0u64;
    let mut have = fill(&mut front, 0)?;
    while have > 0 {
        at += have as u64;
        // the next piece is read while this one is hashed
        let (_, next) = rayon::join(
            || hasher.update_rayon(&front[..have]),
            || fill(&mut back, at),
        );
        have = next?;
        std::mem::swap(&mut front, &mut back);
    }
    Ok(())
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 64];
        for (i, byte) in self.0.iter().enumerate() {
            text[2 * i] = HEX[(byte >> 4) as usize];
            text[2 * i + 1] = HEX[(byte & 15) as usize];
        }
        f.pad(std::str::from_utf8(&text).expect("hexadecimal digits are ascii"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Digest> {
        let bad = |why| Error::BadDigest {
            text: text.to_owned(),
            why,
        };
        if text.len() != 64 {
            return Err(bad("it has another length"));
        }
        let digit = |c: u8| match c {
            b'0'..=b'9' => Ok(c - b'0'),
            b'a'..=b'f' => Ok(c - b'a' + 10),
            _ => Err(bad("it holds another character")),
        };
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Digest(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
