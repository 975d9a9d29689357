//! `.metadata`: which tensors a checkpoint has, how they are cut into chunks, and where those lie.
//!
//! The classes are those of `torch/distributed/checkpoint/{metadata,filesystem}.py` of torch 2.11,
//! format version 1.0.0 (unchanged since torch 2.3).

use super::pickle::{Global, Id, Pickle};
use std::collections::{BTreeMap, HashMap};

/// What `.metadata` says.
#[derive(Debug, Default)]
pub struct Metadata {
    /// Tensors by name; other values (step counts, schedulers) are left out.
    pub tensors: BTreeMap<String, TensorMeta>,
}

/// A tensor and its chunks, which cover it without overlap.
#[derive(Debug)]
pub struct TensorMeta {
    /// Element type without the `torch.`: `float32`.
    pub dtype: String,
    /// Sizes of the whole.
    pub shape: Vec<usize>,
    /// Chunks that are not empty.
    pub chunks: Vec<Chunk>,
}

/// A rectangular part of a tensor, and the bytes that `torch.save` made of it.
#[derive(Debug)]
pub struct Chunk {
    /// Where it begins, by dimension.
    pub offset: Vec<usize>,
    /// Its sizes.
    pub size: Vec<usize>,
    /// Name of its file.
    pub file: String,
    /// First byte there.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

const METADATA: &str = "torch.distributed.checkpoint.metadata";
const FILESYSTEM: &str = "torch.distributed.checkpoint.filesystem";
/// Element types of torch, by which `torch.float32` and its like are told from functions.
const DTYPES: &[&str] = &[
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
    "complex128",
];
/// More chunks than any real checkpoint cuts a tensor into.
const MAX_CHUNKS: usize = 1 << 14;

/// The classes of `.metadata`.
fn known((module, name): Global) -> bool {
    match module {
        METADATA => matches!(
            name,
            "Metadata"
                | "TensorStorageMetadata"
                | "BytesStorageMetadata"
                | "ChunkStorageMetadata"
                | "TensorProperties"
                | "MetadataIndex"
                | "StorageMeta"
                | "_MEM_FORMAT_ENCODING"
        ),
        FILESYSTEM => name == "_StorageInfo",
        "torch" => name == "Size" || DTYPES.contains(&name),
        "torch.serialization" => name == "_get_layout",
        "collections" => name == "OrderedDict",
        // where it was saved; never used
        "pathlib" | "pathlib._local" => name.ends_with("Path"),
        _ => false,
    }
}

impl Metadata {
    /// Reads the bytes of `.metadata`.
    ///
    /// # Errors
    /// What is wrong, with the tensor's name.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        let pickle = Pickle::read(bytes, &known)?;
        let p = &pickle;
        let top = state(p, p.root(), "Metadata").ok_or("is no checkpoint's Metadata")?;
        let pairs = |name: &str| {
            p.field(top, name)
                .and_then(|id| p.pairs(id))
                .ok_or(format!("has no {name}, or another thing than a dictionary"))
        };
        let places = places(p, pairs("storage_data")?)?;
        let mut tensors = BTreeMap::new();
        for (key, value) in pairs("state_dict_metadata")? {
            let name = p
                .text(*key)
                .ok_or("names an entry by something else than a text")?;
            if p.object(*value, "BytesStorageMetadata").is_some() {
                continue;
            }
            let tensor = tensor(p, name, *value, &places)
                .and_then(|t| t.check().map(|()| t))
                .map_err(|e| format!("tensor '{name}' {e}"))?;
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(Self { tensors })
    }
}

/// The state of an object of a class, which must be a dictionary.
fn state(p: &Pickle, id: Id, class: &str) -> Option<Id> {
    let state = p.object(id, class)?.1?;
    p.pairs(state).map(|_| state)
}

/// `torch.Size((2, 3))`.
fn size(p: &Pickle, id: Id) -> Option<Vec<usize>> {
    let (args, _) = p.object(id, "Size")?;
    let [sizes] = p.items(args)? else {
        return None;
    };
    p.counts(*sizes)
}

type Places<'a> = HashMap<(&'a str, Vec<usize>), Place<'a>>;

struct Place<'a> {
    file: &'a str,
    start: u64,
    length: u64,
    transformed: bool,
}

