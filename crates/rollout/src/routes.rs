//! Which experts rows went to, kept beside their keys and values: a prefix found in the cache brings
//! its choices along.

use crate::batch::Batch;
use crate::blocks::BLOCK;
use arch::ModelConfig;
use model::Routing;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Looks at the routers of one forward. Layers are seen in ascending order.
pub struct Record {
    wanted: bool,
    /// Ids `[rows, per_token]` of each layer with experts.
    layers: RefCell<Vec<Tensor>>,
}

impl Record {
    /// Nothing seen yet; `wanted`: whether to look at all.
    pub fn new(wanted: bool) -> Self {
        Self {
            wanted,
            layers: RefCell::default(),
        }
    }

    /// What was seen: `choices` ids for each row, layer after layer.
    fn rows(self) -> Vec<i64> {
        let layers = self.layers.into_inner();
        if layers.is_empty() {
            return Vec::new();
        }
        let all = Tensor::cat(&layers, 1).to_device(Device::Cpu).contiguous();
        let mut ids = vec![0i64; all.numel()];
        all.copy_data(&mut ids, all.numel());
        ids
    }
}

impl Routing for Record {
    fn replay(&self, _: usize) -> Option<Tensor> {
        None
    }
    fn routed(&self, _: usize, probabilities: Tensor, ids: &Tensor) -> Tensor {
        if self.wanted {
            self.layers.borrow_mut().push(ids.to_kind(Kind::Int64));
        }
        probabilities
    }
}

/// Choices of every token that the cache holds.
#[derive(Default)]
pub struct Routes {
    /// Ids per token; 0 where nothing is recorded.
    choices: usize,
    /// By block and slot, `choices` each.
    ids: Vec<u16>,
}

impl Routes {
    /// For a cache of this many blocks; holds nothing for a model without experts.
    pub fn new(config: &ModelConfig, blocks: usize, wanted: bool) -> Self {
        let experts = config.experts.as_ref().filter(|_| wanted);
        let choices = experts.map_or(0, |e| e.choices());
        Self {
            choices,
            ids: vec![0; blocks * BLOCK * choices],
        }
    }

    /// A record for the next forward.
    pub fn record(&self) -> Record {
        Record::new(self.choices > 0)
    }

    /// Keeps what a forward's rows chose.
    pub fn keep(&mut self, batch: &Batch, record: Record) {
        let rows = record.rows();
        for (row, ids) in rows.chunks_exact(self.choices.max(1)).enumerate() {
            let (block, slot) = batch.place(row);
            let at = (block * BLOCK + slot) * self.choices;
            for (kept, id) in self.ids[at..at + self.choices].iter_mut().zip(ids) {
                // a model has at most 65536 experts in a layer
                *kept = *id as u16;
            }
        }
    }

    /// The choices of the first `tokens` tokens of a sequence with this block table.
    pub fn of(&self, table: &[u32], tokens: usize) -> Vec<u16> {
        let mut out = Vec::with_capacity(tokens * self.choices);
        let size = BLOCK * self.choices;
        for &block in table {
            let rest = tokens * self.choices - out.len();
            let at = block as usize * size;
            out.extend(&self.ids[at..at + rest.min(size)]);
        }
        out
    }

    /// Copies a block.
    pub fn copy(&mut self, from: u32, to: u32) {
        let size = BLOCK * self.choices;
        let from = from as usize * size;
        self.ids.copy_within(from..from + size, to as usize * size);
    }
}
