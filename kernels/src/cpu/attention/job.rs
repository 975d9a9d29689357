//! A piece and key head: the memory that its computation needs, its keys and values.

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::chunk::{Chunk, put};
use super::{KEYS, Piece, QUERIES, Shape};
use crate::cpu::Lines;
use crate::cpu::simd::{Cell, Lanes, first};
use crate::elem::LANES;

thread_local! {
    static SCRATCH: RefCell<Lines> = const { RefCell::new(Lines::EMPTY) };
}

/// Memory of one job, in 32-bit cells; `p` is d rounded up to registers, `w` a chunk's lanes. An f32
/// is a cell; two bf16 that follow one another in the dimension that is summed over are one.
pub(super) struct Scratch {
    /// `[keys, p]` elements.
    pub(super) k: *mut f32,
    pub(super) v: *mut f32,
    /// Of bf16 only: values, in backward keys, two by two, `[keys / 2, p]` cells.
    pub(super) pairs: *mut f32,
    /// `[keys, p]` f32.
    pub(super) dk: *mut f32,
    pub(super) dv: *mut f32,
    /// Queries, `[p, w]` elements, two of p to a cell.
    pub(super) q_lanes: *mut f32,
    /// Gradient of the output, as `q_lanes`.
    pub(super) do_lanes: *mut f32,
    /// Output, or gradient of the queries, `[p, w]` f32.
    pub(super) o_lanes: *mut f32,
    /// Queries, `[w, p]` elements, two of w to a cell.
    pub(super) q: *mut f32,
    /// Gradient of the output, as `q`.
    pub(super) d_o: *mut f32,
    /// Scores `[KEYS, w]` f32; then probabilities, in forward two of KEYS to a cell.
    pub(super) s: *mut f32,
    /// Probabilities in backward, two of w to a cell; those of f32 are in `s`.
    pub(super) p_rows: *mut f32,
    /// Gradients of probabilities `[KEYS, w]` f32; then of scores, two of KEYS to a cell.
    pub(super) ds: *mut f32,
    /// Gradients of scores, two of w to a cell; those of f32 are in `ds`.
    pub(super) ds_rows: *mut f32,
}

/// Calls `work` with memory of these sizes, each on cache lines of its own.
pub(super) fn with_scratch(sizes: [usize; 14], work: impl FnOnce(Scratch)) {
    SCRATCH.with_borrow_mut(|memory| {
        let sizes = sizes.map(|n| n.next_multiple_of(LANES));
        memory.fit(sizes.iter().sum());
        let mut at = memory.get_mut().as_mut_ptr();
        let parts = sizes.map(|n| {
            let part = at;
            at = at.wrapping_add(n);
            part
        });
        let [
            k,
            v,
            pairs,
            dk,
            dv,
            q_lanes,
            do_lanes,
            o_lanes,
            q,
            d_o,
            s,
            p_rows,
            ds,
            ds_rows,
        ] = parts;
        work(Scratch {
            k,
            v,
            pairs,
            dk,
            dv,
            q_lanes,
            do_lanes,
            o_lanes,
            q,
            d_o,
            s,
            p_rows,
            ds,
            ds_rows,
        });
    });
}

/// A piece and key head.
pub(super) struct Job<'a> {
    pub(super) shape: &'a Shape,
    pub(super) piece: &'a Piece,
    pub(super) head: usize,
    /// Query heads of the key head.
    pub(super) group: usize,
    /// `d` rounded up to whole registers.
    pub(super) p: usize,
}

impl<'a> Job<'a> {
    pub(super) fn new(shape: &'a Shape, piece: &'a Piece, head: usize) -> Self {
        Self {
            shape,
            piece,
            head,
            group: shape.heads / shape.kv_heads,
            p: shape.d.next_multiple_of(LANES),
        }
    }

    pub(super) fn sizes(&self) -> [usize; 14] {
        let (keys, lanes) = (self.piece.count() * self.p, QUERIES * self.p);
        let pairs = self.piece.count().div_ceil(2) * self.p;
        let scores = KEYS * QUERIES;
        [
            keys, keys, pairs, keys, keys, lanes, lanes, lanes, lanes, lanes, scores, scores,
            scores, scores,
        ]
    }

