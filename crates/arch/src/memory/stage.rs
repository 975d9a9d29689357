//! What the first rank of a pipeline stage holds at a time, by the formulas of [`super`].

use super::{Keep, Line, Load, Rollout, Table};
use crate::mesh::{DENSE_SHARD, EXPERT_SHARD, Mesh};
use crate::slice::{chunk, heads, local};
use crate::{ParamDef, Role};
use std::ops::Range;

/// A pipeline stage's first rank.
pub(super) struct Stage<'a> {
    table: &'a Table<'a>,
    mesh: &'a Mesh,
    load: &'a Load,
    index: usize,
    pieces: Vec<Range<usize>>,
    /// Elements stored.
    pub(super) stored: u64,
    units: Vec<Unit>,
}

/// Parameters that travel together. A segment's experts travel apart from its other parameters.
#[derive(Debug, Clone, Copy)]
struct Unit {
    /// Elements that the rank computes with.
    elements: u64,
    /// Whether they are gathered for that.
    gathered: bool,
    /// Of a layer, not of the vocabulary.
    inner: bool,
}

impl<'a> Stage<'a> {
    pub(super) fn new(table: &'a Table<'a>, mesh: &'a Mesh, index: usize, load: &'a Load) -> Self {
        let config = table.config;
        let pieces = table.cuts(mesh)[index].clone();
        let mut stage = Self {
            table,
            mesh,
            load,
            index,
            pieces,
            stored: 0,
            units: Vec::new(),
        };
        let experts = table.experts.div_ceil(mesh.ep);
        let mut last = None;
        for line in &table.lines {
            if !stage.holds(&line.def) {
                continue;
            }
            let expert = line.def.expert.is_some();
            let (axes, count) = if expert {
                (EXPERT_SHARD, line.count / table.experts * experts)
            } else {
                (DENSE_SHARD, line.count)
            };
            let shape = local(config, mesh.tp, 0, &line.def).size;
            let (_, parts) = mesh.place(0, axes);
            let rest: usize = shape[1..].iter().product();
            stage.stored += (count * chunk(shape[0], parts, 0).len() * rest) as u64;
            let whole = (count * shape[0] * rest) as u64;
            let unit = (line.def.segment, expert);
            match stage.units.last_mut() {
                Some(sum) if last == Some(unit) => sum.elements += whole,
                _ => stage.units.push(Unit {
                    elements: whole,
                    gathered: parts > 1,
                    inner: !matches!(line.def.role, Role::Embed | Role::Head),
                }),
            }
            last = Some(unit);
        }
        stage
    }

    fn is_last(&self) -> bool {
        self.index + 1 == self.mesh.pp
    }

    fn holds(&self, def: &ParamDef) -> bool {
        let here = self.pieces.iter().any(|p| p.contains(&def.segment));
        let head =
            def.role == Role::Head || (self.table.config.tie_embeddings && def.role == Role::Embed);
        here || (head && self.is_last())
    }

    /// Rows on the rank.
    fn rows(&self) -> u64 {
        self.load.rows.div_ceil(self.mesh.cp) as u64
    }

    /// Rows between matrices.
    fn between(&self) -> u64 {
        if self.mesh.splits_rows() {
            self.rows().div_ceil(self.mesh.tp as u64)
        } else {
            self.rows()
        }
    }

    /// Units of segments, the embedding and the LM matrix apart: the largest that is gathered and
    /// the largest that is not; and all that is gathered.
    pub(super) fn largest(&self) -> (u64, u64, u64) {
        let inner = self.units.iter().filter(|u| u.inner);
        let most = |gathered: bool| {
            let units = inner.clone().filter(|u| u.gathered == gathered);
            units.map(|u| u.elements).max().unwrap_or(0)
        };
        let gathered = self.units.iter().filter(|u| u.gathered);
        (most(true), most(false), gathered.map(|u| u.elements).sum())
    }

    /// The embedding or the LM matrix of this stage, and whether it is gathered.
    fn vocabulary(&self, last: bool) -> (u64, bool) {
        let mut ends = self.units.iter().filter(|u| !u.inner);
        let found = if last { ends.next_back() } else { ends.next() };
        found.map_or((0, false), |u| (u.elements, u.gathered))
    }

    /// While segments run: one in use and the next on its way (all, if they are kept), and a
    /// gradient on the way to its shards.
    pub(super) fn gathered_in_segments(&self) -> u64 {
        let b = self.load.element as u64;
        let (largest, whole, all) = self.largest();
        let parameters = if self.load.reshard {
            2 * largest
        } else {
            all + largest
        };
        let narrow = if b == 4 { 0 } else { b };
        b * parameters + ((narrow + 4) * largest).max(narrow * whole)
    }

    /// At the head: the LM matrix and the unit that backward needs next.
    pub(super) fn gathered_at_head(&self) -> u64 {
        if !self.is_last() {
            return 0;
        }
        let b = self.load.element as u64;
        let (largest, _, all) = self.largest();
        match self.vocabulary(true) {
            _ if !self.load.reshard => b * all,
            (elements, true) => b * (elements + largest),
            _ => b * largest,
        }
    }

    /// The LM matrix's gradient in fp32, and once more on the way to its shards.
    pub(super) fn head_gradient(&self) -> u64 {
        match self.vocabulary(true) {
            (elements, true) if self.is_last() => 8 * elements,
            _ => 0,
        }
    }

