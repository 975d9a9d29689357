//! The list of files that is an artifact.
//!
//! | stored | where | why |
//! |---|---|---|
//! | canonical manifest | a blob | its blake3 is the artifact's digest, so one digest covers all bytes |
//!
//! Canonical bytes: compact JSON, files sorted by path, members in a fixed order, absent when
//! false. Bytes that do not encode back to themselves are refused, so that one list has one digest.
//! Times, owners and empty folders are not content. The executable bit is.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::error::{Error, Result};

/// The files of an artifact, sorted by path. The artifact's digest is blake3 of its canonical bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub files: Vec<Entry>,
}

/// One file: where it lies in the artifact, and which blob it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Relative, `/` between parts, no empty, `.` or `..` parts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub blob: Digest,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

impl Manifest {
    /// A manifest of `files` in any order. Refuses paths that leave the artifact, and two files
    /// that cannot both exist.
    pub fn new(mut files: Vec<Entry>) -> Result<Manifest> {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let manifest = Manifest { files };
        manifest.check().map_err(|(name, why)| Error::BadName {
            what: "file",
            name,
            why,
        })?;
        Ok(manifest)
    }

    /// Reads canonical bytes; says why they are no manifest.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let manifest: Manifest =
            serde_json::from_slice(bytes).map_err(|e| format!("it is not a manifest: {e}"))?;
        manifest
            .check()
            .map_err(|(name, why)| format!("it names the file '{name}', but {why}"))?;
        if manifest.canonical() != bytes {
            return Err("its bytes are not in canonical form".into());
        }
        Ok(manifest)
    }

    /// The bytes that are stored and hashed.
    pub fn canonical(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    /// The artifact's digest.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.canonical())
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// The entry at `path`.
    pub fn file(&self, path: &str) -> Option<&Entry> {
        let at = self
            .files
            .binary_search_by(|f| f.path.as_str().cmp(path))
            .ok()?;
        Some(&self.files[at])
    }

    fn check(&self) -> Result<(), (String, &'static str)> {
        for file in &self.files {
            check_path(&file.path).map_err(|why| (file.path.clone(), why))?;
        }
        for pair in self.files.windows(2) {
            if pair[0].path >= pair[1].path {
                return Err((pair[1].path.clone(), "it is out of order or there twice"));
            }
        }
        // 'a' and 'a/b' need not be neighbours: 'a-b' sorts between them
        let paths: std::collections::HashSet<&str> =
            self.files.iter().map(|f| f.path.as_str()).collect();
        for file in &self.files {
            for (at, _) in file.path.match_indices('/') {
                if paths.contains(&file.path[..at]) {
                    return Err((file.path.clone(), "a part of its path is a file as well"));
                }
            }
        }
        Ok(())
    }
}

/// Says why `path` may not name a file in an artifact or an object in the store.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() {
        return Err("it is empty");
    }
    if path.starts_with('/') {
        return Err("it is absolute");
    }
    if path.contains('\0') {
        return Err("it holds a zero byte");
    }
    for part in path.split('/') {
        match part {
            "" => return Err("it has an empty part"),
            "." | ".." => return Err("it has a '.' or '..' part, which could lead outside"),
            _ if part.len() > 255 => return Err("a part is longer than 255 bytes"),
            _ => {}
        }
    }
    Ok(())
}
