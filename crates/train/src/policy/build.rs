//! A policy from whole weights or from files: each rank takes its slices.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arch::{Held, ModelConfig, Role};
use model::{Decoder, Weights};
use parallel::{Grads, Groups, Inside, Moe, Sharded, Units};
use tch::{Kind, Tensor};

use super::{Policy, Skips};
use crate::head::accumulation;
use crate::{Error, PolicyConfig};

impl Policy {
    /// Reads a Hugging Face directory; every rank reads its own slices only.
    ///
    /// # Errors
    /// A mesh that cannot carry the model; files that do not hold it.
    pub fn load(dir: &Path, config: PolicyConfig, groups: Rc<Groups>) -> Result<Policy, Error> {
        let model = ModelConfig::from_dir(dir).map_err(model::Error::from)?;
        let table = table(&model, &groups)?;
        let slices: Vec<_> = table
            .iter()
            .map(|h| (h.def.name.clone(), h.shard.clone()))
            .collect();
        let kind = accumulation(config.kind);
        let device = config.master_device();
        let masters = Weights::load_slices(dir, &model, &slices, kind, device)?;
        Policy::build(model, table, masters, dir.to_owned(), config, groups)
    }

    /// A policy over these whole master weights (fp32; fp64 for fp64 compute), of which it takes
    /// its slices. `source` is the directory whose other files [`Policy::export`] carries along.
    ///
    /// # Errors
    /// A mesh that cannot carry the model; weights of another kind.
    pub fn new(
        model: ModelConfig,
        masters: Weights,
        source: PathBuf,
        config: PolicyConfig,
        groups: Rc<Groups>,
    ) -> Result<Policy, Error> {
        let kind = accumulation(config.kind);
        if masters.kind() != kind {
            return Err(Error::Config(format!(
                "master weights are {:?}: load them as {kind:?}",
                masters.kind()
            )));
        }
        let table = table(&model, &groups)?;
        let device = config.master_device();
        let mut shards = Vec::with_capacity(table.len());
        for h in &table {
            let whole = masters.get(&h.def.name).to_device(device);
            let shard = if h.shard.numel() == h.def.numel() {
                whole
            } else {
                // a copy, so that the rest of the tensor is not kept
                model::weights::narrow(&whole, &h.shard).copy()
            };
            shards.push((h.def.name.clone(), shard));
        }
        let shards = Weights::of(shards, kind, device);
        Policy::build(model, table, shards, source, config, groups)
    }

    fn build(
        model: ModelConfig,
        table: Vec<Held>,
        masters: Weights,
        source: PathBuf,
        config: PolicyConfig,
        groups: Rc<Groups>,
    ) -> Result<Policy, Error> {
        if !matches!(config.kind, Kind::Float | Kind::BFloat16 | Kind::Double) {
            return Err(Error::Config(format!(
                "compute kind {:?} cannot train: use fp32 or bf16",
                config.kind
            )));
        }
        if !(config.temperature > 0.0 && config.temperature.is_finite()) {
            return Err(Error::Config(format!(
                "temperature {} scales no log-probabilities: use one above 0",
                config.temperature
            )));
        }
        if config.router_aux_loss_coef != 0.0 && model.experts.is_none() {
            return Err(Error::Config(format!(
                "router_aux_loss_coef is {}, but this {} has no experts: leave it out",
                config.router_aux_loss_coef, model.family.model_type
            )));
        }
        let inside = Inside::new(
            groups.cp.clone(),
            groups.tp.clone(),
            groups.mesh.sp,
            model.vocab_size,
        );
        let decays = table
            .iter()
            .map(|h| {
                let embedding = matches!(h.def.role, Role::Embed | Role::Head);
                let decay = h.def.decay && (config.decay_embeddings || !embedding);
                (h.def.name.clone(), decay)
            })
            .collect();
        let decoder = Decoder::new(model);
        let units = Rc::new(Units::new(&table, &groups)?);
        let head = decoder.lm_head_name();
        let coord = groups.mesh.coord(groups.rank);
        let head = (coord.pp + 1 == groups.mesh.pp).then_some(head);
        let kind = accumulation(config.kind);
        let (to, separate) = (config.device, config.master_is_apart());
        // the shards move over as they are copied: both never exist whole
        let mut shards: HashMap<String, Tensor> = HashMap::new();
        let masters = if separate {
            Some(masters)
        } else {
            shards = masters.into_tensors().into_iter().collect();
            None
        };
        let mut make = |part: &parallel::Part| -> Result<Tensor, Error> {
            Ok(match &masters {
                Some(masters) => {
                    masters
                        .get(&part.name)
                        .to_device(to)
                        .to_dtype(config.kind, false, true)
                }
                None => shards
                    .remove(&part.name)
                    .ok_or_else(|| Error::Config(format!("'{}' has no weights", part.name)))?,
            })
        };
        let sharded = Sharded::new(
            units.clone(),
            &decoder.segments,
            head,
            (config.kind, to),
            config.reshard,
            &mut make,
        )?;
        let mut by_name: HashMap<String, Tensor> = sharded.shards().into_iter().collect();
        let in_order = table.iter().filter_map(|h| {
            let tensor = by_name.remove(&h.def.name)?;
            Some((h.def.name.clone(), tensor))
        });
        let weights = Weights::of(in_order.collect(), config.kind, to);
        let mine: HashSet<&str> = table.iter().map(|h| h.def.name.as_str()).collect();
        let held = decoder.holding(|name| mine.contains(name));
        Ok(Policy {
            grads: Grads::of(units, kind, to),
            held,
            decoder,
            table,
            sharded,
            weights,
            masters,
            skips: Skips::default(),
            source,
            decays,
            ops: Box::new(kernels::Fused),
            moe: Moe::across(groups.ep.clone()),
            config,
            groups,
            inside,
        })
    }
}

/// What this rank has of the model, if the mesh can carry it.
fn table(model: &ModelConfig, groups: &Groups) -> Result<Vec<Held>, Error> {
    groups.mesh.check(model).map_err(model::Error::from)?;
    Ok(arch::held(model, &groups.mesh, groups.rank))
}
