//! Whether it was the disk that a stage failed for.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use crate::error::{AttemptError, Class};

/// What to do about a full disk.
pub const HELP: &str = "free some space and run again; what was stored before is intact";
/// A file system with less room than this for ordinary users counts as full: a process that failed for want of space
/// seldom leaves exactly none.
const ROOM: u64 = 64 << 10;

/// Whether the system said that there is no space left.
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The failure of an attempt whose processes wrote below `scratch`, before that is removed: a process that only says
/// that it failed, on a disk without room, failed for the disk. Its own fault would not be worth a retry.
pub fn blame(error: AttemptError, scratch: &Path) -> AttemptError {
    let said = error.code.is_some() || !matches!(error.class, Class::Failed | Class::Infra);
    if said || !is_out_of_room(scratch) {
        return error;
    }
    AttemptError {
        help: Some(HELP.into()),
        ..AttemptError::new(
            Class::Infra,
            format!(
                "the disk that holds '{}' is full: {}",
                scratch.display(),
                error.message
            ),
        )
    }
}

/// Bytes or files have run out. A file system that counts no files reports none of them at all.
fn is_out_of_room(path: &Path) -> bool {
    statvfs(path).is_ok_and(|fs| {
        let bytes = fs.blocks_available() * fs.fragment_size();
        bytes < ROOM || (fs.files() > 0 && fs.files_available() == 0)
    })
}
