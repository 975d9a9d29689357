//! The built binary, driven as a user drives it.

mod cache;
mod ci;
mod compare;
mod golden;
mod help;
mod hub;
mod judging;
mod live;
mod looks;
mod project;
mod provenance;
mod replicas;
mod schema;
mod sweeps;
mod track;
mod verbs;
mod worker;
