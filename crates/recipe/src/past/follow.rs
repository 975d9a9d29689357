//! What a run writes, as it is written.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use cache::Store;
use runner::Report;

use crate::fail::Fail;

/// Follows a run's `events.jsonl`.
pub struct Follow<'s> {
    store: &'s Store,
    id: String,
    /// Bytes that were whole lines.
    read: u64,
}

impl<'s> Follow<'s> {
    pub fn new(store: &'s Store, id: &str) -> Follow<'s> {
        Follow {
            store,
            id: id.to_owned(),
            read: 0,
        }
    }

    /// What happened since the last call.
    pub fn more(&mut self) -> Result<Vec<(f64, Report)>, Fail> {
        let new = self.new_bytes()?;
        let whole = new.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.read += whole as u64;
        let lines = new[..whole].split(|b| *b == b'\n');
        Ok(lines.filter_map(runner::event).collect())
    }

    fn new_bytes(&self) -> Result<Vec<u8>, Fail> {
        const NAME: &str = "events.jsonl";
        let Some(path) = self.store.run_path(&self.id, NAME)? else {
            // a remote store's file is replaced now and then
            let mut all = self.store.get_run(&self.id, NAME)?.unwrap_or_default();
            return Ok(all.split_off((self.read as usize).min(all.len())));
        };
        let read = || -> std::io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|e| Fail::io("read", &path, &e)),
        }
    }
}
