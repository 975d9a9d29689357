//! Parameters by Hugging Face name.

use crate::Error;
use arch::ModelConfig;
use std::collections::HashMap;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A model's parameters: contiguous tensors of one kind on one device, in the table's order.
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
    pub fn load(
        _dir: &Path,
        _config: &ModelConfig,
        _kind: Kind,
        _device: Device,
    ) -> Result<Self, Error> {
        todo!()
    }
    pub fn init(_config: &ModelConfig, _seed: u64, _kind: Kind, _device: Device) -> Self {
        todo!()
    }
    /// The tensor of a parameter.
    ///
    /// # Panics
    /// If the configuration has no such parameter.
    pub fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
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
}
