//! Datasets: JSON lines, Parquet, and directories of them, read lazily by row.

mod files;
mod jsonl;
mod parquet;
mod row;

pub use row::{Content, Extra, Row};

use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// One row as it stands in the file.
#[derive(Clone, Debug)]
pub struct Record {
    pub value: Map<String, Value>,
    /// `file:line`, or `file:row n` for Parquet.
    pub place: String,
}

impl Record {
    /// What kind of row this is, by its fields.
    pub fn parse(&self) -> Result<Row> {
        row::parse(&self.value, &self.place)
    }
}

/// Rows of one file, addressed by number; JSON text behind a map of the file or a spool.
struct Part {
    path: PathBuf,
    lines: jsonl::Lines,
    parquet: bool,
    /// Rows before this part.
    first: usize,
}

/// Rows of one or more files, in the order given (directories in sorted order). Rows are parsed
/// when asked for; memory holds an index of eight bytes per row, the text is mapped.
pub struct Dataset {
    parts: Vec<Part>,
    len: usize,
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<&Path> = self.parts.iter().map(|p| p.path.as_path()).collect();
        write!(f, "Dataset({} rows of {paths:?})", self.len)
    }
}

/// Opens files and directories as one dataset. No row at all is an error.
pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Dataset> {
    let mut parts = Vec::new();
    let mut len = 0;
    for path in paths {
        for (path, format) in files::expand(path.as_ref())? {
            let parquet = format == files::Format::Parquet;
            let lines = if parquet {
                parquet::read(&path)?
            } else {
                jsonl::Lines::map(&path)?
            };
            let first = len;
            len += lines.len();
            parts.push(Part {
                path,
                lines,
                parquet,
                first,
            });
        }
    }
    if len == 0 {
        let names: Vec<String> = paths
            .iter()
            .map(|p| p.as_ref().display().to_string())
            .collect();
        return Err(Error::file(
            names.join(", "),
            "no rows; a dataset needs at least one",
        ));
    }
    Ok(Dataset { parts, len })
}

impl Dataset {
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never true: an empty dataset does not open.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Row `index` (< len) as JSON with its place.
    pub fn record(&self, index: usize) -> Result<Record> {
        let part = &self.parts[self.parts.partition_point(|p| p.first <= index) - 1];
        let (line, text) = part.lines.get(index - part.first);
        let place = if part.parquet {
            format!("{}:row {line}", part.path.display())
        } else {
            format!("{}:{line}", part.path.display())
        };
        let value = jsonl::object(text, &place)?;
        Ok(Record { value, place })
    }

    /// Row `index` (< len), parsed.
    pub fn row(&self, index: usize) -> Result<Row> {
        self.record(index)?.parse()
    }

    /// All records in order.
    pub fn records(&self) -> impl Iterator<Item = Result<Record>> + '_ {
        (0..self.len).map(|i| self.record(i))
    }

    /// The files read, in order.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|p| p.path.as_path())
    }
}
