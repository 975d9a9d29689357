//! A chunk's output: scores, their softmax with a running maximum, weighted values.

use std::arch::x86_64::*;

use super::QUERIES;
use super::chunk::{Chunk, put, rounded};
use super::job::Scratch;
use crate::cpu::simd::{Cell, exp2};
use crate::elem::LANES;

/// Below every score; finite, so that differences are numbers.
const LOW: f32 = -1e30;

/// Maxima (in powers of two) and sums of the lanes so far.
struct Running {
    max: [__m512; 4],
    sum: [__m512; 4],
}

impl Chunk<'_> {
    /// Output and statistics of these queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn forward<E: Cell>(
        &self,
        q: &[E],
        o: *mut E,
        stats: *mut f32,
        scratch: &Scratch,
    ) {
        let mut running = Running {
            max: [_mm512_set1_ps(LOW); 4],
            sum: [_mm512_setzero_ps(); 4],
        };
        // SAFETY: the scratch was made for this job; rows were checked.
        unsafe {
            self.pack(q, scratch.q_lanes, None);
            self.blocks(|at, keys| {
                self.scores::<E>(scratch.k, at, keys, scratch.q_lanes, scratch.s);
                match self.vectors {
                    4 => self.softmax::<E, 4>(at, keys, &mut running, scratch),
                    3 => self.softmax::<E, 3>(at, keys, &mut running, scratch),
                    2 => self.softmax::<E, 2>(at, keys, &mut running, scratch),
                    _ => self.softmax::<E, 1>(at, keys, &mut running, scratch),
                }
                self.weigh::<E>(scratch.v, at, keys, scratch.s, scratch);
            });
            let one = _mm512_set1_ps(1.0);
            let inverse = running.sum.map(|sum| _mm512_div_ps(one, sum));
            self.unpack(scratch.o_lanes, &inverse, o);
            let (mut max, mut inv) = ([0f32; QUERIES], [0f32; QUERIES]);
            for (v, (most, inverse)) in running.max.iter().zip(&inverse).enumerate() {
                _mm512_storeu_ps(max.as_mut_ptr().add(v * LANES), *most);
                _mm512_storeu_ps(inv.as_mut_ptr().add(v * LANES), *inverse);
            }
            for l in 0..self.count {
                let to = 2 * self.of.lane(self.from + l);
                *stats.add(to) = max[l];
                *stats.add(to + 1) = inv[l];
            }
        }
    }

    /// Turns a block's scores into weights relative to the maxima so far, and what was summed
    /// before along with them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn softmax<E: Cell, const V: usize>(
        &self,
        at: usize,
        keys: usize,
        running: &mut Running,
        scratch: &Scratch,
    ) {
        let edge = self.is_edge(at, keys);
        let by = _mm512_set1_ps(self.of.shape.scale * std::f32::consts::LOG2_E);
        let s = |j: usize, v: usize| scratch.s.wrapping_add(j * self.width + v * LANES);
        // SAFETY: inside the block.
        unsafe {
            let mut max = [_mm512_set1_ps(LOW); V];
            for j in 0..keys {
                for (v, max) in max.iter_mut().enumerate() {
                    let mut x = _mm512_load_ps(s(j, v));
                    if edge {
                        x = _mm512_mask_mov_ps(_mm512_set1_ps(LOW), self.sees(v, at + j), x);
                    }
                    *max = _mm512_max_ps(*max, x);
                }
            }
            for (v, max) in max.iter_mut().enumerate() {
                *max = _mm512_max_ps(running.max[v], _mm512_mul_ps(*max, by));
            }
            let mut sum = [_mm512_setzero_ps(); V];
            for j in (0..keys).step_by(E::PER) {
                for v in 0..V {
                    let mut both = [_mm512_setzero_ps(); 2];
                    for (i, both) in both.iter_mut().enumerate().take(E::PER.min(keys - j)) {
                        let x = _mm512_fmsub_ps(_mm512_load_ps(s(j + i, v)), by, max[v]);
                        *both = exp2(x);
                        if edge {
                            *both = _mm512_maskz_mov_ps(self.sees(v, at + j + i), *both);
                        }
                        sum[v] = _mm512_add_ps(sum[v], *both);
                    }
                    match E::PER {
                        // where scores were that have been read
                        2 => put(s(j / 2, v), rounded(both[0]), rounded(both[1])),
                        _ => _mm512_store_ps(s(j, v), both[0]),
                    }
                }
            }
            if at == self.first_key {
                for v in 0..V {
                    (running.max[v], running.sum[v]) = (max[v], sum[v]);
                }
                return;
            }
            for v in 0..V {
                let shrink = exp2(_mm512_sub_ps(running.max[v], max[v]));
                running.max[v] = max[v];
                running.sum[v] = _mm512_fmadd_ps(running.sum[v], shrink, sum[v]);
                for c in 0..self.of.shape.d {
                    let o = scratch.o_lanes.add(c * self.width + v * LANES);
                    _mm512_store_ps(o, _mm512_mul_ps(_mm512_load_ps(o), shrink));
                }
            }
        }
    }
}
