//! Tensor and sequence parallelism: ranks that share a segment's matrices.
//!
//! The first matrices of a segment are cut by columns of the result (heads, or rows of the MLP),
//! the last by what it sums over, so a rank computes with its part alone and the sum over ranks
//! comes once, where the segment leaves (Megatron-LM, arXiv:1909.08053). Between segments every
//! rank has all rows of the residual stream, or, with sequence parallelism (arXiv:2205.05198), an
//! equal block of them: then a segment gathers rows where it enters and scatters sums where it
//! leaves.

use std::ops::Range;
use std::rc::Rc;

use model::{Split, Unsplit};
use tch::{Kind, Tensor};

use crate::Collective;
use crate::crossing::{Crossing, Fault};

/// The ranks that share matrices, and how they share rows.
pub(crate) struct TensorSplit {
    ranks: Crossing,
    /// Sequence parallelism.
    blocks: bool,
    /// Rows of the embedding that this rank has.
    vocabulary: Range<i64>,
}

impl TensorSplit {
    pub fn new(group: Rc<dyn Collective>, sp: bool, vocabulary: usize, fault: &Fault) -> Self {
        let mut split = Self {
            blocks: sp && group.size() > 1,
            ranks: Crossing::new(group, fault),
            vocabulary: 0..0,
        };
        let part = split.part(vocabulary);
        split.vocabulary = part.start as i64..part.end as i64;
        split
    }

    /// This rank's rows of a matrix with a row for each token of the vocabulary.
    pub fn part(&self, vocabulary: usize) -> Range<usize> {
        arch::slice::even(vocabulary, self.ranks.size(), self.ranks.rank())
    }

    fn alone(&self) -> bool {
        self.ranks.size() == 1
    }

    /// Rows must be a multiple of this.
    pub fn multiple(&self) -> usize {
        if self.blocks { self.ranks.size() } else { 1 }
    }

    /// Rows that a rank has of `rows` between segments.
    pub fn rows(&self, rows: i64) -> i64 {
        rows / self.multiple() as i64
    }

    /// This rank's rows of all (a multiple of the ranks), between segments. No graph.
    pub fn block(&self, x: &Tensor) -> Tensor {
        if !self.blocks {
            return x.shallow_clone();
        }
        let rows = self.rows(x.size()[0]);
        x.narrow(0, rows * self.ranks.rank() as i64, rows)
    }

    /// All rows from this rank's between segments. No graph.
    pub fn whole(&self, x: Tensor, phase: &str) -> Tensor {
        match self.blocks && x.size()[0] > 0 {
            true => self.ranks.gather(&x, phase),
            false => x,
        }
    }

    /// This rank's rows, between segments, of a gradient of all rows that every rank has a part of.
    pub fn join(&self, partial: Tensor, phase: &str) -> Tensor {
        match (partial.size()[0], self.blocks, self.alone()) {
            (0, ..) | (_, _, true) => partial,
            (_, true, _) => self.ranks.scatter(&partial, phase),
            _ => self.ranks.sum(partial, phase),
        }
    }

    /// Ids as rows of this rank's part of the vocabulary, one past its end for others; `None`
    /// where they are so already.
    pub fn local_ids(&self, ids: &Tensor) -> Option<Tensor> {
        if self.alone() {
            return None;
        }
        let Range { start, end } = self.vocabulary;
        let elsewhere = ids.less(start).logical_or(&ids.greater_equal(end));
        Some((ids - start).masked_fill(&elsewhere, end - start))
    }
}

impl Split for TensorSplit {
    fn enter(&self, x: Tensor) -> Tensor {
        match (self.blocks, self.alone()) {
            (true, _) => self.ranks.gather_node(x, "tensor-parallel rows"),
            (_, true) => x,
            _ => self.ranks.part_node(x, "tensor-parallel gradient"),
        }
    }

    fn leave(&self, partial: Tensor) -> Tensor {
        match (self.blocks, self.alone()) {
            (true, _) => self.ranks.scatter_node(partial, "tensor-parallel rows"),
            (_, true) => partial,
            _ => self.ranks.sum_node(partial, "tensor-parallel sum"),
        }
    }

    fn look_up(&self, table: &Tensor, ids: &Tensor) -> Tensor {
        let Some(local) = self.local_ids(ids) else {
            return Unsplit.look_up(table, ids);
        };
        let here = local.less(self.vocabulary.end - self.vocabulary.start);
        let found = Unsplit.look_up(table, &(local * here.to_kind(Kind::Int64)));
        // one rank has each row, so the sum is exact
        self.leave(found * here.to_kind(table.kind()).unsqueeze(-1))
    }
}
