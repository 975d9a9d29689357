//! Traces of profiled steps: from an attempt's directory to the run's record.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::job::Layout;

/// The folder of the run's record that they lie in.
pub const FOLDER: &str = "trace";

/// Moves what the ranks of an attempt wrote, however it ended, to `trace/<stage>-<attempt>.rank<r>.json` of the run's
/// record.
pub fn keep(layout: &Layout, run: &Path, stage: &str, attempt: u32) -> Result<(), Error> {
    let io = |what, path: &Path, source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    };
    let from = layout.traces();
    let Ok(files) = fs::read_dir(&from) else {
        return Ok(());
    };
    let to = run.join(FOLDER);
    for file in files {
        let file = file.map_err(|e| io("cannot list", &from, e))?;
        let rank = PathBuf::from(file.file_name());
        let path = to.join(format!("{stage}-{attempt}.{}", rank.display()));
        fs::create_dir_all(&to).map_err(|e| io("cannot create", &to, e))?;
        // the record may lie on another file system
        fs::rename(file.path(), &path)
            .or_else(|_| fs::copy(file.path(), &path).map(drop))
            .map_err(|e| io("cannot keep", &path, e))?;
    }
    Ok(())
}