    /// The embedding's gradient in fp32, and once more on the way to its shards.
    pub(super) fn embedding_gradient(&self) -> u64 {
        if self.index > 0 {
            return 0;
        }
        let b = self.load.element as u64;
        match self.vocabulary(false) {
            (elements, true) => (b + 8) * elements,
            (elements, false) => 4 * elements,
        }
    }

    /// What one attention segment keeps beside its input.
    fn attention(&self) -> u64 {
        let c = self.table.config;
        let (b, n, h) = (self.load.element as u64, self.rows(), c.hidden_size as u64);
        let heads = heads(c, self.mesh.tp, 0);
        let q = (heads.q.len() * c.head_dim) as u64;
        let kv = (heads.kv.len() * c.head_dim) as u64;
        let norms = if c.qk_norm { q + kv } else { 0 };
        n * (b * (h + 2 * (q + kv) + q + norms) + 4 * heads.q.len() as u64)
    }

    /// What the MLP or the experts of a layer keep beside the input, and what their backward
    /// works with at a time.
    fn mlp(&self, layer: usize) -> (u64, u64) {
        let c = self.table.config;
        let (b, n, h) = (self.load.element as u64, self.rows(), c.hidden_size as u64);
        let tp = self.mesh.tp;
        let unfused = u64::from(!self.load.fused);
        match c.experts_of(layer) {
            None => {
                let m = c.intermediate_size.div_ceil(tp) as u64;
                let keeps = b * n * (h + (3 + unfused) * m);
                (keeps, b * n * (3 * m + 2 * h))
            }
            Some(e) => {
                let m = e.intermediate_size.div_ceil(tp) as u64;
                let (k, count) = (e.per_token as u64, e.count as u64);
                let keeps = n * (b * h + 4 * count) + b * k * n * (2 * h + (3 + unfused) * m);
                (keeps, b * k * n * (3 * m + 2 * h))
            }
        }
    }

    /// What forward keeps, and what one segment's backward works with.
    pub(super) fn activations(&self) -> (u64, u64) {
        let c = self.table.config;
        let (b, h) = (self.load.element as u64, c.hidden_size as u64);
        let boundary = b * self.between() * h;
        let (mut kept, mut largest, mut work) = (0, 0, 0);
        let last = c.segment_count() - 1;
        for segment in self.pieces.iter().cloned().flatten() {
            if segment == 0 {
                kept += 8 * self.rows(); // token ids
                continue;
            }
            let (keeps, works, kind) = if segment == last {
                (0, boundary, Keep::Boundaries)
            } else if segment % 2 == 1 {
                let keeps = self.attention();
                // gradients of queries, keys, values and of what the output matrix multiplied
                (keeps, keeps, Keep::Selective)
            } else {
                let (keeps, works) = self.mlp((segment - 2) / 2);
                (keeps, works, Keep::All)
            };
            kept += boundary;
            let stays = match self.load.keep {
                Keep::All => true,
                Keep::Selective => kind == Keep::Selective,
                Keep::Boundaries => false,
            };
            if stays {
                kept += keeps;
            } else {
                largest = largest.max(keeps);
            }
            work = work.max(works);
        }
        (kept * self.in_flight(), largest + work + 2 * boundary)
    }

    /// Microbatches whose activations a stage holds at once under 1F1B (Narayanan et al. 2021, arXiv
    /// 2104.04473, section 2.2): as many as there are stages from here on, and when interleaved as
    /// many pieces as are started before the first comes back.
    fn in_flight(&self) -> u64 {
        let (pp, chunks, m) = (self.mesh.pp, self.mesh.pp_chunks, self.load.microbatches);
        let after = pp - 1 - self.index;
        if chunks == 1 {
            return (after + 1).min(m) as u64;
        }
        // warm-up of the interleaved schedule, in microbatches of one piece each; `kept` is of all
        let pieces = (2 * after + (chunks - 1) * pp + 1).min(m * chunks);
        pieces.div_ceil(chunks) as u64
    }

    pub(super) fn logits(&self) -> u64 {
        if !self.is_last() {
            return 0;
        }
        let c = self.table.config;
        let (b, h) = (self.load.element as u64, c.hidden_size as u64);
        let v = c.vocab_size.div_ceil(self.mesh.tp) as u64;
        let chunk = (self.load.head_chunk as u64).min(self.rows());
        // the gradient of the LM matrix is in fp32, and for a moment of a chunk in compute kind
        let narrow = if b == 4 { 0 } else { b };
        let of_chunk = match (self.mesh.tp, self.load.fused) {
            (1, true) => b,
            (1, false) => b + 8,
            _ => 8,
        };
        of_chunk * chunk * v + (4 + narrow) * v * h + 2 * b * self.between() * h
    }

    pub(super) fn rollout(&self, rollout: &Rollout) -> u64 {
        let c = self.table.config;
        let sampling = 8 * (c.vocab_size * rollout.sequences) as u64;
        let m = self.mesh;
        // nothing moves where training has the same parts
        let still = m.dp_shard * m.ep * m.cp * m.pp == 1 && (m.tp, 1) == (rollout.tp, rollout.ep);
        let part = |line: &Line| {
            let experts = if line.def.expert.is_some() {
                rollout.ep
            } else {
                1
            };
            line.numel().div_ceil((rollout.tp * experts) as u64)
        };
        let copy = if still {
            0
        } else {
            self.load.element as u64 * self.table.lines.iter().map(part).sum::<u64>()
        };
        rollout.cache + sampling + copy
    }
}
