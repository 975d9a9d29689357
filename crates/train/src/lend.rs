//! The policy's weights as another arrangement of the same ranks holds them.

use std::collections::HashMap;

use arch::Mesh;
use model::Weights;
use parallel::Reshard;
use tch::Tensor;

use crate::{Error, Policy};

impl Policy {
    /// What this rank computes with when the ranks are arranged as `mesh`: the compute weights as
    /// of the last update, under their version, moved over all ranks (which call this together) by
    /// slice tables. `None` where every rank has its part already: [`Policy::weights`] serve.
    ///
    /// # Errors
    /// A rank that is gone.
    pub fn rollout_weights(&self, mesh: &Mesh) -> Result<Option<Weights>, Error> {
        let groups = self.groups();
        let config = &self.decoder.config;
        let reshard = Reshard::plan(config, &groups.mesh, mesh, groups.rank);
        if reshard.is_still() {
            return Ok(None);
        }
        let (kind, device) = (self.weights.kind(), self.weights.device());
        let stored = |name: &str| Ok(self.weights.get(name).shallow_clone());
        let mut moved: HashMap<String, Tensor> =
            reshard.run(&stored, kind, device, &*groups.world)?;
        let in_order = config.params().into_iter().filter_map(|def| {
            let tensor = moved.remove(&def.name)?;
            Some((def.name, tensor))
        });
        let mut weights = Weights::of(in_order.collect(), kind, device);
        weights.version = self.weights.version;
        Ok(Some(weights))
    }
}
