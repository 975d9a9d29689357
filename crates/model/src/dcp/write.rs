//! Distributed checkpoints written: what `torch.distributed.checkpoint.save` of torch 2.11 leaves
//! behind for a flat state dictionary on one rank. The bytes depend on nothing but the tensors.

use super::payload;
use crate::Error;
use crate::files::{Entry, shards};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// What a checkpoint directory has, and nothing else does.
pub const METADATA: &str = ".metadata";
const CLASSES: &str = "torch.distributed.checkpoint.metadata";

/// Where a tensor was written.
struct Place<'a> {
    entry: &'a Entry,
    name: &'a str,
    file: String,
    start: u64,
    length: u64,
}

/// Writes tensors in the given order to `__0_N.distcp` files in `dir`, of at most `max_file_bytes`
/// each (a larger tensor has a file of its own), then `.metadata`. `body` writes the bytes of the
/// tensor with the given number. `also` names a tensor a second time: the bytes are shared.
///
/// # Errors
/// The file that cannot be written.
pub fn write_checkpoint(
    dir: &Path,
    entries: &[Entry],
    also: Option<(&str, usize)>,
    max_file_bytes: u64,
    mut body: impl FnMut(usize, &mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut places = Vec::with_capacity(entries.len() + 1);
    for (n, range) in shards(entries, max_file_bytes).into_iter().enumerate() {
        let file = format!("__0_{n}.distcp");
        let path = dir.join(&file);
        let out = File::create(&path).map_err(Error::io("create", &path))?;
        let mut out = BufWriter::with_capacity(1 << 20, out);
        let failed = |source| Error::Io {
            action: "write",
            path: path.clone(),
            source,
        };
        let mut start = 0;
        for i in range {
            let entry = &entries[i];
            let length = payload::write(entry, &mut out, &failed, &mut |out| body(i, out))?;
            places.push(Place {
                entry,
                name: &entry.name,
                file: file.clone(),
                start,
                length,
            });
            start += length;
        }
        out.flush().map_err(failed)?;
    }
    if let Some((name, of)) = also {
        let Place {
            entry,
            start,
            length,
            ..
        } = places[of];
        let file = places[of].file.clone();
        places.push(Place {
            entry,
            name,
            file,
            start,
            length,
        });
    }
    let path = dir.join(METADATA);
    std::fs::write(&path, metadata(&places)).map_err(Error::io("write", &path))
}

fn metadata(places: &[Place]) -> Vec<u8> {
    let mut p = Pickler::new();
    p.object(CLASSES, "Metadata", |p| {
        p.text("state_dict_metadata");
        p.dict(|p| {
            for place in places {
                p.text(place.name);
                tensor(p, place.entry);
            }
        });
        p.text("planner_data");
        p.dict(|p| {
            for place in places {
                p.text(place.name);
                p.tuple(|p| p.text(place.name));
            }
        });
        p.text("storage_data");
        p.dict(|p| {
            for place in places {
                storage(p, place);
            }
        });
        p.text("storage_meta");
        p.object(CLASSES, "StorageMeta", |p| {
            for field in ["checkpoint_id", "save_id", "load_id"] {
                p.text(field);
                p.none();
            }
            p.text("modules");
            p.list(|_| {});
        });
        p.text("version");
        p.text("1.0.0");
    });
    p.finish()
}

fn tensor(p: &mut Pickler, entry: &Entry) {
    let dtype = entry.dtype;
    p.object(CLASSES, "TensorStorageMetadata", |p| {
        p.text("properties");
        p.stateful(CLASSES, "TensorProperties", |p| {
            p.class("torch", dtype.config_name());
            p.call("torch.serialization", "_get_layout", |p| {
                p.text("torch.strided")
            });
            p.bool(false); // requires_grad
            p.call(CLASSES, "_MEM_FORMAT_ENCODING", |p| p.int(0)); // contiguous
            p.bool(false); // pinned
        });
        p.text("size");
        p.size(&entry.shape);
        p.text("chunks");
        p.list(|p| {
            p.object(CLASSES, "ChunkStorageMetadata", |p| {
                p.text("offsets");
                p.size(&vec![0; entry.shape.len()]);
                p.text("sizes");
                p.size(&entry.shape);
            });
        });
    });
}

/// A key and a value of `storage_data`.
fn storage(p: &mut Pickler, place: &Place) {
    p.object(CLASSES, "MetadataIndex", |p| {
        p.text("fqn");
        p.text(place.name);
        p.text("index");
        p.int(0);
        p.text("offset");
        p.size(&vec![0; place.entry.shape.len()]);
    });
    p.object(
        "torch.distributed.checkpoint.filesystem",
        "_StorageInfo",
        |p| {
            p.text("relative_path");
            p.text(&place.file);
            p.text("offset");
            p.int(place.start);
            p.text("length");
            p.int(place.length);
        },
    );
}

/// Writes pickles of protocol 2.
pub(super) struct Pickler {
    out: Vec<u8>,
    /// Classes and texts that were written, by how they were.
    memo: HashMap<Vec<u8>, u32>,
}

impl Pickler {
    pub fn new() -> Self {
        Self {
            out: vec![0x80, 2],
            memo: HashMap::new(),
        }
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.out.push(b'.');
        self.out
    }

    /// Writes `code`, or where it was written before.
    fn once(&mut self, code: Vec<u8>) {
        if let Some(n) = self.memo.get(&code) {
            self.out.push(b'j');
            self.out.extend(n.to_le_bytes());
            return;
        }
        let n = self.memo.len() as u32;
        self.out.extend(&code);
        self.out.push(b'r');
        self.out.extend(n.to_le_bytes());
        self.memo.insert(code, n);
    }

    pub fn class(&mut self, module: &str, name: &str) {
        self.once(format!("c{module}\n{name}\n").into_bytes());
    }

    pub fn text(&mut self, text: &str) {
        let mut code = vec![b'X'];
        code.extend((text.len() as u32).to_le_bytes());
        code.extend(text.as_bytes());
        self.once(code);
    }

    pub fn none(&mut self) {
        self.out.push(b'N');
    }

    pub fn bool(&mut self, value: bool) {
        self.out.push(if value { 0x88 } else { 0x89 });
    }

    pub fn int(&mut self, value: u64) {
        match i32::try_from(value) {
            Ok(n) => {
                self.out.push(b'J');
                self.out.extend(n.to_le_bytes());
            }
            Err(_) => {
                // sizes and places in files are below 2^63
                self.out.extend([0x8a, 8]);
                self.out.extend(value.to_le_bytes());
            }
        }
    }

    pub fn tuple(&mut self, items: impl FnOnce(&mut Self)) {
        self.out.push(b'(');
        items(self);
        self.out.push(b't');
    }

    pub fn ints(&mut self, values: &[usize]) {
        self.tuple(|p| values.iter().for_each(|v| p.int(*v as u64)));
    }

    pub fn list(&mut self, items: impl FnOnce(&mut Self)) {
        self.out.extend(b"](");
        items(self);
        self.out.push(b'e');
    }

    /// Keys and values in turn.
    pub fn dict(&mut self, items: impl FnOnce(&mut Self)) {
        self.out.extend(b"}(");
        items(self);
        self.out.push(b'u');
    }

    pub fn call(&mut self, module: &str, name: &str, args: impl FnOnce(&mut Self)) {
        self.class(module, name);
        self.tuple(args);
        self.out.push(b'R');
    }

    pub fn size(&mut self, sizes: &[usize]) {
        self.call("torch", "Size", |p| p.ints(sizes));
    }

    /// An object whose state is a dictionary of fields.
    pub fn object(&mut self, module: &str, name: &str, fields: impl FnOnce(&mut Self)) {
        self.class(module, name);
        self.out.extend([b')', 0x81]);
        self.dict(fields);
        self.out.push(b'b');
    }

    /// An object whose state is a tuple.
    pub fn stateful(&mut self, module: &str, name: &str, state: impl FnOnce(&mut Self)) {
        self.class(module, name);
        self.out.extend([b')', 0x81]);
        self.tuple(state);
        self.out.push(b'b');
    }

    pub fn persistent(&mut self, items: impl FnOnce(&mut Self)) {
        self.tuple(items);
        self.out.push(b'Q');
    }
}
