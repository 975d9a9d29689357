//! What can go wrong in the store, and which exit code it means.

use std::path::{Path, PathBuf};

use crate::Digest;

/// Which exit code of the command line an error belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The store holds something that is not what its name says: exit code 5.
    Integrity,
    /// The disk, the network or another process: worth a retry. Exit code 4.
    Infra,
    /// The caller asked for something that cannot be done: exit code 2.
    Usage,
}

impl Class {
    /// The exit code of `recipe` for this class.
    pub fn exit_code(self) -> i32 {
        match self {
            Class::Integrity => 5,
            Class::Infra => 4,
            Class::Usage => 2,
        }
    }
}

/// An error of the store. `class()` says what the caller should do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("cannot {action} '{path}': {source}{}", hint(.source))]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },

    #[error("cannot {action} '{path}' in store '{store}': {message}")]
    Remote {
        action: &'static str,
        path: String,
        store: String,
        message: String,
    },

    #[error(
        "store url '{url}' cannot be used: {why}; use a directory, file://, s3://, gs:// or az://"
    )]
    BadUrl { url: String, why: String },

    #[error("'{text}' is not a digest: {why}; a digest is 64 lower-case hexadecimal digits")]
    BadDigest { text: String, why: &'static str },

    #[error("'{name}' is not a usable {what} name: {why}")]
    BadName {
        what: &'static str,
        name: String,
        why: &'static str,
    },

    #[error("'{path}' is {what}, and an artifact holds regular files only; {help}")]
    NotAFile {
        path: PathBuf,
        what: &'static str,
        help: &'static str,
    },

    #[error("'{path}' changed while it was being read; stop what writes to it and run again")]
    Changed { path: PathBuf },

    #[error("'{path}' exists and is not an empty directory; name a new one")]
    NotEmpty { path: PathBuf },

    #[error(
        "blob {digest} is missing from store '{store}'; rerun the stage that makes it, or fetch it again"
    )]
    Missing { digest: Digest, store: String },

    #[error("'{path}' in store '{store}' is corrupt: {why}")]
    Corrupt {
        path: String,
        store: String,
        why: String,
    },

    #[error(
        "attempt {attempt} of {key} is sealed ({why}): another attempt took over, and this one may not write any more"
    )]
    Sealed {
        key: Digest,
        attempt: u32,
        why: String,
    },

    #[error("result for {key} does not fit it: {why}")]
    BadRecord { key: Digest, why: String },
}

impl Error {
    /// Which exit code this error belongs to.
    pub fn class(&self) -> Class {
        match self {
            Error::Corrupt { .. } | Error::Missing { .. } => Class::Integrity,
            Error::Io { .. }
            | Error::Remote { .. }
            | Error::Changed { .. }
            | Error::Sealed { .. } => Class::Infra,
            Error::BadUrl { .. }
            | Error::BadDigest { .. }
            | Error::BadName { .. }
            | Error::NotAFile { .. }
            | Error::NotEmpty { .. }
            | Error::BadRecord { .. } => Class::Usage,
        }
    }

    /// Whether the disk is full: trying again cannot help.
    pub fn is_full(&self) -> bool {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Error::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
    }

    /// Ends a listing early; never seen by a caller.
    pub(crate) fn enough() -> Error {
        Error::BadUrl {
            url: String::new(),
            why: "enough was listed".into(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space (`recipe cache stat` shows what the store holds) and run again, nothing was half written"
        }
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => {
            "; the store must be writable, choose another with --store"
        }
        _ => "",
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
