//! Named tensors in one safetensors file, bit for bit, and parts of them read back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use arch::Slice;
use model::files::TensorFile;
use model::weights::narrow;
use safetensors::{Dtype, View};
use tch::{Kind, Tensor};

use crate::Error;

/// Writes `tensors` to `path`, one at a time in memory beside their own storage.
pub(crate) fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: HashMap<String, String>,
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
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => Error::Io {
            path: path.to_owned(),
            source,
        },
        other => refuse(path, other.to_string()),
    })
}

/// A part of the tensor `name` of `file`, on the CPU. Nothing else of it is read.
pub(crate) fn read(file: &TensorFile, name: &str, part: &Slice) -> Result<Tensor, Error> {
    let missing = || refuse(file.path(), format!("tensor '{name}' is missing"));
    let (entry, bytes) = file.get(name).ok_or_else(missing)?;
    let fits = entry.shape.len() == part.start.len()
        && (0..entry.shape.len()).all(|d| part.start[d] + part.size[d] <= entry.shape[d]);
    if !fits {
        return Err(refuse(
            file.path(),
            format!(
                "tensor '{name}' is {:?}, too small for {part:?}",
                entry.shape
            ),
        ));
    }
    let row = entry.bytes() / entry.shape[0].max(1);
    let rows = part.start[0] * row..(part.start[0] + part.size[0]) * row;
    let mut shape: Vec<i64> = entry.shape.iter().map(|&n| n as i64).collect();
    shape[0] = part.size[0] as i64;
    let mut inner = part.clone();
    inner.start[0] = 0;
    let tensor = Tensor::f_from_data_size(&bytes[rows], &shape, entry.dtype.kind())
        .map_err(torch::Error::from)?;
    Ok(narrow(&tensor, &inner))
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
