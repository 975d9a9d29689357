//! Which files a path stands for, and their formats.

use crate::error::{Error, Result};
use std::io::Read;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    JsonLines,
    Parquet,
}

/// A file is itself; a directory is every `.jsonl`, `.ndjson`, `.json` and `.parquet` file below
/// it, sorted by path (hidden ones and other extensions are left out).
pub fn expand(path: &Path) -> Result<Vec<(PathBuf, Format)>> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_dir() {
        let format = match by_extension(path) {
            Some(format) => format,
            None => sniff(path)?,
        };
        return Ok(vec![(path.to_path_buf(), format)]);
    }
    let mut files = Vec::new();
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.')
    };
    let walk = walkdir::WalkDir::new(path)
        .follow_links(true)
        .sort_by_file_name();
    for entry in walk.into_iter().filter_entry(visible) {
        let entry = entry.map_err(|e| Error::file(path, e.to_string()))?;
        if entry.file_type().is_file()
            && let Some(format) = by_extension(entry.path())
        {
            files.push((entry.into_path(), format));
        }
    }
    if files.is_empty() {
        return Err(Error::file(
            path,
            "no .jsonl, .ndjson, .json or .parquet file in this directory",
        ));
    }
    Ok(files)
}

fn by_extension(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "jsonl" | "ndjson" | "json" => Some(Format::JsonLines),
        "parquet" => Some(Format::Parquet),
        _ => None,
    }
}

/// A file without a telling name: Parquet starts with its magic, anything else is JSON lines.
fn sniff(path: &Path) -> Result<Format> {
    let mut magic = [0u8; 4];
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    Ok(match file.read_exact(&mut magic) {
        Ok(()) if &magic == b"PAR1" => Format::Parquet,
        _ => Format::JsonLines,
    })
}
