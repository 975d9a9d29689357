//! Parameters by Hugging Face name.

use crate::Error;
use crate::files::{ModelFiles, TensorSource};
use arch::init::Normals;
use arch::params::{EMBED, LM_HEAD};
use arch::{Init, ModelConfig, ParamDef, Slice};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A model's parameters: contiguous tensors of one kind on one device, in the table's order.
///
/// Values change in place (under `no_grad`, through [`Weights::get`]); who changes them calls
/// [`Weights::touch`].
#[derive(Debug)]
pub struct Weights {
    names: Vec<String>,
    tensors: HashMap<String, Tensor>,
    kind: Kind,
    device: Device,
    /// Rises whenever a value changes, so that what was computed from older values can tell.
    pub version: u64,
}

impl Weights {
    /// Loads a model directory's weights, which must hold exactly the tensors of `config`. A tied
    /// LM matrix may be in the files as well, if it equals the embedding.
    ///
    /// # Errors
    /// A bad file; missing, unexpected or misshaped tensors, by name.
    pub fn load(
        dir: &Path,
        config: &ModelConfig,
        kind: Kind,
        device: Device,
    ) -> Result<Self, Error> {
        let files = ModelFiles::open(dir)?;
        check_fit(&files, config)?;
        Self::build(config, kind, device, |def| {
            let (entry, bytes) = files.get(&def.name).ok_or_else(|| missing(&files, def))?;
            let shape: Vec<i64> = entry.shape.iter().map(|&s| s as i64).collect();
            let tensor = Tensor::f_from_data_size(bytes, &shape, entry.dtype.kind())?;
            Ok(tensor.to_device(device).to_kind(kind))
        })
    }

    /// Loads parts of a model directory's parameters: one tensor for each name and slice, with the
    /// slice's shape. Only these parts are held in memory. The files must fit `config` as for
    /// [`Weights::load`].
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_slices(
        dir: &Path,
        config: &ModelConfig,
        slices: &[(String, Slice)],
        kind: Kind,
        device: Device,
    ) -> Result<Self, Error> {
        let files = ModelFiles::open(dir)?;
        check_fit(&files, config)?;
        let mut tensors = Vec::with_capacity(slices.len());
        for (name, slice) in slices {
            let (entry, bytes) = files.get(name).ok_or_else(|| Error::Fit {
                path: dir.to_path_buf(),
                problem: format!("the weights lack '{name}'"),
            })?;
            let shape: Vec<i64> = entry.shape.iter().map(|&s| s as i64).collect();
            // rows are the outermost dimension, so their bytes are a range; nothing else is read
            let row = entry.bytes() / entry.shape[0].max(1);
            let rows = slice.start[0] * row..(slice.start[0] + slice.size[0]) * row;
            let mut part = shape.clone();
            part[0] = slice.size[0] as i64;
            let mut inner = slice.clone();
            inner.start[0] = 0;
            let tensor = Tensor::f_from_data_size(&bytes[rows], &part, entry.dtype.kind())?;
            let tensor = narrow(&tensor, &inner)
                .f_to_device(device)?
                .f_to_kind(kind)?;
            tensors.push((name.clone(), tensor.contiguous()));
        }
        Ok(Self::of(tensors, kind, device))
    }

    /// These tensors, contiguous, of `kind` and on `device`, in this order.
    pub fn of(tensors: Vec<(String, Tensor)>, kind: Kind, device: Device) -> Self {
        Self {
            names: tensors.iter().map(|(name, _)| name.clone()).collect(),
            tensors: tensors.into_iter().collect(),
            kind,
            device,
            version: 0,
        }
    }

    /// The tensors in order; they share storage with these weights, which are used up.
    pub fn into_tensors(mut self) -> Vec<(String, Tensor)> {
        let names = std::mem::take(&mut self.names).into_iter();
        names
            .filter_map(|name| {
                let tensor = self.tensors.remove(&name)?;
                Some((name, tensor))
            })
            .collect()
    }

    /// Fresh values: each element a function of the seed, the parameter's name and its place.
    ///
    /// # Errors
    /// libtorch's, out of memory for one.
    pub fn init(
        config: &ModelConfig,
        seed: u64,
        kind: Kind,
        device: Device,
    ) -> Result<Self, Error> {
        Self::build(config, kind, device, |def| {
            let n = def.numel();
            let mut values = vec![0f32; n];
            match def.init {
                Init::Zeros => {}
                Init::Ones => values.fill(1.0),
                Init::Normal(std) => {
                    const CHUNK: usize = 1 << 16;
                    let draws = Normals::new(seed, &def.name);
                    values
                        .par_chunks_mut(CHUNK)
                        .enumerate()
                        .for_each(|(i, out)| draws.fill((i * CHUNK) as u64, std, out));
                }
            }
            let shape: Vec<i64> = def.shape.iter().map(|&s| s as i64).collect();
            let tensor = Tensor::f_from_slice(&values)?.f_view(shape.as_slice())?;
            Ok(tensor.to_device(device).to_kind(kind))
        })
    }

