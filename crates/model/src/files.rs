//! Safetensors files and the index over several, checked in full before a byte of them is used.
//!
//! Format: 8 bytes little-endian header length, a JSON object
//! `{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {..}}`, then the
//! tensors without holes (<https://github.com/huggingface/safetensors#format>).

use crate::Error;
use memmap2::Mmap;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::Kind;

/// File name of a model in one file.
pub const SINGLE: &str = "model.safetensors";
/// File name of the index over several.
pub const INDEX: &str = "model.safetensors.index.json";
/// The format's own limit on the header.
const MAX_HEADER: u64 = 100_000_000;

/// Element type of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
}

impl Dtype {
    pub(crate) const ALL: [Dtype; 4] = [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::BF16];

    /// Name in a safetensors header.
    pub fn header_name(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
        }
    }

    /// Name in `config.json`.
    pub fn config_name(self) -> &'static str {
        match self {
            Dtype::F64 => "float64",
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
        }
    }

    /// The tensor kind.
    pub fn kind(self) -> Kind {
        match self {
            Dtype::F64 => Kind::Double,
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
        }
    }

    /// The element type that holds a tensor kind; `None` for kinds that are no weights.
    pub fn of(kind: Kind) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.kind() == kind)
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }
}

/// A tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Sizes.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// A safetensors file, mapped; its header is true of its bytes.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    entries: BTreeMap<String, (Entry, Range<usize>)>,
}

impl TensorFile {
    /// Maps a file and checks its header: sizes, offsets, overlaps, holes and the file's end.
    ///
    /// # Errors
    /// Names the file and the tensor at fault.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the file belongs to an artifact or a source, which nobody writes while it is
        // read; one that is truncated meanwhile ends the process with SIGBUS, not with a lie.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let bad = |problem: String| Error::file(path, problem);
        let total = map.len();
        let Some(head) = map.first_chunk::<8>() else {
            return Err(bad(format!(
                "is {total} bytes, too short for a safetensors header; the file is truncated"
            )));
        };
        let length = u64::from_le_bytes(*head);
        if length > MAX_HEADER || length > (total - 8) as u64 {
            return Err(bad(format!(
                "says its header is {length} bytes, but the file is {total}; it is truncated or \
                 not a safetensors file"
            )));
        }
        let start = 8 + length as usize;
        let header: Map<String, Value> = serde_json::from_slice(&map[8..start])
            .map_err(|e| bad(format!("has a header that is not a JSON object: {e}")))?;
        let mut entries = BTreeMap::new();
        for (name, value) in header {
            if name == "__metadata__" {
                continue;
            }
            let (entry, range) =
                read_entry(&name, &value).map_err(|e| bad(format!("tensor '{name}' {e}")))?;
            entries.insert(name, (entry, range));
        }
        check_ranges(&entries, total - start).map_err(bad)?;
        for (_, range) in entries.values_mut() {
            *range = range.start + start..range.end + start;
        }
        Ok(Self {
            path: path.to_path_buf(),
            map,
            entries,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tensors by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|(e, _)| e)
    }

    /// A tensor and its bytes.
    pub fn get(&self, name: &str) -> Option<(&Entry, &[u8])> {
        let (entry, range) = self.entries.get(name)?;
        Some((entry, &self.map[range.clone()]))
    }
}

