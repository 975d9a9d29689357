//! A model directory to another: tensors byte for byte unless another dtype is asked for.

use crate::Error;
use crate::files::{Dtype, Entry, ModelFiles, write_model};
use crate::save::{MAX_SHARD_BYTES, copy, copy_companions, write_tensor};
use crate::weights::check_fit;
use arch::ModelConfig;
use std::path::Path;
use tch::Tensor;

/// What a conversion changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    /// Element type of the result; `None` keeps each tensor's bytes.
    pub dtype: Option<Dtype>,
    /// Largest file, in bytes of tensors.
    pub max_shard_bytes: u64,
}

impl Default for Conversion {
    fn default() -> Self {
        Self {
            dtype: None,
            max_shard_bytes: MAX_SHARD_BYTES,
        }
    }
}

/// Writes the model in `from` to `to`, which must exist: every tensor that is there (a tied LM
/// matrix written out included), `config.json` (its bytes, unless the dtype changes) and the
/// companions. Holds one tensor in memory at a time. How the source was cut into files does not
/// matter to the result. Converting and exporting are both this.
///
/// # Errors
/// As [`ModelConfig::from_dir`] and [`crate::Weights::load`]; what cannot be written.
pub fn convert(from: &Path, to: &Path, conversion: Conversion) -> Result<ModelConfig, Error> {
    let config = ModelConfig::from_dir(from)?;
    let files = ModelFiles::open(from)?;
    check_fit(&files, &config)?;

    let defs = config.params();
    let mut names: Vec<&str> = defs.iter().map(|d| d.name.as_str()).collect();
    let others: Vec<_> = files
        .names()
        .into_iter()
        .filter(|n| !names.contains(n))
        .collect();
    names.extend(others);
    let entries: Vec<Entry> = names
        .iter()
        .filter_map(|n| files.get(n))
        .map(|(e, _)| Entry {
            dtype: conversion.dtype.unwrap_or(e.dtype),
            ..e.clone()
        })
        .collect();

    write_model(to, &entries, conversion.max_shard_bytes, |i, out| {
        let want = &entries[i];
        let Some((have, bytes)) = files.get(&want.name) else {
            return Ok(());
        };
        if have.dtype == want.dtype {
            return out.write_all(bytes).map_err(Error::io("write", to));
        }
        let shape: Vec<i64> = have.shape.iter().map(|&s| s as i64).collect();
        let tensor = Tensor::f_from_data_size(bytes, &shape, have.dtype.kind())?;
        write_tensor(&tensor, want.dtype, out)
    })?;
    match conversion.dtype {
        Some(dtype) => {
            let path = to.join("config.json");
            std::fs::write(&path, config.to_json(Some(dtype.config_name())))
                .map_err(Error::io("write", &path))?;
        }
        None => copy(&from.join("config.json"), &to.join("config.json"))?,
    }
    copy_companions(from, to)?;
    Ok(config)
}
