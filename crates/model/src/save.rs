//! Model directories written in the Hugging Face form.

use crate::files::{Dtype, Entry, write_model};
use crate::{Error, Weights};
use arch::ModelConfig;
use std::io::Write;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Shard size that Hugging Face uses by default.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// How weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// Element type of the files; `None` is that of the weights.
    pub dtype: Option<Dtype>,
    /// Largest file, in bytes of tensors.
    pub max_shard_bytes: u64,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            max_shard_bytes: MAX_SHARD_BYTES,
        }
    }
}

/// Files of a model directory that are neither weights nor `config.json` and go wherever the
/// model goes.
pub const COMPANIONS: &[&str] = &[
    "added_tokens.json",
    "additional_chat_templates",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

impl Weights {
    /// Writes `config.json` and the weights to `dir`, which must exist. A tied LM matrix is not
    /// written. The bytes depend on nothing but the values and the options.
    ///
    /// # Errors
    /// The file that cannot be written.
    pub fn save(
        &self,
        config: &ModelConfig,
        dir: &Path,
        options: SaveOptions,
    ) -> Result<(), Error> {
        save_tensors(config, dir, self.kind(), options, &mut |name| {
            Ok(self.get(name).shallow_clone())
        })
    }
}

/// As [`Weights::save`], of tensors of `kind` that `take` gives one after the other, in the table's
/// order; each is dropped when it is written.
///
/// # Errors
/// Those of `take`; the file that cannot be written.
pub fn save_tensors(
    config: &ModelConfig,
    dir: &Path,
    kind: Kind,
    options: SaveOptions,
    take: &mut dyn FnMut(&str) -> Result<Tensor, Error>,
) -> Result<(), Error> {
    let Some(dtype) = options.dtype.or_else(|| Dtype::of(kind)) else {
        return Err(Error::Tensors(format!(
            "weights of kind {kind:?} cannot be written"
        )));
    };
    let entries: Vec<_> = config
        .params()
        .into_iter()
        .map(|p| Entry {
            name: p.name,
            dtype,
            shape: p.shape,
        })
        .collect();
    let text = config.to_json(Some(dtype.config_name()));
    let path = dir.join("config.json");
    std::fs::write(&path, text).map_err(Error::io("write", &path))?;
    write_model(dir, &entries, options.max_shard_bytes, |i, out| {
        write_tensor(&take(&entries[i].name)?, dtype, out)
    })
}

/// Writes a tensor's elements in row-major order.
pub(crate) fn write_tensor(
    tensor: &Tensor,
    dtype: Dtype,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let flat = tensor
        .f_detach()?
        .f_to_device(Device::Cpu)?
        .f_to_kind(dtype.kind())?
        .f_contiguous()?;
    // SAFETY: a contiguous CPU tensor has `numel` elements at `data_ptr`, alive while `flat` is.
    let bytes = unsafe {
        std::slice::from_raw_parts(flat.data_ptr().cast::<u8>(), flat.numel() * dtype.size())
    };
    out.write_all(bytes).map_err(|source| Error::Io {
        action: "write",
        path: "the weights".into(),
        source,
    })
}

/// Copies the [`COMPANIONS`] that are in `from` to `to`, byte for byte.
///
/// # Errors
/// The file that cannot be copied.
pub fn copy_companions(from: &Path, to: &Path) -> Result<(), Error> {
    for name in COMPANIONS {
        let source = from.join(name);
        if source.is_dir() {
            let inner = to.join(name);
            std::fs::create_dir_all(&inner).map_err(Error::io("create", &inner))?;
            for entry in std::fs::read_dir(&source).map_err(Error::io("read", &source))? {
                let file = entry.map_err(Error::io("read", &source))?;
                copy(&file.path(), &inner.join(file.file_name()))?;
            }
        } else if source.exists() {
            copy(&source, &to.join(name))?;
        }
    }
    Ok(())
}

/// Copies bytes, not modes: a read-only source must not make an output that cannot be replaced.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = std::fs::File::open(from).map_err(Error::io("open", from))?;
    let mut target = std::fs::File::create(to).map_err(Error::io("create", to))?;
    std::io::copy(&mut source, &mut target).map_err(Error::io("write", to))?;
    Ok(())
}
