//! Digests the sources that the worker is built from, so that a changed loss changes keys, and
//! lets the binary find libtorch where it was linked from.

use std::fs;
use std::path::{Path, PathBuf};

/// Everything that decides what the worker computes, from the workspace's root. A new crate under
/// the worker belongs here; `tests/main/contract.rs` compares this list with the dependencies.
const SOURCES: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "cache",
    "crates/arch",
    "crates/data",
    "crates/model",
    "crates/parallel",
    "crates/rollout",
    "crates/spec",
    "crates/stages",
    "crates/torch",
    "crates/trace",
    "crates/train",
    "kernels",
    "rust-toolchain.toml",
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for source in SOURCES {
        let path = root.join(source);
        // what is watched leaves tests out, so that a changed test rebuilds nothing here
        for part in parts(&path).unwrap_or_else(|| vec![path]) {
            println!("cargo:rerun-if-changed={}", part.display());
            collect(&part, &mut files);
        }
    }
    let mut named: Vec<(String, PathBuf)> = files
        .into_iter()
        .filter_map(|file| {
            let relative = file.strip_prefix(&root).ok()?.to_str()?.replace('\\', "/");
            Some((relative, file))
        })
        .collect();
    named.sort();
    let mut all = blake3::Hasher::new();
    for (name, file) in named {
        let Ok(bytes) = fs::read(&file) else { continue };
        all.update(&(name.len() as u64).to_le_bytes());
        all.update(name.as_bytes());
        all.update(blake3::hash(&bytes).as_bytes());
    }
    println!("cargo:rustc-env=RECIPE_SOURCES={}", all.finalize().to_hex());

    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        // an old-style rpath is also used for what libtorch itself needs
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{libtorch}/lib");
    }
}

/// The entries of a directory that end up in the worker: tests and hidden files do not.
fn parts(dir: &Path) -> Option<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let kept = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        !name.starts_with('.') && !["tests", "benches", "examples", "target"].contains(&&*name)
    });
    Some(kept.map(|entry| entry.path()).collect())
}

/// All files at or below `path`.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    match parts(path) {
        Some(parts) => parts.iter().for_each(|part| collect(part, files)),
        None => files.push(path.to_path_buf()),
    }
}