    /// Offset of key `j` among keys, values and their gradients.
    fn key(&self, j: usize) -> usize {
        let [before, own] = &self.piece.keys;
        let row = match j.checked_sub(before.len()) {
            None => before.start + j,
            Some(j) => own.start + j,
        };
        (row * self.shape.kv_heads + self.head) * self.shape.d
    }

    /// Number of the row and head of query lane `l`.
    pub(super) fn lane(&self, l: usize) -> usize {
        let row = self.piece.queries.start + l / self.group;
        row * self.shape.heads + self.head * self.group + l % self.group
    }

    /// Copies keys and values to the scratch, and pairs of `paired` of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn keys<E: Cell>(&self, k: &[E], v: &[E], paired: &[E], scratch: &Scratch) {
        let p = self.p;
        for j in 0..self.piece.count() {
            let from = self.key(j);
            for c in (0..p).step_by(LANES) {
                let mask = first(self.shape.d - c);
                // SAFETY: the row was checked; the mask ends with the head.
                unsafe {
                    for (x, to) in [(k, scratch.k), (v, scratch.v)] {
                        let x = E::load(x.as_ptr().add(from + c), mask);
                        E::store(to.cast::<E>().add(j * p + c), !0, x);
                    }
                    if E::PER == 2 && j % 2 == 0 {
                        let x = paired.as_ptr();
                        let low = E::load(x.add(from + c), mask);
                        let high = match j + 1 < self.piece.count() {
                            true => E::load(x.add(self.key(j + 1) + c), mask),
                            false => _mm512_setzero_ps(),
                        };
                        put(scratch.pairs.add(j / 2 * p + c), low, high);
                    }
                }
            }
        }
    }

    /// Zeroes the scratch's gradients of keys and values.
    pub(super) unsafe fn clear(&self, scratch: &Scratch) {
        let size = self.piece.count() * self.p;
        // SAFETY: the scratch was made for this piece.
        unsafe {
            scratch.dk.write_bytes(0, size);
            scratch.dv.write_bytes(0, size);
        }
    }

    /// Adds the scratch's gradients of keys and values to the tensors'.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn give(&self, dk: *mut f32, dv: *mut f32, scratch: &Scratch) {
        for j in 0..self.piece.count() {
            let to = self.key(j);
            for c in (0..self.p).step_by(LANES) {
                let mask = first(self.shape.d - c);
                for (to, from, by) in [
                    (dk.wrapping_add(to + c), scratch.dk, self.shape.scale),
                    (dv.wrapping_add(to + c), scratch.dv, 1.0),
                ] {
                    let by = _mm512_set1_ps(by);
                    // SAFETY: the row was checked; the mask ends with the head.
                    unsafe {
                        let more = _mm512_load_ps(from.add(j * self.p + c));
                        f32::store(to, mask, _mm512_fmadd_ps(more, by, f32::load(to, mask)));
                    }
                }
            }
        }
    }

    /// Calls `each` for chunks of query lanes.
    pub(super) fn chunks(&self, mut each: impl FnMut(Chunk)) {
        let lanes = self.piece.queries.len() * self.group;
        for from in (0..lanes).step_by(QUERIES) {
            let count = QUERIES.min(lanes - from);
            let vectors = count.div_ceil(LANES);
            let position = |l: usize| self.piece.offset + l / self.group;
            let (least, most) = (position(from), position(from + count - 1));
            each(Chunk {
                of: self,
                from,
                count,
                vectors,
                width: vectors * LANES,
                least,
                most,
                // even, as keys go by twos
                first_key: self
                    .shape
                    .window
                    .map_or(0, |w| (least + 1).saturating_sub(w) / 2 * 2),
                // lanes beyond the last query do as the last one does
                positions: std::array::from_fn(|l| position(from + l.min(count - 1)) as i32),
            });
        }
    }
}
