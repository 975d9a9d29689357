//! Loss functions, pure: tensors in, a scalar or per-token tensor out.
//!
//! Each variant of each algorithm is one small function; a table per choice (`dpo::LOSSES`,
//! `grpo::TERMS`, ..) maps the name a recipe uses to its function. Nothing here knows of models,
//! batches or ranks: a loss is the sum over the *local* rows divided by *global* counts, so that
//! the sum over ranks and microbatches is the loss of the whole batch.

pub mod advantage;
pub mod dpo;
pub mod grpo;
pub mod rows;
pub mod sft;

pub use rows::Rows;

/// An entry of one of the tables: the name that a recipe uses, and what it stands for.
pub struct Named<T: 'static> {
    pub name: &'static str,
    pub what: T,
}

/// The entry called `name`; `Err` lists the names there are.
pub fn find<T>(table: &'static [Named<T>], name: &str) -> Result<&'static T, UnknownName> {
    table
        .iter()
        .find(|entry| entry.name == name)
        .map(|entry| &entry.what)
        .ok_or_else(|| UnknownName {
            name: name.to_string(),
            known: table
                .iter()
                .map(|entry| entry.name)
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// A name that no table entry has.
#[derive(Debug, thiserror::Error)]
#[error("unknown variant '{name}': use one of {known}")]
pub struct UnknownName {
    pub name: String,
    pub known: String,
}
