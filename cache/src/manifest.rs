//! The list of files that is an artifact.

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The files of an artifact, sorted by path. The artifact's digest is blake3 of its canonical bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub files: Vec<Entry>,
}

/// One file: where it lies in the artifact, and which blob it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entry {
    /// Relative, `/` between parts, no `.` or `..` parts.
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub blob: Digest,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}
