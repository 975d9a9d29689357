//! A model directory to another: tensors byte for byte unless another dtype is asked for.

use crate::Error;
use crate::dcp::{self, Checkpoint};
use crate::files::{Dtype, Entry, INDEX, ModelFiles, SINGLE, TensorSource, write_model};
use crate::save::{MAX_SHARD_BYTES, copy, copy_companions, write_tensor};
use crate::weights::check_fit;
use arch::ModelConfig;
use arch::params::{EMBED, LM_HEAD};
use std::io::Write;
use std::path::Path;
use tch::Tensor;

/// Where a model comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Directory of the weights: safetensors, or a distributed checkpoint of PyTorch.
    pub weights: &'a Path,
    /// Directory of `config.json` and the companions.
    pub config: &'a Path,
    /// What stands before the Hugging Face names in a distributed checkpoint; `None` finds it.
    pub prefix: Option<&'a str>,
}

impl<'a> Origin<'a> {
    /// A directory that holds all of a model.
    pub fn of(dir: &'a Path) -> Self {
        Self {
            weights: dir,
            config: dir,
            prefix: None,
        }
    }
}

/// How weights are laid out in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Safetensors, as Hugging Face has them.
    #[default]
    Safetensors,
    /// A distributed checkpoint of PyTorch.
    Dcp,
}

/// What a conversion changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    /// Element type of the result; `None` keeps each tensor's bytes.
    pub dtype: Option<Dtype>,
    /// Largest file, in bytes of tensors.
    pub max_shard_bytes: u64,
    /// Files of the result.
    pub format: Format,
}

impl Default for Conversion {
    fn default() -> Self {
        Self {
            dtype: None,
            max_shard_bytes: MAX_SHARD_BYTES,
            format: Format::default(),
        }
    }
}

/// What a conversion wrote.
#[derive(Debug, Clone)]
pub struct Converted {
    /// The model's configuration.
    pub config: ModelConfig,
    /// Tensors written.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// Writes a model to `to`, which must exist: its tensors, `config.json` (its bytes, unless the
/// dtype changes) and the companions. Holds one tensor in memory at a time. How the source was
/// cut into files does not matter to the result. Converting and exporting are both this.
///
/// A tied LM matrix that safetensors files hold written out is kept. A state dictionary of torch
/// names a tied matrix twice, and so does a distributed checkpoint: it is dropped when one is read,
/// and shares the embedding's bytes when one is written.
///
/// # Errors
/// As [`ModelConfig::from_dir`], [`crate::Weights::load`] and [`Checkpoint::open`]; what cannot be
/// written.
pub fn convert(from: Origin, to: &Path, conversion: Conversion) -> Result<Converted, Error> {
    let config = ModelConfig::from_dir(from.config)?;
    let distributed = dcp::is_checkpoint(from.weights);
    let source = open(from, &config)?;
    check_fit(source.as_ref(), &config)?;

    let defs = config.params();
    let mut names: Vec<&str> = defs.iter().map(|d| d.name.as_str()).collect();
    if !distributed && conversion.format == Format::Safetensors {
        let all = source.names();
        let others: Vec<_> = all.into_iter().filter(|n| !names.contains(n)).collect();
        names.extend(others);
    }
    let entries: Vec<Entry> = names
        .iter()
        .filter_map(|n| source.entry(n))
        .map(|e| Entry {
            dtype: conversion.dtype.unwrap_or(e.dtype),
            ..e.clone()
        })
        .collect();

    let body = |i: usize, out: &mut dyn Write| {
        let want = &entries[i];
        let have = source.entry(&want.name).unwrap_or(want);
        let bytes = source.bytes(&want.name)?;
        if have.dtype == want.dtype {
            return out.write_all(&bytes).map_err(Error::io("write", to));
        }
        let shape: Vec<i64> = have.shape.iter().map(|&s| s as i64).collect();
        let tensor = Tensor::f_from_data_size(&bytes, &shape, have.dtype.kind())?;
        write_tensor(&tensor, want.dtype, out)
    };
    match conversion.format {
        Format::Safetensors => write_model(to, &entries, conversion.max_shard_bytes, body)?,
        Format::Dcp => {
            let embed = entries.iter().position(|e| e.name == EMBED);
            let tied = embed.filter(|_| config.tie_embeddings);
            let also = tied.map(|i| (LM_HEAD, i));
            dcp::write_checkpoint(to, &entries, also, conversion.max_shard_bytes, body)?;
        }
    }
    // what trained a distributed checkpoint need not be what its config.json was written for
    let stored = entries.first().map(|e| e.dtype);
    let stored = stored.filter(|d| distributed && entries.iter().all(|e| e.dtype == *d));
    let name = conversion.dtype.or(stored).map(Dtype::config_name);
    let said = ["dtype", "torch_dtype"].map(|key| config.raw.get(key).and_then(|v| v.as_str()));
    match name {
        Some(name) if conversion.dtype.is_some() || !said.contains(&Some(name)) => {
            let path = to.join("config.json");
            std::fs::write(&path, config.to_json(Some(name))).map_err(Error::io("write", &path))?;
        }
        _ => copy(&from.config.join("config.json"), &to.join("config.json"))?,
    }
    copy_companions(from.config, to)?;
    Ok(Converted {
        config,
        tensors: entries.len(),
        bytes: entries.iter().map(Entry::bytes).sum(),
    })
}

fn open(from: Origin, config: &ModelConfig) -> Result<Box<dyn TensorSource>, Error> {
    let dir = from.weights;
    let bad = |problem: String| Error::Fit {
        path: dir.to_path_buf(),
        problem,
    };
    if !dcp::is_checkpoint(dir) {
        return match from.prefix {
            None => Ok(Box::new(ModelFiles::open(dir)?)),
            Some(prefix) => Err(bad(format!(
                "is no distributed checkpoint, so names in it have no prefix '{prefix}'"
            ))),
        };
    }
    if let Some(other) = [SINGLE, INDEX].iter().find(|n| dir.join(n).exists()) {
        return Err(bad(format!(
            "has both {} of a distributed checkpoint and {other}; keep the one that is meant",
            dcp::METADATA
        )));
    }
    Ok(Box::new(Checkpoint::open(dir, config, from.prefix)?))
}
