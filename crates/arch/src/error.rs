//! What can be wrong with a model's configuration, or with a mesh for it.

use std::path::PathBuf;

/// Why a `config.json` or a mesh cannot be used. Every variant names the key and the value found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The text is not JSON, or not an object.
    #[error("config.json is not a JSON object: {0}")]
    Json(String),
    /// A key that must be there is not.
    #[error("config.json has no '{key}', which model_type '{model_type}' needs")]
    Missing { key: String, model_type: String },
    /// A key holds a value of the wrong type or out of range.
    #[error("config.json: '{key}' is {value}, but must be {want}")]
    Value {
        key: String,
        value: String,
        want: String,
    },
    /// The value is valid for some models, but this program does not compute it.
    #[error("config.json: '{key}' is {value}, which is not supported; {help}")]
    Unsupported {
        key: String,
        value: String,
        help: String,
    },
    /// Sizes of experts that do not fit the family.
    #[error("{problem}; {help}")]
    Experts { problem: String, help: &'static str },
    /// A mesh that cannot carry the model.
    #[error("mesh.{axis} = {size}, but {why}; {help}")]
    Mesh {
        axis: String,
        size: usize,
        why: String,
        help: String,
    },
    /// An error with the file it came from in front.
    #[error("{}: {source}", path.display())]
    At { path: PathBuf, source: Box<Error> },
}
