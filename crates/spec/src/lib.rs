//! What a recipe says: its text, its stage kinds, its keys, and the contract with the worker.
//!
//! A recipe passes through three forms, each with less left to interpret:
//! [`RecipeFile`](layers::RecipeFile) (text with layers merged and parameters filled in, every value knowing its place)
//! -> [`Recipe`] (stages with canonical configuration, every reference resolved) -> [`Plan`] (the
//! selected stages in an order that respects their inputs).
//!
//! This crate does no work: it reads recipe files and nothing else.

pub mod assertion;
pub mod canonical;
pub mod cells;
pub mod codes;
pub mod diagnostic;
pub mod explain;
pub mod job;
pub mod key;
pub mod kinds;
pub mod layers;
mod matrix;
pub mod params;
mod parse;
pub mod parts;
pub mod placement;
pub mod plan;
mod read;
pub mod recipe;
mod resolve;
pub mod schema;
pub mod track;
pub mod tree;
pub mod until;

pub use assertion::Assertion;
pub use cells::{Cell, Cells};
pub use diagnostic::{Diagnostic, Place};
pub use job::{Event, InputSpec, JobSpec, ResumeSpec};
pub use key::{Difference, HashedTrainer, Key, Preimage, Trainer, difference};
pub use kinds::{ArtifactKind, Config, Invalid, KINDS, Kind, Port, kind};
pub use layers::{Layers, Setting};
pub use placement::{Checkpoint, FailureClass, Placement, Resources, Retry, UNKEYED};
pub use plan::{Part, Plan, Selection};
pub use recipe::{Best, Candidate, Choice, Output, Recipe, Reference, Source, SourceSpec, Stage};
pub use until::{BestStep, PartOf, Until};

/// Version of the recipe schema: `schema = 1` in `[recipe]`, and part of every key.
pub const SCHEMA: u32 = 1;

/// Reads, layers and resolves a recipe file.
pub fn load(file: &std::path::Path, layers: &Layers) -> Result<Recipe, Box<Diagnostic>> {
    resolve::resolve(layers::read(file, layers)?)
}