fn read_entry(name: &str, value: &Value) -> Result<(Entry, Range<usize>), String> {
    let dtype = value["dtype"].as_str().ok_or("has no dtype")?;
    let dtype = Dtype::ALL
        .into_iter()
        .find(|d| d.header_name() == dtype)
        .ok_or_else(|| format!("has dtype '{dtype}'; known: F64, F32, F16, BF16"))?;
    let sizes = |key: &str| -> Result<Vec<usize>, String> {
        value[key]
            .as_array()
            .and_then(|a| {
                a.iter()
                    .map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok()))
                    .collect()
            })
            .ok_or_else(|| format!("has {key} {}, not a list of sizes", value[key]))
    };
    let shape = sizes("shape")?;
    let offsets = sizes("data_offsets")?;
    let [begin, end] = offsets[..] else {
        return Err(format!(
            "has {} data_offsets, not a begin and an end",
            offsets.len()
        ));
    };
    let bytes = shape
        .iter()
        .try_fold(dtype.size(), |n, &s| n.checked_mul(s))
        .ok_or_else(|| format!("has shape {shape:?}, which is more than memory can address"))?;
    if end.checked_sub(begin) != Some(bytes) {
        return Err(format!(
            "says it is {shape:?} {} ({bytes} bytes), but has bytes {begin}..{end}",
            dtype.header_name()
        ));
    }
    let name = name.to_string();
    Ok((Entry { name, dtype, shape }, begin..end))
}

fn check_ranges(
    entries: &BTreeMap<String, (Entry, Range<usize>)>,
    data: usize,
) -> Result<(), String> {
    let mut by_start: Vec<_> = entries.values().collect();
    by_start.sort_by_key(|(_, r)| (r.start, r.end));
    let mut end = 0;
    let mut before = "the header";
    for (entry, range) in by_start {
        let name = &entry.name;
        if range.end > data {
            return Err(format!(
                "tensor '{name}' says it ends at byte {} of {data}; the file is truncated or its \
                 header lies",
                range.end
            ));
        }
        if range.start < end {
            return Err(format!("tensor '{name}' overlaps '{before}'"));
        }
        if range.start > end {
            return Err(format!(
                "there are {} bytes of no tensor before '{name}'",
                range.start - end
            ));
        }
        (end, before) = (range.end, name);
    }
    if end != data {
        return Err(format!(
            "there are {} bytes of no tensor at the end",
            data - end
        ));
    }
    Ok(())
}

/// A model's tensors by name, whatever files they lie in.
pub trait TensorSource {
    /// The directory they come from.
    fn dir(&self) -> &Path;
    /// Names of all tensors, sorted.
    fn names(&self) -> BTreeSet<&str>;
    /// What a tensor is.
    fn entry(&self, name: &str) -> Option<&Entry>;
    /// A tensor's elements in row-major order.
    ///
    /// # Errors
    /// A tensor that is not there, or whose file is damaged.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error>;
}

impl TensorSource for ModelFiles {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn names(&self) -> BTreeSet<&str> {
        self.names()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.get(name).map(|(entry, _)| entry)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        self.get(name)
            .map(|(_, bytes)| Cow::Borrowed(bytes))
            .ok_or_else(|| Error::Tensors(format!("tensor '{name}' is missing")))
    }
}

/// All tensors of a model directory, over one file or several.
#[derive(Debug)]
pub struct ModelFiles {
    dir: PathBuf,
    files: Vec<TensorFile>,
    place: HashMap<String, usize>,
}

