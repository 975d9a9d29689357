//! Digests of files and directories outside the store, and the artifact that is a single file.
//!
//! A single file becomes an artifact with the one entry `data` (plus its extension, which says how to read it):
//! what it was called is not content.

use std::path::{Path, PathBuf};

use cache::{Digest, Entry, Manifest, Store};

use crate::error::{Class, Error};

/// The entry's name in an artifact that is a single file.
pub fn file_entry(path: &Path) -> String {
    match path.extension().and_then(|e| e.to_str()) {
        Some(extension) => format!("data.{}", extension.to_ascii_lowercase()),
        None => "data".into(),
    }
}

/// The entry of an artifact that is handed over as a file instead of a directory.
pub fn single_file(manifest: &Manifest) -> Option<&Entry> {
    match manifest.files.as_slice() {
        [only] if only.path == "data" => Some(only),
        [only] if only.path.starts_with("data.") && !only.path.contains('/') => Some(only),
        _ => None,
    }
}

/// Where an artifact that was materialised at `at` is handed over.
pub fn handed_over(manifest: &Manifest, at: &Path) -> PathBuf {
    match single_file(manifest) {
        Some(file) => at.join(&file.path),
        None => at.to_owned(),
    }
}

/// Digest of a file or directory; symbolic links count as what they point to.
pub fn hash(store: &Store, path: &Path) -> Result<Digest, Error> {
    Ok(manifest(store, path, |_| true)?.digest())
}

/// The manifest of a file or directory outside the store, of the files whose relative path is wanted.
pub fn manifest(
    store: &Store,
    path: &Path,
    wanted: impl Fn(&str) -> bool,
) -> Result<Manifest, Error> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io {
            what: "cannot read",
            path,
            source,
        }
    };
    let entry = |name: String, path: &Path| -> Result<Entry, Error> {
        let meta = std::fs::metadata(path).map_err(io(path))?;
        Ok(Entry {
            path: name,
            size: meta.len(),
            blob: store.hash_file(path)?,
            executable: std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o100 != 0,
        })
    };
    if !std::fs::metadata(path).map_err(io(path))?.is_dir() {
        // Whether a single file may be executed says nothing about data.
        return Ok(Manifest::new(vec![Entry {
            executable: false,
            ..entry(file_entry(path), path)?
        }])?);
    }
    let mut files = Vec::new();
    for found in walkdir::WalkDir::new(path).follow_links(true) {
        let found = found.map_err(|e| {
            let at = e.path().unwrap_or(path).to_owned();
            Error::Io {
                what: "cannot read",
                path: at,
                source: e.into(),
            }
        })?;
        if found.file_type().is_dir() {
            continue;
        }
        let below = found.path().strip_prefix(path).unwrap_or(found.path());
        let Some(name) = below.to_str() else {
            let source =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "the name is not UTF-8");
            return Err(io(found.path())(source));
        };
        if wanted(name) {
            files.push(entry(name.to_owned(), found.path())?);
        }
    }
    Ok(Manifest::new(files)?)
}

/// Says in terms of the recipe what is wrong with a local source.
pub fn explain(name: &str, path: &Path, e: Error) -> Error {
    let missing =
        matches!(&e, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound);
    if !missing || path.exists() {
        return e;
    }
    Error::Source {
        name: name.into(),
        message: format!("'{}' does not exist", path.display()),
        class: Class::Config,
        help: Some(format!(
            "set source.{name}.path to a file or directory; it is relative to the recipe's folder"
        )),
    }
}
