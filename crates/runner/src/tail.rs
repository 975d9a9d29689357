//! The end of a log, for showing why an attempt failed.

use std::path::Path;

use crate::launch::rank_log;

/// Lines that are shown.
const TAIL: usize = 20;

/// The last lines of a log, of the ranks beside it too when rank 0 said nothing.
pub fn tail(log: &Path) -> Vec<String> {
    for rank in 0..64 {
        let path = rank_log(log, rank);
        let Ok(text) = read_end(&path) else { break };
        let lines: Vec<&str> = text.lines().collect();
        if !lines.is_empty() {
            return lines[lines.len().saturating_sub(TAIL)..]
                .iter()
                .map(|l| (*l).to_owned())
                .collect();
        }
    }
    Vec::new()
}

fn read_end(path: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(16 << 10)))?;
    let mut bytes = Vec::new();
    file.take(16 << 10).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
