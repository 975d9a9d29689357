//! What a source held when a stage read it: its files, and the rows of those that have lines, each
//! by a short hash. Kept with the run that computed the stage (`sources/<digest>.json`), so that two
//! runs can be told apart by the row, also when the file itself has changed since.

use std::path::Path;

use cache::Store;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::source::{Known, manifest, write_atomic};

/// Hexadecimal digits kept of a row's hash: among a million rows two are alike by chance once in
/// five hundred data sets.
const DIGITS: usize = 12;
/// Of a larger file, in bytes, no rows are kept.
const MOST: u64 = 64 << 20;
/// Files whose lines are rows.
const LINES: [&str; 6] = ["jsonl", "ndjson", "json", "txt", "csv", "tsv"];

/// A source's content.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Content {
    pub version: u32,
    /// The source's name in the recipe.
    pub source: String,
    pub files: Vec<File>,
}

/// One file of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct File {
    /// Below the source; `data` and its extension where the source is the file itself.
    pub path: String,
    pub bytes: u64,
    /// Digest of its bytes, in hex.
    pub blob: String,
    /// The rows' hashes, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hashes: Option<String>,
}

/// Where a run keeps the content of the source with this digest, below its own folder.
pub fn file(digest: &str) -> String {
    format!("sources/{digest}.json")
}

impl File {
    /// A file with lines.
    pub fn of(path: String, bytes: u64, blob: String, lines: &[u8]) -> File {
        let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
        let mut hashes = String::new();
        if !lines.is_empty() {
            for line in lines.split(|b| *b == b'\n') {
                hashes.push_str(&blake3::hash(line).to_hex()[..DIGITS]);
            }
        }
        File {
            path,
            bytes,
            blob,
            hashes: Some(hashes),
        }
    }

    /// A hash of each row, in order; none where they were not kept.
    pub fn rows(&self) -> Option<Vec<&str>> {
        let hashes = self.hashes.as_deref().filter(|h| h.is_ascii())?;
        let row = |at: usize| hashes.get(at * DIGITS..(at + 1) * DIGITS);
        Some((0..hashes.len() / DIGITS).filter_map(row).collect())
    }
}

/// Writes down what the source at `path` holds, once per run. Weights of a repository are not
/// looked at: their revision says what they are.
pub(crate) fn keep(
    run_dir: &Path,
    name: &str,
    known: &Known,
    path: &Path,
    store: &Store,
) -> Result<(), Error> {
    let to = run_dir.join(file(&known.digest.hex()));
    if known.is_weights() || to.exists() {
        return Ok(());
    }
    let mut files = Vec::new();
    let single = path.is_file();
    for entry in manifest(store, path, |_| true)?.files {
        let extension = Path::new(&entry.path).extension().and_then(|e| e.to_str());
        let has_lines = extension.is_some_and(|e| LINES.contains(&e)) && entry.size <= MOST;
        let blob = entry.blob.hex();
        if !has_lines {
            files.push(File {
                path: entry.path,
                bytes: entry.size,
                blob,
                hashes: None,
            });
            continue;
        }
        let at = if single {
            path.to_owned()
        } else {
            path.join(&entry.path)
        };
        let lines = std::fs::read(&at).map_err(|source| Error::Io {
            what: "cannot read",
            path: at,
            source,
        })?;
        files.push(File::of(entry.path, entry.size, blob, &lines));
    }
    let content = Content {
        version: 1,
        source: name.to_owned(),
        files,
    };
    let folder = to.parent().unwrap_or(run_dir);
    std::fs::create_dir_all(folder).map_err(|source| Error::Io {
        what: "cannot create",
        path: folder.to_owned(),
        source,
    })?;
    write_atomic(&to, &serde_json::to_vec(&content).unwrap_or_default())
}
