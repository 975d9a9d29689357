//! Tests of the crate's public face, in one binary.

mod chat;
mod dataset;
mod environment;
mod example;
mod grade;
mod order_pack_rng;
mod tokenizer;

use std::path::PathBuf;

/// A file in a directory of its own, gone with the guard.
fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    (dir, path)
}
