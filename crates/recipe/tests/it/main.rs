//! The built binary, driven as a user drives it.

mod cache;
mod ci;
mod golden;
mod help;
mod judging;
mod looks;
mod project;
mod provenance;
mod schema;
mod verbs;