impl ModelFiles {
    /// Opens `model.safetensors`, or the files that `model.safetensors.index.json` lists.
    ///
    /// # Errors
    /// No weights, a bad file, or an index and files that disagree.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let single = dir.join(SINGLE);
        let index = dir.join(INDEX);
        let mut found = Self {
            dir: dir.to_path_buf(),
            files: Vec::new(),
            place: HashMap::new(),
        };
        if single.exists() {
            found.files.push(TensorFile::open(&single)?);
            for e in found.files[0].entries() {
                found.place.insert(e.name.clone(), 0);
            }
        } else if index.exists() {
            found.open_indexed(&index)?;
        } else {
            let pickled = dir.join("pytorch_model.bin").exists()
                || dir.join("pytorch_model.bin.index.json").exists();
            let help = if pickled {
                "; pickled weights are not read, save the model as safetensors first"
            } else if crate::dcp::is_checkpoint(dir) {
                "; it is a distributed checkpoint of PyTorch, which a `convert` stage brings in"
            } else {
                ""
            };
            return Err(Error::file(
                dir,
                format!("has neither {SINGLE} nor {INDEX}{help}"),
            ));
        }
        Ok(found)
    }

    fn open_indexed(&mut self, index: &Path) -> Result<(), Error> {
        let bad = |problem: String| Error::file(index, problem);
        let text = std::fs::read(index).map_err(Error::io("read", index))?;
        let json: Value =
            serde_json::from_slice(&text).map_err(|e| bad(format!("is not JSON: {e}")))?;
        let map = json["weight_map"]
            .as_object()
            .ok_or_else(|| bad("has no weight_map".into()))?;
        let mut order = BTreeMap::new();
        for (name, file) in map {
            let file = file
                .as_str()
                .filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f))
                .ok_or_else(|| bad(format!("places tensor '{name}' in {file}, not a file name")))?;
            let next = order.len();
            let at = *order.entry(file).or_insert(next);
            if at == next {
                self.files.push(TensorFile::open(&self.dir.join(file))?);
            }
            if self.files[at].get(name).is_none() {
                return Err(bad(format!(
                    "places tensor '{name}' in {file}, which does not hold it"
                )));
            }
            self.place.insert(name.clone(), at);
        }
        for (at, file) in self.files.iter().enumerate() {
            for e in file.entries() {
                if self.place.get(&e.name) != Some(&at) {
                    return Err(Error::file(
                        file.path(),
                        format!(
                            "holds tensor '{}', which {INDEX} does not place there",
                            e.name
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> BTreeSet<&str> {
        self.place.keys().map(String::as_str).collect()
    }

    /// A tensor and its bytes.
    pub fn get(&self, name: &str) -> Option<(&Entry, &[u8])> {
        self.files[*self.place.get(name)?].get(name)
    }
}

/// Writes tensors in the given order to safetensors files in `dir`: one file, or several of at
/// most `max_shard_bytes` each (a larger tensor has a file of its own) with an index. `body`
/// writes the bytes of the tensor with the given number.
///
/// # Errors
/// The file that cannot be written.
pub fn write_model(
    dir: &Path,
    entries: &[Entry],
    max_shard_bytes: u64,
    mut body: impl FnMut(usize, &mut dyn Write) -> Result<(), Error>,
) -> Result<(), Error> {
    let shards = shards(entries, max_shard_bytes);
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = if shards.len() == 1 {
            SINGLE.to_string()
        } else {
            format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len())
        };
        let path = dir.join(&name);
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        out.write_all(&header(&entries[shard.clone()]))
            .map_err(Error::io("write", &path))?;
        for at in shard.clone() {
            body(at, &mut out).map_err(|e| match e {
                Error::Io { source, .. } => Error::Io {
                    action: "write",
                    path: path.clone(),
                    source,
                },
                e => e,
            })?;
            weight_map.insert(entries[at].name.clone(), name.clone().into());
        }
        out.flush().map_err(Error::io("write", &path))?;
    }
    if shards.len() > 1 {
        let total: usize = entries.iter().map(Entry::bytes).sum();
        weight_map.sort_keys();
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let path = dir.join(INDEX);
        std::fs::write(&path, format!("{index:#}\n")).map_err(Error::io("write", &path))?;
    }
    Ok(())
}

pub(crate) fn shards(entries: &[Entry], max_shard_bytes: u64) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut size = 0;
    for (i, e) in entries.iter().enumerate() {
        let bytes = e.bytes() as u64;
        match out.last_mut() {
            Some(last) if size + bytes <= max_shard_bytes => last.end = i + 1,
            _ => {
                out.push(i..i + 1);
                size = 0;
            }
        }
        size += bytes;
    }
    out
}

fn header(entries: &[Entry]) -> Vec<u8> {
    let mut map = Map::new();
    // transformers refuses files that do not say which framework laid them out
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut at = 0;
    for e in entries {
        let end = at + e.bytes();
        map.insert(
            e.name.clone(),
            json!({"dtype": e.dtype.header_name(), "shape": e.shape, "data_offsets": [at, end]}),
        );
        at = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    // the data starts at a multiple of 8
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.append(&mut text);
    out
}
