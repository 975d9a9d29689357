//! Paged keys and values on libtorch tensors: any device and kind, by gathering.
//!
//! The plain version of what [`crate::cpu`] does on the CPU. Sequences with equally many rows are
//! gathered and attended to together, padded to the longest of them.

use crate::batch::Batch;
use crate::blocks::BLOCK;
use crate::cpu::memory::Shape;
use crate::device::upload;
use model::{Attend, AttendSpec};
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// Keys and values of each layer, `[blocks * 16, kv_heads, head_dim]`.
pub struct Tensors {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
}

impl Tensors {
    /// Zeros for `blocks` blocks.
    pub fn new(shape: Shape, blocks: usize, kind: Kind, device: Device) -> Self {
        let size = [
            (blocks * BLOCK) as i64,
            shape.kv_heads as i64,
            shape.head_dim as i64,
        ];
        let all = || {
            (0..shape.layers)
                .map(|_| Tensor::zeros(size, (kind, device)))
                .collect()
        };
        Self {
            keys: all(),
            values: all(),
        }
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> Option<(&Tensor, &Tensor)> {
        Some((self.keys.get(layer)?, self.values.get(layer)?))
    }

    /// Copies a block of every layer.
    pub fn copy(&mut self, from: u32, to: u32) {
        let block = |t: &Tensor, id: u32| t.narrow(0, i64::from(id) * BLOCK as i64, BLOCK as i64);
        for t in self.keys.iter().chain(&self.values) {
            block(t, to).copy_(&block(t, from));
        }
    }
}

/// Sequences of a batch with equally many rows.
struct Peers {
    count: i64,
    /// Rows of each.
    len: i64,
    /// Where their rows lie in the batch, `[count * len]`.
    rows: Tensor,
    /// Slots of all that they may see, `[count * seen]`.
    slots: Tensor,
    /// Positions of their rows, `[count, 1, len, 1]`.
    positions: Tensor,
    seen: i64,
}

/// Attention of one forward.
pub struct Gathered<'a> {
    tensors: &'a Tensors,
    slots: Tensor,
    peers: Vec<Peers>,
    /// Masks by window, made when first asked for.
    masks: RefCell<Vec<(Option<usize>, Vec<Tensor>)>>,
}

impl<'a> Gathered<'a> {
    /// For the rows of `batch`.
    pub fn new(tensors: &'a Tensors, batch: &Batch, device: Device) -> Self {
        Self::of(tensors, batch, device, 1)
    }

    /// For the rows of sequences that have at least `least` in `batch`.
    pub fn of(tensors: &'a Tensors, batch: &Batch, device: Device, least: usize) -> Self {
        let index = |v: &[i64]| upload(v, device);
        let slot = |(block, slot): (usize, usize)| (block * BLOCK + slot) as i64;
        let slots: Vec<i64> = (0..batch.rows.len())
            .map(|r| slot(batch.place(r)))
            .collect();
        let lens = batch.runs.iter().map(|r| r.len());
        let mut lens: Vec<usize> = lens.filter(|&len| len >= least).collect();
        lens.sort_unstable();
        lens.dedup();
        let peers = lens.into_iter().map(|len| {
            let runs: Vec<_> = batch.runs.iter().filter(|r| r.len() == len).collect();
            let last = |r: &std::ops::Range<usize>| batch.rows[r.end - 1].position as usize;
            let seen = runs.iter().map(|r| last(r) + 1).max().unwrap_or(0);
            let rows: Vec<i64> = runs
                .iter()
                .flat_map(|r| r.start as i64..r.end as i64)
                .collect();
            let positions: Vec<i64> = rows
                .iter()
                .map(|&r| i64::from(batch.rows[r as usize].position))
                .collect();
            let slots: Vec<i64> = runs
                .iter()
                .flat_map(|r| {
                    let table = batch.table(r.start);
                    // beyond its end a sequence sees, masked, whatever lies in its first block
                    (0..seen).map(move |p| {
                        let block = table.get(p / BLOCK).unwrap_or(&table[0]);
                        (*block as usize * BLOCK + p % BLOCK) as i64
                    })
                })
                .collect();
            let (count, len) = (runs.len() as i64, len as i64);
            Peers {
                count,
                len,
                rows: index(&rows),
                slots: index(&slots),
                positions: index(&positions).view([count, 1, len, 1]),
                seen: seen as i64,
            }
        });
        Self {
            tensors,
            slots: index(&slots),
            peers: peers.collect(),
            masks: RefCell::default(),
        }
    }

    fn masks(&self, window: Option<usize>) -> Vec<Tensor> {
        let mut masks = self.masks.borrow_mut();
        if !masks.iter().any(|(w, _)| *w == window) {
            let made = self.peers.iter().map(|p| {
                let seen = Tensor::arange(p.seen, (Kind::Int64, p.positions.device()));
                let past = seen.le_tensor(&p.positions);
                match window {
                    Some(w) => past.logical_and(&seen.gt_tensor(&(&p.positions - w as i64))),
                    None => past,
                }
            });
            masks.push((window, made.collect()));
        }
        let (_, found) = masks
            .iter()
            .find(|(w, _)| *w == window)
            .expect("made above");
        found.iter().map(Tensor::shallow_clone).collect()
    }
}

impl Gathered<'_> {
    /// Writes its rows of attention into `out`; keys and values are in the cache.
    pub fn fill(&self, layer: usize, q: &Tensor, spec: &AttendSpec, out: &mut Tensor) {
        let (keys, values) = (&self.tensors.keys[layer], &self.tensors.values[layer]);
        let (heads, kv_heads, d) = (q.size()[1], keys.size()[1], q.size()[2]);
        for (p, mask) in self.peers.iter().zip(self.masks(spec.window)) {
            let gather = |t: &Tensor| {
                t.index_select(0, &p.slots)
                    .view([p.count, p.seen, kv_heads, d])
                    .transpose(1, 2)
            };
            let queries = q
                .index_select(0, &p.rows)
                .view([p.count, p.len, heads, d])
                .transpose(1, 2);
            let result = Tensor::scaled_dot_product_attention(
                &queries,
                &gather(keys),
                &gather(values),
                Some(mask),
                0.0,
                false,
                Some(spec.scale),
                heads != kv_heads,
            );
            let result = result.transpose(1, 2).reshape([-1, heads, d]);
            let _ = out.index_copy_(0, &p.rows, &result);
        }
    }
}

impl Attend for Gathered<'_> {
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        let (keys, values) = (&self.tensors.keys[layer], &self.tensors.values[layer]);
        let _ = keys.shallow_clone().index_copy_(0, &self.slots, k);
        let _ = values.shallow_clone().index_copy_(0, &self.slots, v);
        let mut out = q.empty_like();
        self.fill(layer, q, spec, &mut out);
        out
    }
}
