//! Digests of files, for those who know files by them.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// What a file's bytes are known by.
pub struct Digests {
    pub sha256: String,
    pub blake3: String,
}

impl Digests {
    /// Both in one pass.
    pub fn of(path: &Path) -> std::io::Result<Digests> {
        let mut file = std::fs::File::open(path)?;
        let (mut sha256, mut blake3) = (Sha256::new(), blake3::Hasher::new());
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => {
                    sha256.update(&buffer[..n]);
                    blake3.update(&buffer[..n]);
                }
            }
        }
        Ok(Digests {
            sha256: hex(&sha256.finalize()),
            blake3: blake3.finalize().to_hex().to_string(),
        })
    }
}

/// sha256 of bytes, as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Every file below a directory, sorted.
pub fn files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    Ok(files)
}
