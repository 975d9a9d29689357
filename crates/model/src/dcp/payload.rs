//! One tensor as `torch.save` writes it: an archive with a pickle that says how the bytes of a
//! storage are a tensor (`torch/_utils.py`, `_rebuild_tensor_v2`), and the storage.

use super::pickle::{Global, Id, Node, Pickle};
use super::write::Pickler;
use super::zip;
use crate::files::{Dtype, Entry};
use std::io::{self, Write};

/// A saved tensor, its storage not copied.
#[derive(Debug)]
pub struct Payload<'a> {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    strides: Vec<usize>,
    /// From the tensor's first element on.
    storage: &'a [u8],
}

const STORAGES: [(&str, Dtype); 4] = [
    ("DoubleStorage", Dtype::F64),
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
];

fn known((module, name): Global) -> bool {
    match module {
        "torch._utils" => matches!(name, "_rebuild_tensor_v2" | "_rebuild_parameter"),
        "collections" => name == "OrderedDict",
        "torch" => name.ends_with("Storage"),
        _ => false,
    }
}

impl<'a> Payload<'a> {
    /// Reads an archive that is all of `bytes`, and checks the storage's checksum.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let files = zip::read(bytes)?;
        let find = |end: &str| {
            let file = files.iter().find(|f| {
                f.name
                    .split_once('/')
                    .is_some_and(|(_, inside)| inside == end)
            });
            file.ok_or(format!("has no '{end}'; it was not written by torch.save"))
        };
        if let Ok(order) = find("byteorder")
            && order.data != b"little"
        {
            return Err("was written on a big-endian machine".into());
        }
        let description = checked(find("data.pkl")?)?;
        let pickle = Pickle::read(description, &known)?;
        let p = &pickle;
        const NOT: &str = "holds something else than one dense tensor";
        // a parameter wraps a tensor
        let tensor = match p.object(p.root(), "_rebuild_parameter") {
            Some((args, _)) => *p.items(args).and_then(|a| a.first()).ok_or(NOT)?,
            None => p.root(),
        };
        let (args, _) = p.object(tensor, "_rebuild_tensor_v2").ok_or(NOT)?;
        let [storage, offset, shape, strides, ..] = p.items(args).ok_or(NOT)? else {
            return Err(NOT.into());
        };
        let (dtype, key) = storage_of(p, *storage)?;
        let offset = p.count(*offset).and_then(|n| usize::try_from(n).ok());
        let (offset, shape, strides) = (
            offset.ok_or(NOT)?,
            p.counts(*shape).ok_or(NOT)?,
            p.counts(*strides).ok_or(NOT)?,
        );
        let data = checked(find(&format!("data/{key}"))?)?;
        let out = Self {
            dtype,
            storage: offset
                .checked_mul(dtype.size())
                .and_then(|start| data.get(start..))
                .ok_or("begins behind the end of its storage")?,
            shape,
            strides,
        };
        out.check()?;
        Ok(out)
    }

    /// Checks that every element lies in the storage, and no two in one place.
    fn check(&self) -> Result<(), String> {
        if self.strides.len() != self.shape.len() {
            return Err("has not as many strides as sizes".into());
        }
        if self.shape.contains(&0) {
            return Ok(());
        }
        let mut dims: Vec<(usize, usize)> = self
            .strides
            .iter()
            .zip(&self.shape)
            .filter(|(_, n)| **n > 1)
            .map(|(s, n)| (*s, *n))
            .collect();
        dims.sort_unstable();
        // the elements that the dimensions with smaller strides span
        let mut span = 1usize;
        for (stride, n) in dims {
            if stride < span {
                return Err(format!(
                    "has strides {:?} for sizes {:?}, by which elements share memory",
                    self.strides, self.shape
                ));
            }
            span = stride
                .checked_mul(n - 1)
                .and_then(|s| s.checked_add(span))
                .ok_or("has strides that are more than memory can address")?;
        }
        let bytes = span.checked_mul(self.dtype.size());
        if bytes.is_none_or(|bytes| bytes > self.storage.len()) {
            return Err(format!(
                "is {:?} {}, but its storage has {} bytes; the file is damaged",
                self.shape,
                self.dtype.header_name(),
                self.storage.len()
            ));
        }
        Ok(())
    }

    /// The elements, if they lie in row-major order without gaps.
    pub fn contiguous(&self) -> Option<&'a [u8]> {
        let mut run = 1;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != run {
                return None;
            }
            run *= size;
        }
        self.storage.get(..run * self.dtype.size())
    }

    /// Copies the elements to where they belong in a row-major tensor of sizes `whole`: at
    /// `offset`, which leaves room for all of them.
    pub fn copy_into(&self, out: &mut [u8], whole: &[usize], offset: &[usize]) {
        if self.shape.contains(&0) {
            return;
        }
        let unit = self.dtype.size();
        let mut to_strides = vec![1usize; whole.len()];
        for d in (1..whole.len()).rev() {
            to_strides[d - 1] = to_strides[d] * whole[d];
        }
        // trailing dimensions that are one run of bytes on both sides
        let mut run = 1;
        let mut outer = self.shape.len();
        while outer > 0
            && (self.shape[outer - 1] == 1
                || (self.strides[outer - 1] == run && to_strides[outer - 1] == run))
        {
            outer -= 1;
            run *= self.shape[outer];
        }
        let base: usize = offset.iter().zip(&to_strides).map(|(o, s)| o * s).sum();
        let mut index = vec![0usize; outer];
        loop {
            let dot = |strides: &[usize]| -> usize {
                index.iter().zip(strides).map(|(i, s)| i * s).sum()
            };
            let from = dot(&self.strides) * unit;
            let to = (base + dot(&to_strides)) * unit;
            out[to..to + run * unit].copy_from_slice(&self.storage[from..from + run * unit]);
            let Some(d) = (0..outer).rev().find(|d| index[*d] + 1 < self.shape[*d]) else {
                return;
            };
            index[d] += 1;
            index[d + 1..].fill(0);
        }
    }
}

