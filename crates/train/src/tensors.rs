//! Named tensors in one safetensors file, bit for bit.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, View};
use tch::{Kind, Tensor};

use crate::Error;

/// Writes `tensors` to `path`, one at a time in memory beside their own storage.
pub(crate) fn write<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) -> Result<(), Error> {
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let dtype = dtype(tensor.kind())
            .ok_or_else(|| refuse(path, format!("'{name}' is {:?}", tensor.kind())))?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        views.push((
            name,
            Bytes {
                tensor,
                dtype,
                shape,
            },
        ));
    }
    safetensors::serialize_to_file(views, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => Error::Io {
            path: path.to_owned(),
            source,
        },
        other => refuse(path, other.to_string()),
    })
}

/// Reads all tensors of `path` to the CPU.
pub(crate) fn read(path: &Path) -> Result<BTreeMap<String, Tensor>, Error> {
    let file = std::fs::File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is only read; a checkpoint is not written to after its commit.
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path))?;
    let parsed = SafeTensors::deserialize(&map)
        .map_err(|e| refuse(path, format!("{e}; the file is damaged")))?;
    let mut out = BTreeMap::new();
    for (name, view) in parsed.iter() {
        let kind = kind(view.dtype())
            .ok_or_else(|| refuse(path, format!("'{name}' is {:?}", view.dtype())))?;
        let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
        let tensor =
            Tensor::f_from_data_size(view.data(), &shape, kind).map_err(torch::Error::from)?;
        out.insert(name.to_owned(), tensor);
    }
    Ok(out)
}

fn refuse(path: &Path, what: String) -> Error {
    Error::Checkpoint {
        path: path.to_owned(),
        what,
    }
}

fn dtype(kind: Kind) -> Option<Dtype> {
    match kind {
        Kind::Float => Some(Dtype::F32),
        Kind::Double => Some(Dtype::F64),
        _ => None,
    }
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

struct Bytes<'a> {
    tensor: &'a Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let flat = self.tensor.to_device(tch::Device::Cpu).contiguous();
        let mut bytes = vec![0; self.data_len()];
        flat.copy_data_u8(&mut bytes, flat.numel());
        bytes.into()
    }
    fn data_len(&self) -> usize {
        self.tensor.numel() * if self.dtype == Dtype::F64 { 8 } else { 4 }
    }
}
