//! Drives the real `recipe-worker` with jobs on tiny models.

mod bench;
mod contract;
mod fixtures;
mod resume;
mod training;
