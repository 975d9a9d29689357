//! The built binary, driven as a user drives it.

mod golden;
mod looks;
mod project;
mod verbs;
