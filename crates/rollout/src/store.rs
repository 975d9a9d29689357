//! The KV cache: its memory, who owns which block, and which weights it came from.

use crate::blocks::{BLOCK, Blocks};
use crate::cpu::memory::{Memory, Shape};
use crate::cpu::ops::RowOps;
use crate::paged::Tensors;
use crate::routes::Routes;
use crate::{Error, RolloutConfig};
use arch::ModelConfig;
use half::bf16;
use model::Weights;
use tch::{Device, Kind, Tensor};

/// Memory of a cache made without a size.
const DEFAULT_BYTES: usize = 512 << 20;
const DEFAULT_BYTES_GPU: usize = 8 << 30;

/// Keys and values, by what computes with them.
pub(crate) enum Store {
    F32(Memory<f32>),
    Bf16(Memory<bf16>),
    Libtorch(Tensors),
}

/// What a cache is made for.
#[derive(Debug, Clone, PartialEq)]
struct Made {
    shape: Shape,
    kind: Kind,
    device: Device,
    rows: bool,
    routes: bool,
}

/// Which values of which tensors: the tensors themselves, so that no other tensor can take their
/// place in memory, and their counters of in-place changes.
struct Stamp {
    version: u64,
    tensors: Vec<(Tensor, u64)>,
}

impl Stamp {
    fn new(weights: &Weights) -> Self {
        let tensors = weights
            .iter()
            .map(|(_, t)| (t.shallow_clone(), torch::storage::version(t)));
        Self {
            version: weights.version,
            tensors: tensors.collect(),
        }
    }

    fn holds(&self, weights: &Weights) -> bool {
        let same = |((t, n), (_, w)): (&(Tensor, u64), (&str, &Tensor))| {
            t.data_ptr() == w.data_ptr() && *n == torch::storage::version(w)
        };
        self.version == weights.version
            && self.tensors.len() == weights.names().len()
            && self.tensors.iter().zip(weights.iter()).all(same)
    }
}

/// Keys and values of sequences, kept between rollouts so that memory and prefixes are reused.
/// Prefixes of other weights, or of other values of the same weights, are never found in it.
pub struct KvCache {
    pub(crate) store: Store,
    pub(crate) blocks: Blocks,
    pub(crate) routes: Routes,
    made: Made,
    stamp: Option<Stamp>,
}

impl KvCache {
    /// A cache for a model. Its memory is taken from the system as it is first used (on CPU).
    ///
    /// # Errors
    /// libtorch's, where the memory cannot be had.
    pub fn new(
        config: &ModelConfig,
        weights: &Weights,
        sizes: &RolloutConfig,
    ) -> Result<Self, Error> {
        let made = Made::of(config, weights, sizes);
        let tokens = made.tokens(sizes);
        let blocks = tokens.div_ceil(BLOCK).clamp(1, u32::MAX as usize / BLOCK);
        let store = match made.kind {
            Kind::Float if made.rows => Store::F32(Memory::new(made.shape, blocks)),
            Kind::BFloat16 if made.rows => Store::Bf16(Memory::new(made.shape, blocks)),
            kind => Store::Libtorch(Tensors::new(made.shape, blocks, kind, made.device)),
        };
        Ok(Self {
            store,
            blocks: Blocks::new(blocks),
            routes: Routes::new(config, blocks, sizes.routes),
            made,
            stamp: None,
        })
    }

    /// Tokens that a cache of these sizes holds where a rank has `kv_heads` key and value heads.
    pub(crate) fn tokens_for(
        config: &ModelConfig,
        weights: &Weights,
        sizes: &RolloutConfig,
        kv_heads: usize,
    ) -> usize {
        let mut made = Made::of(config, weights, sizes);
        made.shape.kv_heads = kv_heads;
        made.tokens(sizes)
    }

    /// Tokens that it can hold.
    pub fn tokens(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    /// Makes ready for `weights`: prefixes that came from other values are forgotten.
    pub(crate) fn serve(
        &mut self,
        config: &ModelConfig,
        weights: &Weights,
        sizes: &RolloutConfig,
    ) -> Result<(), Error> {
        let asked = Made::of(config, weights, sizes);
        if self.made != asked {
            let text = |m: &Made| format!("{:?} in {:?} on {:?}", m.shape, m.kind, m.device);
            return Err(Error::CacheShape {
                made: text(&self.made),
                asked: text(&asked),
            });
        }
        if !self.stamp.as_ref().is_some_and(|s| s.holds(weights)) {
            self.blocks.forget();
            self.stamp = Some(Stamp::new(weights));
        }
        Ok(())
    }

    /// Whether the weights are still those that the cache serves.
    pub(crate) fn check(&self, weights: &Weights) -> Result<(), Error> {
        match &self.stamp {
            Some(s) if s.holds(weights) => Ok(()),
            s => Err(Error::WeightsChanged {
                expected: s.as_ref().map_or(0, |s| s.version),
                found: weights.version,
            }),
        }
    }

    pub(crate) fn copy(&mut self, from: u32, to: u32) {
        match &mut self.store {
            Store::F32(m) => m.copy(from as usize, to as usize),
            Store::Bf16(m) => m.copy(from as usize, to as usize),
            Store::Libtorch(t) => t.copy(from, to),
        }
        self.routes.copy(from, to);
    }
}

/// Key and value heads that these weights, all of a model's or a rank's part, have.
fn kv_heads(config: &ModelConfig, weights: &Weights) -> usize {
    let name = "model.layers.0.self_attn.k_proj.weight";
    weights.get(name).size()[0] as usize / config.head_dim
}

impl Made {
    /// Tokens of a cache of these sizes.
    fn tokens(&self, sizes: &RolloutConfig) -> usize {
        match sizes.cache_tokens {
            0 if self.device.is_cuda() => {
                DEFAULT_BYTES_GPU / self.shape.token_bytes(self.kind.elt_size_in_bytes()).max(1)
            }
            0 => DEFAULT_BYTES / self.shape.token_bytes(self.kind.elt_size_in_bytes()).max(1),
            n => n,
        }
    }

    fn of(config: &ModelConfig, weights: &Weights, sizes: &RolloutConfig) -> Self {
        let shape = Shape {
            layers: config.layers,
            kv_heads: kv_heads(config, weights),
            head_dim: config.head_dim,
        };
        let (kind, device) = (weights.kind(), weights.device());
        Self {
            shape,
            kind,
            device,
            rows: !sizes.plain && RowOps::takes(kind, device),
            routes: sizes.routes,
        }
    }
}
