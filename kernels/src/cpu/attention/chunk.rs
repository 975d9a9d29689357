//! Some lanes of a job's queries: rows to lanes and back, and the products of both directions.

use std::arch::x86_64::*;

use super::job::{Job, Scratch};
use super::{KEYS, QUERIES};
use crate::cpu::simd::{Broadcast, Cell, Lanes, Rows, first, transpose};
use crate::elem::LANES;

/// Some lanes of a job's queries.
pub(super) struct Chunk<'a> {
    pub(super) of: &'a Job<'a>,
    /// First lane among the job's.
    pub(super) from: usize,
    pub(super) count: usize,
    pub(super) vectors: usize,
    pub(super) width: usize,
    /// Last key that the first lane sees, and that the last one does.
    pub(super) least: usize,
    pub(super) most: usize,
    /// First key that any lane sees, or the one before it.
    pub(super) first_key: usize,
    pub(super) positions: [i32; QUERIES],
}

impl Chunk<'_> {
    /// Calls `each` with blocks of keys: first and number.
    pub(super) fn blocks(&self, mut each: impl FnMut(usize, usize)) {
        let end = self.most + 1;
        for at in (self.first_key..end).step_by(KEYS) {
            each(at, KEYS.min(end - at));
        }
    }

    /// Whether some lane does not see some key of a block.
    pub(super) fn is_edge(&self, at: usize, keys: usize) -> bool {
        let window = self.of.shape.window;
        at + keys > self.least + 1 || window.is_some_and(|w| at + w <= self.most)
    }

    /// Lanes of register `v` that see key `j`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn sees(&self, v: usize, j: usize) -> __mmask16 {
        // SAFETY: four registers of positions.
        let at = unsafe { _mm512_loadu_si512(self.positions.as_ptr().add(v * LANES).cast()) };
        let past = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(j as i32));
        match self.of.shape.window {
            Some(w) => past & _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32((j + w) as i32)),
            None => past,
        }
    }

    /// Copies rows (`[.., d]`, by [`Job::lane`]) to lanes `[p, width]` of cells over p and, if wanted,
    /// to rows `[width, p]` of cells over the rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn pack<E: Cell>(&self, x: &[E], lanes: *mut f32, rows: Option<*mut f32>) {
        let (d, p) = (self.of.shape.d, self.of.p);
        let depth = p / E::PER;
        for l in (0..self.width).step_by(LANES) {
            let here = (self.count - l).min(LANES);
            let row = |r: usize| self.of.lane(self.from + l + r) * d;
            // SAFETY: rows were checked, masks end with the head; the scratch has the room.
            unsafe {
                for c in (0..depth).step_by(LANES) {
                    let mut m = [_mm512_setzero_ps(); LANES];
                    for (r, m) in m.iter_mut().enumerate().take(here) {
                        *m = E::cells(x.as_ptr().add(row(r) + c * E::PER), d - c * E::PER);
                    }
                    transpose(&mut m);
                    for (i, column) in m.iter().enumerate().take(depth - c) {
                        _mm512_store_ps(lanes.add((c + i) * self.width + l), *column);
                    }
                }
                let Some(to) = rows else { continue };
                for c in (0..p).step_by(LANES) {
                    for r in (0..LANES).step_by(E::PER) {
                        let to = to.add((l + r) / E::PER * p + c);
                        let mut both = [_mm512_setzero_ps(); 2];
                        for (i, both) in both.iter_mut().enumerate().take(E::PER) {
                            if r + i < here {
                                *both = E::load(x.as_ptr().add(row(r + i) + c), first(d - c));
                            }
                        }
                        match E::PER {
                            2 => put(to, both[0], both[1]),
                            _ => _mm512_store_ps(to, both[0]),
                        }
                    }
                }
            }
        }
    }

    /// Copies lanes `[p, width]`, each times its factor, to rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn unpack<E: Lanes>(&self, lanes: *const f32, by: &[__m512; 4], x: *mut E) {
        let (d, p) = (self.of.shape.d, self.of.p);
        for (v, by) in by.iter().enumerate().take(self.vectors) {
            let l = v * LANES;
            for c in (0..p).step_by(LANES) {
                let mut m = [_mm512_setzero_ps(); LANES];
                // SAFETY: as in `pack`.
                unsafe {
                    for (i, column) in m.iter_mut().enumerate().take(d - c) {
                        let from = _mm512_load_ps(lanes.add((c + i) * self.width + l));
                        *column = _mm512_mul_ps(from, *by);
                    }
                    transpose(&mut m);
                    for (r, row) in m.iter().enumerate().take(self.count - l) {
                        let to = self.of.lane(self.from + l + r) * d + c;
                        E::store(x.add(to), first(d - c), *row);
                    }
                }
            }
        }
    }

    /// `to[key][lane] = sum over c of keys[key][c] * lanes[c][lane]`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn scores<E: Cell>(
        &self,
        from: *const f32,
        at: usize,
        keys: usize,
        lanes: *const f32,
        to: *mut f32,
    ) {
        let (depth, p) = (self.of.shape.d.div_ceil(E::PER), self.of.p / E::PER);
        // SAFETY: keys of the job, lanes of the chunk.
        unsafe {
            let a = Broadcast {
                at: from.add(at * p),
                by_n: p,
                by_i: 1,
            };
            let b = Rows {
                at: lanes,
                stride: self.width,
            };
            let c = Rows {
                at: to,
                stride: self.width,
            };
            E::product(keys, self.vectors, depth, a, b, c, false);
        }
    }

    /// `o_lanes[c][lane] (+)= sum over keys of values[key][c] * weights[key][lane]`; sets at the
    /// first block. `from` are values of f32; those of bf16 are the pairs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn weigh<E: Cell>(
        &self,
        from: *const f32,
        at: usize,
        keys: usize,
        weights: *const f32,
        scratch: &Scratch,
    ) {
        let (d, p) = (self.of.shape.d, self.of.p);
        let from = match E::PER {
            2 => scratch.pairs.cast_const(),
            _ => from,
        };
        // SAFETY: as in `scores`; blocks begin at even keys.
        unsafe {
            let a = Broadcast {
                at: from.add(at / E::PER * p),
                by_n: 1,
                by_i: p,
            };
            let b = Rows {
                at: weights,
                stride: self.width,
            };
            let c = Rows {
                at: scratch.o_lanes,
                stride: self.width,
            };
            let depth = keys.div_ceil(E::PER);
            E::product(d, self.vectors, depth, a, b, c, at != self.first_key);
        }
    }

    /// `to[key][c] += sum over lanes of weights[key][lane] * rows[lane][c]`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn collect<E: Cell>(
        &self,
        weights: *const f32,
        at: usize,
        keys: usize,
        rows: *const f32,
        to: *mut f32,
    ) {
        let p = self.of.p;
        // SAFETY: as in `scores`.
        unsafe {
            let a = Broadcast {
                at: weights,
                by_n: self.width / E::PER,
                by_i: 1,
            };
            let b = Rows {
                at: rows,
                stride: p,
            };
            let c = Rows {
                at: to.add(at * p),
                stride: p,
            };
            let depth = self.count.div_ceil(E::PER);
            E::product(keys, p / LANES, depth, a, b, c, true);
        }
    }
}

/// The nearest bf16, with whatever behind its bits.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn rounded(x: __m512) -> __m512 {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    _mm512_castsi512_ps(_mm512_add_epi32(bits, up))
}

/// Stores cells of two bf16, the upper halves of `low` and `high`.
///
/// # Safety
/// AVX-512; a register's room at `to`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) unsafe fn put(to: *mut f32, low: __m512, high: __m512) {
    let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
    let cells = _mm512_mask_mov_epi16(low, 0xaaaa_aaaa, _mm512_castps_si512(high));
    // SAFETY: by the contract above.
    unsafe { _mm512_storeu_si512(to.cast(), cells) }
}