/// Where chunks lie, by tensor name and offset.
fn places<'a>(p: &Pickle<'a>, pairs: &[(Id, Id)]) -> Result<Places<'a>, String> {
    let mut out = HashMap::with_capacity(pairs.len());
    for (key, value) in pairs {
        let index = state(p, *key, "MetadataIndex").ok_or("has a place that is of no entry")?;
        let name = p
            .field(index, "fqn")
            .and_then(|id| p.text(id))
            .ok_or("has a place of an entry without a name")?;
        let Some(offset) = p.field(index, "offset").and_then(|id| size(p, id)) else {
            continue; // of a value that is no tensor
        };
        let bad = || format!("places '{name}' nowhere");
        let info = state(p, *value, "_StorageInfo").ok_or_else(bad)?;
        let number = |field| p.field(info, field).and_then(|id| p.count(id));
        let place = Place {
            file: p
                .field(info, "relative_path")
                .and_then(|id| p.text(id))
                .ok_or_else(bad)?,
            start: number("offset").ok_or_else(bad)?,
            length: number("length").ok_or_else(bad)?,
            transformed: p
                .field(info, "transform_descriptors")
                .and_then(|id| p.items(id))
                .is_some_and(|list| !list.is_empty()),
        };
        out.insert((name, offset), place);
    }
    Ok(out)
}

fn tensor(p: &Pickle, name: &str, id: Id, places: &Places) -> Result<TensorMeta, String> {
    let fields = state(p, id, "TensorStorageMetadata").ok_or("is no TensorStorageMetadata")?;
    let field = |field: &str| p.field(fields, field).ok_or(format!("has no {field}"));
    let properties = p
        .object(field("properties")?, "TensorProperties")
        .and_then(|(_, state)| p.items(state?))
        .ok_or("has no properties")?;
    let dtype = match properties.first().map(|id| p.node(*id)) {
        Some(super::pickle::Node::Class(("torch", dtype))) => (*dtype).to_owned(),
        _ => return Err("has no dtype".into()),
    };
    let shape = size(p, field("size")?).ok_or("has a size that is no torch.Size")?;
    let list = p.items(field("chunks")?).ok_or("has no list of chunks")?;
    if list.len() > MAX_CHUNKS {
        return Err(format!("has {} chunks; at most {MAX_CHUNKS}", list.len()));
    }
    let mut chunks = Vec::with_capacity(list.len());
    for id in list {
        let sizes = |name: &str| {
            state(p, *id, "ChunkStorageMetadata")
                .and_then(|fields| size(p, p.field(fields, name)?))
                .filter(|s| s.len() == shape.len())
                .ok_or(format!(
                    "has a chunk without {name} in {} dimensions",
                    shape.len()
                ))
        };
        let (offset, size) = (sizes("offsets")?, sizes("sizes")?);
        if size.contains(&0) {
            continue; // a rank without rows
        }
        let place = places
            .get(&(name, offset.clone()))
            .ok_or_else(|| format!("has a chunk at {offset:?} whose place is not said"))?;
        if place.transformed {
            return Err("is compressed or encrypted by an extension; save it without".into());
        }
        if std::path::Path::new(place.file).file_name() != Some(place.file.as_ref()) {
            return Err(format!("lies in '{}', which is no file name", place.file));
        }
        chunks.push(Chunk {
            offset,
            size,
            file: place.file.to_owned(),
            start: place.start,
            length: place.length,
        });
    }
    Ok(TensorMeta {
        dtype,
        shape,
        chunks,
    })
}

impl TensorMeta {
    /// Checks that the chunks lie inside the tensor and cover it once.
    fn check(&self) -> Result<(), String> {
        let count = |sizes: &[usize]| sizes.iter().try_fold(1usize, |n, s| n.checked_mul(*s));
        let large = || {
            format!(
                "has size {:?}, which is more than memory can address",
                self.shape
            )
        };
        // eight bytes is the widest element
        let all = count(&self.shape)
            .filter(|n| *n <= isize::MAX as usize / 8)
            .ok_or_else(large)?;
        let mut sum = 0usize;
        for c in &self.chunks {
            let inside = |d: usize| {
                c.offset[d]
                    .checked_add(c.size[d])
                    .is_some_and(|end| end <= self.shape[d])
            };
            if !(0..self.shape.len()).all(inside) {
                return Err(format!(
                    "has a chunk of {:?} at {:?}, outside its size {:?}",
                    c.size, c.offset, self.shape
                ));
            }
            sum = sum.saturating_add(count(&c.size).ok_or_else(large)?);
        }
        let mut order: Vec<&Chunk> = self.chunks.iter().collect();
        order.sort_by(|a, b| a.offset.cmp(&b.offset));
        for (i, a) in order.iter().enumerate() {
            for b in &order[i + 1..] {
                let apart = |d: usize| {
                    a.offset[d] + a.size[d] <= b.offset[d] || b.offset[d] + b.size[d] <= a.offset[d]
                };
                if self.shape.is_empty() || !(0..self.shape.len()).any(apart) {
                    return Err(format!(
                        "has chunks at {:?} and {:?} that overlap",
                        a.offset, b.offset
                    ));
                }
                if a.offset[0] + a.size[0] <= b.offset[0] {
                    break; // and so do all that follow
                }
            }
        }
        if sum == all {
            Ok(())
        } else {
            Err(format!(
                "has chunks of {sum} elements, but size {:?} is {all}; parts are missing",
                self.shape
            ))
        }
    }
}
