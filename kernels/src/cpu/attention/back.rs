//! A chunk's gradients, from probabilities computed again.

use std::arch::x86_64::*;

use super::QUERIES;
use super::chunk::{Chunk, put, rounded};
use super::job::Scratch;
use crate::cpu::simd::{Cell, exp2, first};
use crate::elem::LANES;

/// What backward reads of the rows.
pub(super) struct Seen<'a, E> {
    pub(super) q: &'a [E],
    pub(super) o: &'a [E],
    pub(super) d_o: &'a [E],
    pub(super) stats: &'a [f32],
}

/// Per lane: the maximum, 1 / sum, and `do o`.
struct Known {
    max: [__m512; 4],
    inverse: [__m512; 4],
    product: [__m512; 4],
}

impl Chunk<'_> {
    /// Gradients of these queries, and their share of the keys' and values' in the scratch.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn backward<E: Cell>(&self, seen: &Seen<E>, dq: *mut E, scratch: &Scratch) {
        let (p_rows, ds_rows) = match E::PER {
            2 => (scratch.p_rows, scratch.ds_rows),
            _ => (scratch.s, scratch.ds),
        };
        // SAFETY: the scratch was made for this job; rows were checked.
        unsafe {
            self.pack(seen.q, scratch.q_lanes, Some(scratch.q));
            self.pack(seen.d_o, scratch.do_lanes, Some(scratch.d_o));
            let known = self.known(seen);
            self.blocks(|at, keys| {
                self.scores::<E>(scratch.k, at, keys, scratch.q_lanes, scratch.s);
                self.scores::<E>(scratch.v, at, keys, scratch.do_lanes, scratch.ds);
                match self.vectors {
                    4 => self.slopes::<E, 4>(at, keys, &known, scratch),
                    3 => self.slopes::<E, 3>(at, keys, &known, scratch),
                    2 => self.slopes::<E, 2>(at, keys, &known, scratch),
                    _ => self.slopes::<E, 1>(at, keys, &known, scratch),
                }
                self.collect::<E>(p_rows, at, keys, scratch.d_o, scratch.dv);
                self.collect::<E>(ds_rows, at, keys, scratch.q, scratch.dk);
                self.weigh::<E>(scratch.k, at, keys, scratch.ds, scratch);
            });
            let by = _mm512_set1_ps(self.of.shape.scale);
            self.unpack(scratch.o_lanes, &[by; 4], dq);
        }
    }

    /// What forward found out about each lane, and `do o`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn known<E: Cell>(&self, seen: &Seen<E>) -> Known {
        let d = self.of.shape.d;
        let [mut max, mut inverse, mut products] = [[0f32; QUERIES]; 3];
        for (l, product) in products.iter_mut().enumerate().take(self.count) {
            let row = self.of.lane(self.from + l);
            let mut sum = _mm512_setzero_ps();
            for c in (0..d).step_by(LANES) {
                let mask = first(d - c);
                // SAFETY: rows were checked, masks end with the head.
                let (o, d_o) = unsafe {
                    (
                        E::load(seen.o.as_ptr().add(row * d + c), mask),
                        E::load(seen.d_o.as_ptr().add(row * d + c), mask),
                    )
                };
                sum = _mm512_fmadd_ps(o, d_o, sum);
            }
            (max[l], inverse[l]) = (seen.stats[2 * row], seen.stats[2 * row + 1]);
            *product = _mm512_reduce_add_ps(sum);
        }
        let mut lanes = [[_mm512_setzero_ps(); 4]; 3];
        for (lanes, of) in lanes.iter_mut().zip([max, inverse, products]) {
            for (v, lanes) in lanes.iter_mut().enumerate() {
                // SAFETY: four registers.
                *lanes = unsafe { _mm512_loadu_ps(of.as_ptr().add(v * LANES)) };
            }
        }
        let [max, inverse, product] = lanes;
        Known {
            max,
            inverse,
            product,
        }
    }

    /// Scores to probabilities, gradients of probabilities to those of scores.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn slopes<E: Cell, const V: usize>(
        &self,
        at: usize,
        keys: usize,
        known: &Known,
        scratch: &Scratch,
    ) {
        let edge = self.is_edge(at, keys);
        let by = _mm512_set1_ps(self.of.shape.scale * std::f32::consts::LOG2_E);
        let here = |j: usize, v: usize| j * self.width + v * LANES;
        for j in (0..keys).step_by(E::PER) {
            for v in 0..V {
                let mut both = [_mm512_setzero_ps(); 2];
                for (i, both) in both.iter_mut().enumerate().take(E::PER.min(keys - j)) {
                    let at_lane = here(j + i, v);
                    // SAFETY: inside the block; rows of two to a cell lie in rows of one.
                    unsafe {
                        let (s, ds) = (scratch.s.add(at_lane), scratch.ds.add(at_lane));
                        let mut p = exp2(_mm512_fmsub_ps(_mm512_load_ps(s), by, known.max[v]));
                        p = _mm512_mul_ps(p, known.inverse[v]);
                        if edge {
                            p = _mm512_maskz_mov_ps(self.sees(v, at + j + i), p);
                        }
                        let slope = _mm512_sub_ps(_mm512_load_ps(ds), known.product[v]);
                        *both = _mm512_mul_ps(p, slope);
                        match E::PER {
                            2 => {
                                E::store(scratch.p_rows.cast::<E>().add(at_lane), !0, p);
                                E::store(scratch.ds_rows.cast::<E>().add(at_lane), !0, *both);
                            }
                            _ => {
                                _mm512_store_ps(s, p);
                                _mm512_store_ps(ds, *both);
                            }
                        }
                    }
                }
                if E::PER == 2 {
                    // SAFETY: inside the block, where gradients were that have been read.
                    unsafe {
                        let to = scratch.ds.add(here(j / 2, v));
                        put(to, rounded(both[0]), rounded(both[1]));
                    }
                }
            }
        }
    }
}