    /// Weights from tensors by name, made contiguous, of `kind` on `device`. Tensors that fit
    /// already are shared, not copied.
    ///
    /// # Errors
    /// A tensor of `config` that is not given or has another shape.
    pub fn from_tensors(
        config: &ModelConfig,
        mut tensors: HashMap<String, Tensor>,
        kind: Kind,
        device: Device,
    ) -> Result<Self, Error> {
        Self::build(config, kind, device, |def| {
            let tensor = tensors
                .remove(&def.name)
                .ok_or_else(|| Error::Tensors(format!("tensor '{}' is missing", def.name)))?;
            let size = tensor.size();
            if !same_shape(&size, &def.shape) {
                return Err(Error::Tensors(format!(
                    "tensor '{}' is {size:?}, but the configuration wants {:?}",
                    def.name, def.shape
                )));
            }
            Ok(tensor.f_to_device(device)?.f_to_kind(kind)?)
        })
    }

    /// A copy in another kind; never shares storage.
    ///
    /// # Errors
    /// libtorch's, out of memory for one.
    pub fn copy_as(&self, kind: Kind) -> Result<Self, Error> {
        let mut tensors = HashMap::with_capacity(self.names.len());
        for (name, tensor) in self.iter() {
            let copy = tensor.f_detach()?.f_to_dtype(kind, false, true)?;
            tensors.insert(name.to_string(), copy);
        }
        Ok(Self {
            names: self.names.clone(),
            tensors,
            kind,
            device: self.device,
            version: self.version,
        })
    }

    fn build(
        config: &ModelConfig,
        kind: Kind,
        device: Device,
        mut make: impl FnMut(&ParamDef) -> Result<Tensor, Error>,
    ) -> Result<Self, Error> {
        let mut out = Self {
            names: Vec::new(),
            tensors: HashMap::new(),
            kind,
            device,
            version: 0,
        };
        for def in config.params() {
            let tensor = make(&def)?.contiguous();
            out.tensors.insert(def.name.clone(), tensor);
            out.names.push(def.name);
        }
        Ok(out)
    }

    /// The tensor of a parameter.
    ///
    /// # Panics
    /// If the configuration has no such parameter.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors
            .get(name)
            .unwrap_or_else(|| panic!("the model has no parameter '{name}'"))
    }

    /// Names in the table's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Name and tensor, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.names.iter().map(|n| (n.as_str(), &self.tensors[n]))
    }

    /// Kind of every tensor.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Device of every tensor.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Says that values have changed.
    pub fn touch(&mut self) {
        self.version += 1;
    }
}

/// The part of a tensor that a slice names; shares storage.
pub fn narrow(tensor: &Tensor, slice: &Slice) -> Tensor {
    let dims = slice.start.iter().zip(&slice.size).enumerate();
    dims.fold(tensor.shallow_clone(), |t, (dim, (&start, &size))| {
        t.narrow(dim as i64, start as i64, size as i64)
    })
}

pub(crate) fn same_shape(have: &[i64], want: &[usize]) -> bool {
    have.len() == want.len() && have.iter().zip(want).all(|(&h, &w)| h == w as i64)
}

/// Checks that files hold the tensors of a configuration, and no others.
///
/// # Errors
/// The first few at fault, by name.
pub fn check_fit(files: &dyn TensorSource, config: &ModelConfig) -> Result<(), Error> {
    let bad = |problem: String| Error::Fit {
        path: files.dir().to_path_buf(),
        problem,
    };
    let defs = config.params();
    let absent: Vec<_> = defs
        .iter()
        .filter(|d| files.entry(&d.name).is_none())
        .map(|d| d.name.as_str())
        .collect();
    if !absent.is_empty() {
        let help = if absent == [LM_HEAD] {
            "; if the LM matrix is the embedding, config.json must set tie_word_embeddings"
        } else {
            ""
        };
        return Err(bad(format!(
            "the weights lack {}, which config.json asks for{help}",
            list(&absent)
        )));
    }
    let known: HashMap<_, _> = defs.iter().map(|d| (d.name.as_str(), d)).collect();
    let unexpected: Vec<_> = files
        .names()
        .into_iter()
        .filter(|n| !known.contains_key(n) && !is_ignored(n, config))
        .collect();
    if !unexpected.is_empty() {
        return Err(bad(format!(
            "the weights hold {}, which a {} of this config.json does not have",
            list(&unexpected),
            config.family.model_type
        )));
    }
    for def in &defs {
        if let Some(entry) = files.entry(&def.name)
            && entry.shape != def.shape
        {
            return Err(bad(format!(
                "tensor '{}' is {:?}, but config.json makes it {:?}",
                def.name, entry.shape, def.shape
            )));
        }
    }
    if config.tie_embeddings
        && let (Some(head), Some(embed)) = (files.entry(LM_HEAD), files.entry(EMBED))
        && (head.dtype != embed.dtype
            || head.shape != embed.shape
            || files.bytes(LM_HEAD)? != files.bytes(EMBED)?)
    {
        return Err(bad(format!(
            "'{LM_HEAD}' differs from '{EMBED}', but config.json sets tie_word_embeddings; set it \
             to false"
        )));
    }
    Ok(())
}

/// A tied LM matrix written out, and the buffers that old Llama files carry.
fn is_ignored(name: &str, config: &ModelConfig) -> bool {
    (config.tie_embeddings && name == LM_HEAD) || name.ends_with(".rotary_emb.inv_freq")
}

fn missing(files: &ModelFiles, def: &ParamDef) -> Error {
    Error::Fit {
        path: files.dir().to_path_buf(),
        problem: format!("the weights lack '{}'", def.name),
    }
}

fn list(names: &[&str]) -> String {
    const SHOWN: usize = 4;
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(|n| format!("'{n}'"))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
