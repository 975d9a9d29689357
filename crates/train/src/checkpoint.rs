//! Checkpoints: masters and moments by Hugging Face name, and where training stands.
//!
//! A directory of `state.json`, `weights.safetensors` (masters under their names) and
//! `optimizer.safetensors` (`first.NAME`, `second.NAME`). What is loaded equals what was saved bit
//! for bit. The directory's atomicity is its committer's business.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::Tensor;

use crate::Error;
use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::policy::{Policy, Skips};
use crate::tensors;

const FORMAT: u32 = 1;
const STATE: &str = "state.json";
const WEIGHTS: &str = "weights.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Where training stands; what the stage wants back beside weights and optimizer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Steps done.
    pub step: u64,
    /// Where the data stream stands.
    pub cursor: u64,
    /// Whatever else the stage needs, such as kept groups.
    pub extra: Value,
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    /// The model's `config.json`: a checkpoint belongs to this model.
    model: Map<String, Value>,
    dtype: String,
    optimizer: OptimizerConfig,
    updates: u64,
    skips: Skips,
    state: CheckpointState,
}

impl Policy {
    /// Writes a checkpoint into `dir`, which exists. All ranks hold the same; rank 0 calls it.
    ///
    /// # Errors
    /// What the file system says, such as a full disk.
    pub fn save_checkpoint(
        &self,
        dir: &Path,
        optimizer: &Optimizer,
        state: &CheckpointState,
    ) -> Result<(), Error> {
        tensors::write(&dir.join(WEIGHTS), self.masters().iter())?;
        let moments = [("first", &optimizer.first), ("second", &optimizer.second)];
        let named: Vec<(String, &Tensor)> = moments
            .iter()
            .flat_map(|(part, map)| {
                map.iter()
                    .map(move |(name, t)| (format!("{part}.{name}"), t))
            })
            .collect();
        tensors::write(
            &dir.join(OPTIMIZER),
            named.iter().map(|(name, t)| (name.as_str(), *t)),
        )?;
        let state = State {
            format: FORMAT,
            model: self.decoder.config.raw.clone(),
            dtype: format!("{:?}", self.config().kind),
            optimizer: optimizer.config,
            updates: optimizer.updates,
            skips: self.skips,
            state: state.clone(),
        };
        let path = dir.join(STATE);
        let text = serde_json::to_vec_pretty(&state).expect("plain data serialises");
        std::fs::write(&path, text).map_err(Error::io(&path))
    }

    /// Restores what [`Policy::save_checkpoint`] wrote, bit for bit. Every rank calls it.
    ///
    /// # Errors
    /// A checkpoint of another model, dtype or optimizer; a file that is not what it claims to be.
    /// The policy and optimizer are then as before.
    pub fn load_checkpoint(
        &mut self,
        dir: &Path,
        optimizer: &mut Optimizer,
    ) -> Result<CheckpointState, Error> {
        let path = dir.join(STATE);
        let refuse = |what: String| Error::Checkpoint {
            path: path.clone(),
            what,
        };
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let saved: State = serde_json::from_slice(&text)
            .map_err(|e| refuse(format!("{e}; it is damaged or of another version")))?;
        if saved.format != FORMAT {
            return Err(refuse(format!(
                "format {} where {FORMAT} is known",
                saved.format
            )));
        }
        if let Some(key) = first_difference(&saved.model, &self.decoder.config.raw) {
            return Err(refuse(format!(
                "it belongs to another model: '{key}' of its config.json differs; start without resuming"
            )));
        }
        let dtype = format!("{:?}", self.config().kind);
        if saved.dtype != dtype {
            return Err(refuse(format!(
                "dtype {} where training is in {dtype}",
                saved.dtype
            )));
        }
        if saved.optimizer != optimizer.config {
            return Err(refuse(format!(
                "optimizer {:?} where {:?} is asked for",
                saved.optimizer, optimizer.config
            )));
        }
        let masters = tensors::read(&dir.join(WEIGHTS))?;
        self.fits(&masters, &dir.join(WEIGHTS), true)?;
        let mut first = BTreeMap::new();
        let mut second = BTreeMap::new();
        let device = self.config().device;
        for (name, tensor) in tensors::read(&dir.join(OPTIMIZER))? {
            let tensor = tensor.to_device(device);
            match name.split_once('.') {
                Some(("first", rest)) => first.insert(rest.to_owned(), tensor),
                Some(("second", rest)) => second.insert(rest.to_owned(), tensor),
                _ => return Err(refuse(format!("unknown optimizer tensor '{name}'"))),
            };
        }
        for moments in [&first, &second] {
            self.fits(moments, &dir.join(OPTIMIZER), !moments.is_empty())?;
        }
        tch::no_grad(|| {
            for (name, tensor) in &masters {
                self.masters().get(name).shallow_clone().copy_(tensor);
            }
        });
        self.publish();
        self.skips = saved.skips;
        optimizer.updates = saved.updates;
        optimizer.first = first;
        optimizer.second = second;
        Ok(saved.state)
    }

    /// Checks names, shapes and kinds against the masters; `all` wants every one of them.
    fn fits(
        &self,
        tensors: &BTreeMap<String, Tensor>,
        path: &Path,
        all: bool,
    ) -> Result<(), Error> {
        let refuse = |what: String| {
            Err(Error::Checkpoint {
                path: path.to_owned(),
                what,
            })
        };
        let masters: BTreeMap<&str, &Tensor> = self.masters().iter().collect();
        for (name, tensor) in tensors {
            let Some(master) = masters.get(name.as_str()) else {
                return refuse(format!("tensor '{name}' is no parameter of this model"));
            };
            if tensor.size() != master.size() || tensor.kind() != master.kind() {
                return refuse(format!(
                    "tensor '{name}' is {:?} {:?}, the model's is {:?} {:?}",
                    tensor.kind(),
                    tensor.size(),
                    master.kind(),
                    master.size()
                ));
            }
        }
        match masters
            .keys()
            .find(|name| all && !tensors.contains_key(**name))
        {
            Some(name) => refuse(format!("tensor '{name}' is missing")),
            None => Ok(()),
        }
    }
}

fn first_difference(a: &Map<String, Value>, b: &Map<String, Value>) -> Option<String> {
    let keys = a.keys().chain(b.keys());
    keys.into_iter()
        .find(|key| a.get(*key) != b.get(*key))
        .cloned()
}
