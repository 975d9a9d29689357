//! Training attention over packed rows.

use super::{Attend, AttendSpec, Layout};
use crate::Error;
use tch::{Device, Tensor};

/// Attention over a [`Layout`].
#[derive(Debug)]
pub struct Packed {}

impl Packed {
    /// Prepares index tensors and masks for a layout.
    ///
    /// # Errors
    /// A layout that breaks its rules.
    pub fn new(layout: &Layout, _device: Device) -> Result<Self, Error> {
        layout.check()?;
        Ok(Self {})
    }
}

impl Attend for Packed {
    fn attend(&self, _: usize, _q: &Tensor, _k: &Tensor, _v: &Tensor, _: &AttendSpec) -> Tensor {
        todo!()
    }
}