/// A file's bytes, if they are those that were written.
fn checked<'a>(file: &zip::File<'a>) -> Result<&'a [u8], String> {
    if crc32fast::hash(file.data) == file.crc {
        Ok(file.data)
    } else {
        Err(format!(
            "does not match the checksum of its '{}'; the file is damaged",
            file.name
        ))
    }
}

/// `('storage', torch.FloatStorage, '0', 'cpu', 12)`: the element type and the file's name.
fn storage_of<'a>(p: &Pickle<'a>, id: Id) -> Result<(Dtype, &'a str), String> {
    const NOT: &str = "says nothing of its storage";
    let Node::Persistent(inner) = p.node(id) else {
        return Err(NOT.into());
    };
    let [_, class, key, ..] = p.items(*inner).ok_or(NOT)? else {
        return Err(NOT.into());
    };
    let Node::Class((_, class)) = p.node(*class) else {
        return Err(NOT.into());
    };
    let dtype = STORAGES.iter().find(|(name, _)| name == class);
    let (_, dtype) = dtype
        .ok_or_else(|| format!("holds a {class}; known: float64, float32, float16, bfloat16"))?;
    Ok((*dtype, p.text(*key).ok_or(NOT)?))
}

/// Writes a contiguous tensor as `torch.save` does, without the random id it adds; `body` writes
/// the elements in row-major order. Returns the archive's length in bytes.
///
/// # Errors
/// What `body` says; `failed` of what the sink does.
pub fn write<E>(
    entry: &Entry,
    out: &mut dyn Write,
    failed: &dyn Fn(io::Error) -> E,
    body: &mut dyn FnMut(&mut dyn Write) -> Result<(), E>,
) -> Result<u64, E> {
    let mut archive = zip::Writer::new(out);
    let head = [
        ("archive/data.pkl", description(entry)),
        ("archive/.format_version", b"1".to_vec()),
        ("archive/.storage_alignment", b"64".to_vec()),
        ("archive/byteorder", b"little".to_vec()),
    ];
    for (name, bytes) in head {
        archive.file(name, &bytes).map_err(failed)?;
    }
    archive.begin("archive/data/0").map_err(failed)?;
    body(archive.data())?;
    archive.end().map_err(failed)?;
    archive.file("archive/version", b"3\n").map_err(failed)?;
    archive.finish().map_err(failed)
}

/// `data.pkl` of a contiguous tensor.
fn description(entry: &Entry) -> Vec<u8> {
    let mut strides = vec![1; entry.shape.len()];
    for d in (1..entry.shape.len()).rev() {
        strides[d - 1] = strides[d] * entry.shape[d].max(1);
    }
    let class = STORAGES
        .iter()
        .find(|(_, dtype)| *dtype == entry.dtype)
        .map_or("FloatStorage", |(name, _)| name);
    let numel: usize = entry.shape.iter().product();
    let mut p = Pickler::new();
    p.call("torch._utils", "_rebuild_tensor_v2", |p| {
        p.persistent(|p| {
            p.text("storage");
            p.class("torch", class);
            p.text("0");
            p.text("cpu");
            p.int(numel as u64);
        });
        p.int(0);
        p.ints(&entry.shape);
        p.ints(&strides);
        p.bool(false);
        p.call("collections", "OrderedDict", |_| {});
    });
    p.finish()
}
