//! JSON lines behind a memory map, with an index of line starts.

use crate::error::{Error, Result};
use memmap2::Mmap;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;

/// Text that the operating system pages in (a file), or that is held (small spools).
enum Text {
    Mapped(Mmap),
    Held(Vec<u8>),
}

/// Non-blank lines of JSON text.
pub struct Lines {
    text: Text,
    /// Byte offset of each non-blank line.
    starts: Vec<u64>,
    /// Line number of each, 1-based, where blank lines make it differ from the position.
    numbers: Option<Vec<u32>>,
}

impl Lines {
    pub fn map(path: &Path) -> Result<Lines> {
        let file = File::open(path).map_err(Error::io(path))?;
        let empty = file.metadata().map_err(Error::io(path))?.len() == 0;
        if empty {
            return Ok(Lines::index(Text::Held(Vec::new())));
        }
        Lines::map_file(&file).map_err(Error::io(path))
    }

    pub fn map_file(file: &File) -> std::io::Result<Lines> {
        // SAFETY: inputs are artifacts or sources that nothing writes to while a stage runs; a
        // file cut short under us would raise SIGBUS, as for every reader of a mapped file.
        let map = unsafe { Mmap::map(file)? };
        Ok(Lines::index(Text::Mapped(map)))
    }

    pub fn held(text: Vec<u8>) -> Lines {
        Lines::index(Text::Held(text))
    }

    fn index(text: Text) -> Lines {
        let bytes = match &text {
            Text::Mapped(map) => &map[..],
            Text::Held(bytes) => &bytes[..],
        };
        let (mut starts, mut numbers) = (Vec::new(), Vec::new());
        // A byte order mark is not part of the first line.
        let mut at = if bytes.starts_with(b"\xef\xbb\xbf") {
            3
        } else {
            0
        };
        let (mut number, mut gaps) = (0u32, false);
        while at < bytes.len() {
            let end = memchr(&bytes[at..]).map_or(bytes.len(), |i| at + i);
            number = number.saturating_add(1);
            if bytes[at..end].iter().all(u8::is_ascii_whitespace) {
                gaps = true;
            } else {
                starts.push(at as u64);
                numbers.push(number);
            }
            at = end + 1;
        }
        Lines {
            text,
            starts,
            numbers: gaps.then_some(numbers),
        }
    }

    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// The 1-based line number and the text (with its line ending) of row `index`.
    pub fn get(&self, index: usize) -> (usize, &[u8]) {
        let bytes = match &self.text {
            Text::Mapped(map) => &map[..],
            Text::Held(bytes) => &bytes[..],
        };
        let rest = &bytes[self.starts[index] as usize..];
        let end = memchr(rest).unwrap_or(rest.len());
        let number = match &self.numbers {
            Some(numbers) => numbers[index] as usize,
            None => index + 1,
        };
        (number, &rest[..end])
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&b| b == b'\n')
}

/// A line as a JSON object.
pub fn object(text: &[u8], place: &str) -> Result<Map<String, Value>> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(Error::row(
            place,
            format!(
                "a row must be a JSON object like {{\"messages\": [..]}}, got {}",
                crate::error::quote(&other)
            ),
        )),
        Err(e) => {
            let shown: String = String::from_utf8_lossy(text)
                .trim()
                .chars()
                .take(60)
                .collect();
            Err(Error::row(
                place,
                format!("not valid JSON: {e}; each line must be one JSON object, got '{shown}'"),
            ))
        }
    }
}
