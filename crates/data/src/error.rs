//! What can go wrong with data: each error names the place, the failing value and the fix.

use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing a file failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A row is not what it should be; `place` is `file:line` (or `file:row n` in Parquet).
    #[error("{place}: {message}")]
    Row { place: String, message: String },
    /// A file or directory as a whole is not usable data.
    #[error("{path}: {message}", path = path.display())]
    File { path: PathBuf, message: String },
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    #[error("chat template: {0}")]
    Template(String),
    #[error("environment: {0}")]
    Environment(String),
    #[error(
        "environment '{environment}' takes its tasks from data; give the stage a data input (in.data)"
    )]
    NoData { environment: String },
    /// A row became more tokens than allowed and the recipe did not say to truncate or drop it.
    #[error(
        "{place}: the example has {tokens} tokens, more than max_length = {max_length}; \
         raise max_length or set overlong = \"truncate\" or \"drop\""
    )]
    TooLong {
        place: String,
        tokens: usize,
        max_length: usize,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    pub(crate) fn row(place: impl std::fmt::Display, message: impl Into<String>) -> Error {
        Error::Row {
            place: place.to_string(),
            message: message.into(),
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, message: impl Into<String>) -> Error {
        Error::File {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// A value as it appears in a message: JSON, cut to 80 characters.
pub(crate) fn quote(value: &serde_json::Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}..", &text[..at]),
        None => text,
    }
}
