//! PyTorch's distributed checkpoints: a directory with `.metadata` (a pickle) and `.distcp` files,
//! in which each chunk of a tensor is an archive of `torch.save`.
//!
//! | file | what |
//! |---|---|
//! | [`pickle`] | pickles read as data; nothing that one names is ever run |
//! | [`metadata`] | tensors, their chunks, and where those lie |
//! | [`payload`], [`zip`] | a chunk's archive |
//! | [`write`] | checkpoints written |

pub mod metadata;
pub mod payload;
pub mod pickle;
pub mod write;
pub mod zip;

use crate::Error;
use crate::files::{Dtype, Entry, TensorSource};
use arch::ModelConfig;
use arch::params::{LM_HEAD, NORM};
use memmap2::Mmap;
use metadata::{Metadata, TensorMeta};
use payload::Payload;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};

pub use write::{METADATA, write_checkpoint};

/// `.metadata` of a million chunks is a tenth of this.
const MAX_METADATA: u64 = 4 << 30;

/// Whether a directory holds a distributed checkpoint.
pub fn is_checkpoint(dir: &Path) -> bool {
    dir.join(METADATA).exists()
}

/// The tensors of one model in a distributed checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    /// By name without the prefix.
    tensors: BTreeMap<String, (Entry, TensorMeta)>,
    files: HashMap<String, Mmap>,
}

impl Checkpoint {
    /// Opens the tensors below `prefix`, by their Hugging Face names. Without a prefix, the one
    /// below which the checkpoint has the model of `config` is found.
    ///
    /// # Errors
    /// A bad `.metadata`, no such model, several of them, or files that are missing or too short.
    pub fn open(dir: &Path, config: &ModelConfig, prefix: Option<&str>) -> Result<Self, Error> {
        let path = dir.join(METADATA);
        let bad = |problem: String| Error::file(&path, problem);
        let size = std::fs::metadata(&path)
            .map_err(Error::io("read", &path))?
            .len();
        if size > MAX_METADATA {
            return Err(bad(format!(
                "is {size} bytes, more than any checkpoint needs"
            )));
        }
        let bytes = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let all = Metadata::read(&bytes).map_err(bad)?.tensors;
        let prefix = match prefix {
            Some(prefix) => prefix.to_owned(),
            None => find_prefix(&all, config).map_err(bad)?,
        };
        let mut out = Self {
            dir: dir.to_path_buf(),
            tensors: BTreeMap::new(),
            files: HashMap::new(),
        };
        for (full, tensor) in all {
            let Some(name) = full.strip_prefix(&prefix) else {
                continue;
            };
            // beside a model without a prefix, an optimizer's state may lie
            if prefix.is_empty() && !name.starts_with("model.") && name != LM_HEAD {
                continue;
            }
            let dtype = Dtype::ALL
                .into_iter()
                .find(|d| d.config_name() == tensor.dtype);
            let dtype = dtype.ok_or_else(|| {
                bad(format!(
                    "tensor '{full}' is {}; known: float64, float32, float16, bfloat16",
                    tensor.dtype
                ))
            })?;
            let entry = Entry {
                name: name.to_owned(),
                dtype,
                shape: tensor.shape.clone(),
            };
            out.map(&tensor).map_err(|e| match e {
                Error::File { path, problem } => Error::File {
                    path,
                    problem: format!("{problem} (of tensor '{full}')"),
                },
                e => e,
            })?;
            out.tensors.insert(name.to_owned(), (entry, tensor));
        }
        Ok(out)
    }

    /// Maps the files of a tensor's chunks.
    fn map(&mut self, tensor: &TensorMeta) -> Result<(), Error> {
        for chunk in &tensor.chunks {
            let path = self.dir.join(&chunk.file);
            if !self.files.contains_key(&chunk.file) {
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                // SAFETY: as for safetensors files: nobody writes an input while it is read, and
                // one that is truncated meanwhile ends the process, not in a wrong value.
                let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", &path))?;
                self.files.insert(chunk.file.clone(), map);
            }
            let total = self.files[&chunk.file].len() as u64;
            if chunk
                .start
                .checked_add(chunk.length)
                .is_none_or(|end| end > total)
            {
                return Err(Error::file(
                    &path,
                    format!(
                        "is {total} bytes, but has to have {} from byte {} on; it is truncated",
                        chunk.length, chunk.start
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// The prefix of the names below which all parameters of `config` lie.
fn find_prefix(all: &BTreeMap<String, TensorMeta>, config: &ModelConfig) -> Result<String, String> {
    let defs = config.params();
    let found: Vec<&str> = all
        .keys()
        .filter_map(|name| name.strip_suffix(NORM))
        .filter(|p| {
            defs.iter()
                .all(|d| all.contains_key(&format!("{p}{}", d.name)))
        })
        .collect();
    match found[..] {
        [one] => Ok(one.to_owned()),
        [] => {
            // the best of what is there, so that what it lacks can be named
            let lacking = |p: &str| {
                let absent = defs
                    .iter()
                    .filter(|d| !all.contains_key(&format!("{p}{}", d.name)));
                absent
                    .map(|d| format!("'{p}{}'", d.name))
                    .collect::<Vec<_>>()
            };
            let prefixes = all.keys().filter_map(|name| name.strip_suffix(NORM));
            let absent = prefixes.map(lacking).min_by_key(Vec::len);
            let absent = absent.unwrap_or_else(|| lacking(""));
            let known: Vec<String> = all.keys().take(3).map(|n| format!("'{n}'")).collect();
            Err(format!(
                "lacks {} of the {} parameters of config.json, {} for one; it has {} tensors{}. \
                 names must be those of Hugging Face, with or without a prefix",
                absent.len(),
                defs.len(),
                absent.first().map_or("none", String::as_str),
                all.len(),
                if known.is_empty() {
                    String::new()
                } else {
                    format!(", the first {}", known.join(", "))
                }
            ))
        }
        _ => Err(format!(
            "has several models; say which with `with.prefix`: {}",
            found
                .iter()
                .map(|p| format!("\"{p}\""))
                .collect::<Vec<_>>()
                .join(", ")
        )),
    }
}

impl TensorSource for Checkpoint {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn names(&self) -> BTreeSet<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name).map(|(entry, _)| entry)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        let (entry, tensor) = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::Tensors(format!("tensor '{name}' is missing")))?;
        let mut out = Vec::new();
        for chunk in &tensor.chunks {
            let bad = |problem: String| {
                let what = format!("the chunk of '{name}' at {:?}", chunk.offset);
                Error::file(&self.dir.join(&chunk.file), format!("{what} {problem}"))
            };
            let file = &self.files[&chunk.file];
            // `map` has checked the range
            let bytes = &file[chunk.start as usize..(chunk.start + chunk.length) as usize];
            let payload = Payload::read(bytes).map_err(bad)?;
            if payload.dtype != entry.dtype || payload.shape != chunk.size {
                return Err(bad(format!(
                    "is {:?} {}, but {METADATA} says {:?} {}",
                    payload.shape,
                    payload.dtype.config_name(),
                    chunk.size,
                    tensor.dtype
                )));
            }
            if let Some(bytes) = payload.contiguous().filter(|_| tensor.chunks.len() == 1) {
                return Ok(Cow::Borrowed(bytes));
            }
            out.resize(entry.bytes(), 0);
            payload.copy_into(&mut out, &entry.shape, &chunk.offset);
        }
        Ok(Cow::Owned(out))
    }
}
