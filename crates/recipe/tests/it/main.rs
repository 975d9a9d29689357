//! The built binary, driven as a user drives it.

mod golden;
mod project;
mod verbs;
