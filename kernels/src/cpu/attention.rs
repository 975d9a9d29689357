//! Causal attention (Vaswani et al., arXiv:1706.03762) of packed sequences, block by block with a
//! running maximum (Dao et al., arXiv:2205.14135), so that scores never exist whole:
//!
//! ```text
//! s_ij = scale q_i k_j         p_ij = e^(s_ij - m_i) / l_i        o_i = sum_j p_ij v_j
//! dp_ij = do_i v_j             ds_ij = p_ij (dp_ij - do_i o_i)    dv_j = sum_i p_ij do_i
//! dq_i = scale sum_j ds_ij k_j                                    dk_j = scale sum_i ds_ij q_i
//! ```
//!
//! q, o, do, dq `[rows, heads, d]`, k, v `[key rows, kv_heads, d]`, dk, dv alike in f32, m and l as
//! `stats` `[rows, heads, 2]` (m in powers of two, 1 / l). Arithmetic in f32, whatever the element.
//!
//! Queries (rows times the heads that share a key head) stand in the lanes of registers, so that a
//! softmax runs down the lanes and every product broadcasts keys or values as they lie. A job is
//! one [`Family`] and key head: it alone writes the gradients of its keys, in a fixed order, so
//! results do not depend on the number of threads.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::simd::f32s::product;
use super::simd::{Broadcast, Lanes, Rows, available, exp2, first, transpose};
use super::{Lines, Shared, pieces};
use crate::elem::LANES;

/// Queries of a chunk: four registers.
const QUERIES: usize = 4 * LANES;
/// Keys of a block: scores of a chunk stay in the first-level cache.
const KEYS: usize = 64;
/// Below every score; finite, so that differences are numbers.
const LOW: f32 = -1e30;

/// Rows that ask, one after the other in their sequence, and what they may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// Rows of the keys in the order of their positions: two runs, laid end to end.
    pub keys: [Range<usize>; 2],
    /// Query `i` sees the keys up to the one numbered `offset + i`, and no further.
    pub offset: usize,
}

/// Pieces that share keys. No key row belongs to two families.
pub type Family = Vec<Piece>;

/// What is asked of all pieces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    pub heads: usize,
    pub kv_heads: usize,
    pub d: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// A query sees itself and the `window - 1` keys before it; `None` is all.
    pub window: Option<usize>,
}

/// `o` and `stats` of the rows that are some piece's queries.
///
/// # Panics
/// Without AVX-512, or if lengths or rows do not fit.
pub fn forward<E: Lanes>(
    families: &[Family],
    shape: &Shape,
    [q, k, v]: [&[E]; 3],
    o: &mut [E],
    stats: &mut [f32],
) {
    shape.check(families, q.len(), k.len());
    assert!(
        v.len() == k.len() && o.len() == q.len() && stats.len() * shape.d == 2 * q.len(),
        "shapes of attention"
    );
    let (o, stats) = (Shared::new(o), Shared::new(stats));
    jobs(families, shape, &|family, head| {
        for piece in family {
            let of = Job::new(shape, piece, head);
            with_scratch(of.sizes(), |scratch| {
                // SAFETY: `check` found AVX-512 and rows in range; rows have one piece.
                unsafe {
                    of.keys(k, v, &scratch);
                    of.chunks(|chunk| chunk.forward(q, o.pointer(), stats.pointer(), &scratch));
                }
            });
        }
    });
}

/// Gradients: `dq` of the rows that are queries, `dk` and `dv` added to what they hold.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn backward<E: Lanes>(
    families: &[Family],
    shape: &Shape,
    [q, k, v]: [&[E]; 3],
    (o, stats): (&[E], &[f32]),
    d_o: &[E],
    dq: &mut [E],
    [dk, dv]: [&mut [f32]; 2],
) {
    shape.check(families, q.len(), k.len());
    let rows_fit = [o.len(), d_o.len(), dq.len()].iter().all(|&n| n == q.len());
    let keys_fit = [v.len(), dk.len(), dv.len()].iter().all(|&n| n == k.len());
    assert!(
        rows_fit && keys_fit && stats.len() * shape.d == 2 * q.len(),
        "shapes of attention's backward"
    );
    let (dq, dk, dv) = (Shared::new(dq), Shared::new(dk), Shared::new(dv));
    let seen = Seen { q, o, d_o, stats };
    jobs(families, shape, &|family, head| {
        for piece in family {
            let of = Job::new(shape, piece, head);
            with_scratch(of.sizes(), |scratch| {
                // SAFETY: as in `forward`; a family and head's gradients are this job's.
                unsafe {
                    of.keys(k, v, &scratch);
                    of.clear(&scratch);
                    of.chunks(|chunk| chunk.backward(&seen, dq.pointer(), &scratch));
                    of.give(dk.pointer(), dv.pointer(), &scratch);
                }
            });
        }
    });
}

impl Shape {
    fn check(&self, families: &[Family], q: usize, k: usize) {
        let Shape {
            heads, kv_heads, d, ..
        } = *self;
        assert!(available(), "attention by this kernel needs AVX-512");
        assert!(
            kv_heads > 0 && d > 0 && heads.is_multiple_of(kv_heads),
            "{heads} heads over {kv_heads} key heads of {d}"
        );
        let (rows, key_rows) = (q / (heads * d), k / (kv_heads * d));
        assert!(
            q == rows * heads * d && k == key_rows * kv_heads * d && key_rows < i32::MAX as usize,
            "shapes of attention"
        );
        for piece in families.iter().flatten() {
            let ends = piece.offset + piece.queries.len();
            let inside = piece.queries.end <= rows && piece.keys.iter().all(|r| r.end <= key_rows);
            assert!(inside && ends <= piece.count(), "rows of attention");
        }
    }
}

impl Piece {
    /// Keys.
    fn count(&self) -> usize {
        self.keys[0].len() + self.keys[1].len()
    }
}

/// Calls `job` for every family and key head on libtorch's threads, heavy ones first.
fn jobs(families: &[Family], shape: &Shape, job: &(dyn Fn(&Family, usize) + Sync)) {
    let weight = |f: &Family| -> usize { f.iter().map(|p| p.queries.len() * p.count()).sum() };
    let mut order: Vec<(usize, usize)> = families.iter().map(weight).zip(0..).collect();
    order.sort_unstable_by(|a, b| b.cmp(a));
    let total: usize = order.iter().map(|o| o.0).sum();
    let run = |at: usize| job(&families[order[at / shape.kv_heads].1], at % shape.kv_heads);
    let count = order.len() * shape.kv_heads;
    // a handful of rows is done before another thread has woken up
    if total * shape.heads < 16 * 1024 {
        (0..count).for_each(run);
    } else {
        pieces(count, &run);
    }
}

thread_local! {
    static SCRATCH: RefCell<Lines> = const { RefCell::new(Lines::EMPTY) };
}

/// Memory of one job, all f32; `p` is d rounded up to registers, `w` a chunk's lanes.
struct Scratch {
    /// `[keys, p]`.
    k: *mut f32,
    v: *mut f32,
    dk: *mut f32,
    dv: *mut f32,
    /// Queries times scale in powers of two, `[p, w]`.
    q_lanes: *mut f32,
    /// Gradient of the output, `[p, w]`.
    do_lanes: *mut f32,
    /// Output, or gradient of the queries, `[p, w]`.
    o_lanes: *mut f32,
    /// Queries times scale, `[w, p]`.
    q: *mut f32,
    /// Gradient of the output, `[w, p]`.
    d_o: *mut f32,
    /// Scores, then probabilities, `[KEYS, w]`.
    s: *mut f32,
    /// Gradients of probabilities, then of scores, `[KEYS, w]`.
    ds: *mut f32,
}

/// Calls `work` with memory of these sizes, each on cache lines of its own.
fn with_scratch(sizes: [usize; 11], work: impl FnOnce(Scratch)) {
    SCRATCH.with_borrow_mut(|memory| {
        let sizes = sizes.map(|n| n.next_multiple_of(LANES));
        memory.fit(sizes.iter().sum());
        let mut at = memory.get_mut().as_mut_ptr();
        let parts = sizes.map(|n| {
            let part = at;
            at = at.wrapping_add(n);
            part
        });
        let [k, v, dk, dv, q_lanes, do_lanes, o_lanes, q, d_o, s, ds] = parts;
        work(Scratch {
            k,
            v,
            dk,
            dv,
            q_lanes,
            do_lanes,
            o_lanes,
            q,
            d_o,
            s,
            ds,
        });
    });
}

/// A piece and key head.
struct Job<'a> {
    shape: &'a Shape,
    piece: &'a Piece,
    head: usize,
    /// Query heads of the key head.
    group: usize,
    /// `d` rounded up to whole registers.
    p: usize,
}

impl<'a> Job<'a> {
    fn new(shape: &'a Shape, piece: &'a Piece, head: usize) -> Self {
        Self {
            shape,
            piece,
            head,
            group: shape.heads / shape.kv_heads,
            p: shape.d.next_multiple_of(LANES),
        }
    }

    fn sizes(&self) -> [usize; 11] {
        let (keys, lanes) = (self.piece.count() * self.p, QUERIES * self.p);
        let scores = KEYS * QUERIES;
        [
            keys, keys, keys, keys, lanes, lanes, lanes, lanes, lanes, scores, scores,
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
    fn lane(&self, l: usize) -> usize {
        let row = self.piece.queries.start + l / self.group;
        row * self.shape.heads + self.head * self.group + l % self.group
    }

    /// Copies keys and values to the scratch.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn keys<E: Lanes>(&self, k: &[E], v: &[E], scratch: &Scratch) {
        for j in 0..self.piece.count() {
            let from = self.key(j);
            for c in (0..self.p).step_by(LANES) {
                let mask = first(self.shape.d - c);
                // SAFETY: the row was checked; the mask ends with the head.
                unsafe {
                    let (key, value) = (
                        E::load(k.as_ptr().add(from + c), mask),
                        E::load(v.as_ptr().add(from + c), mask),
                    );
                    _mm512_store_ps(scratch.k.add(j * self.p + c), key);
                    _mm512_store_ps(scratch.v.add(j * self.p + c), value);
                }
            }
        }
    }

    /// Zeroes the scratch's gradients of keys and values.
    unsafe fn clear(&self, scratch: &Scratch) {
        let size = self.piece.count() * self.p;
        // SAFETY: the scratch was made for this piece.
        unsafe {
            scratch.dk.write_bytes(0, size);
            scratch.dv.write_bytes(0, size);
        }
    }

    /// Adds the scratch's gradients of keys and values to the tensors'.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn give(&self, dk: *mut f32, dv: *mut f32, scratch: &Scratch) {
        for j in 0..self.piece.count() {
            let to = self.key(j);
            for c in (0..self.p).step_by(LANES) {
                let mask = first(self.shape.d - c);
                for (to, from) in [
                    (dk.wrapping_add(to + c), scratch.dk),
                    (dv.wrapping_add(to + c), scratch.dv),
                ] {
                    // SAFETY: the row was checked; the mask ends with the head.
                    unsafe {
                        let more = _mm512_load_ps(from.add(j * self.p + c));
                        f32::store(to, mask, _mm512_add_ps(f32::load(to, mask), more));
                    }
                }
            }
        }
    }

    /// Calls `each` for chunks of query lanes.
    fn chunks(&self, mut each: impl FnMut(Chunk)) {
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
                first_key: self
                    .shape
                    .window
                    .map_or(0, |w| (least + 1).saturating_sub(w)),
                // lanes beyond the last query do as the last one does
                positions: std::array::from_fn(|l| position(from + l.min(count - 1)) as i32),
            });
        }
    }
}

/// What backward reads of the rows.
struct Seen<'a, E> {
    q: &'a [E],
    o: &'a [E],
    d_o: &'a [E],
    stats: &'a [f32],
}

/// Some lanes of a job's queries.
struct Chunk<'a> {
    of: &'a Job<'a>,
    /// First lane among the job's.
    from: usize,
    count: usize,
    vectors: usize,
    width: usize,
    /// Last key that the first lane sees, and that the last one does.
    least: usize,
    most: usize,
    /// First key that any lane sees.
    first_key: usize,
    positions: [i32; QUERIES],
}

impl Chunk<'_> {
    /// Calls `each` with blocks of keys: first and number.
    fn blocks(&self, mut each: impl FnMut(usize, usize)) {
        let end = self.most + 1;
        for at in (self.first_key..end).step_by(KEYS) {
            each(at, KEYS.min(end - at));
        }
    }

    /// Whether some lane does not see some key of a block.
    fn is_edge(&self, at: usize, keys: usize) -> bool {
        let window = self.of.shape.window;
        at + keys > self.least + 1 || window.is_some_and(|w| at + w <= self.most)
    }

    /// Lanes of register `v` that see key `j`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sees(&self, v: usize, j: usize) -> __mmask16 {
        // SAFETY: four registers of positions.
        let at = unsafe { _mm512_loadu_si512(self.positions.as_ptr().add(v * LANES).cast()) };
        let past = _mm512_cmpge_epi32_mask(at, _mm512_set1_epi32(j as i32));
        match self.of.shape.window {
            Some(w) => past & _mm512_cmplt_epi32_mask(at, _mm512_set1_epi32((j + w) as i32)),
            None => past,
        }
    }

    /// Copies rows (`[.., d]`, by [`Job::lane`]) to lanes `[p, width]`, times `by`, and, if wanted,
    /// to rows `[width, p]`, times that factor.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack<E: Lanes>(
        &self,
        x: &[E],
        by: f32,
        lanes: *mut f32,
        rows: Option<(*mut f32, f32)>,
    ) {
        let (d, p) = (self.of.shape.d, self.of.p);
        for l in (0..self.width).step_by(LANES) {
            for c in (0..p).step_by(LANES) {
                let mut m = [_mm512_setzero_ps(); LANES];
                let here = (self.count - l).min(LANES);
                // SAFETY: rows were checked, masks end with the head; the scratch has the room.
                unsafe {
                    for (r, row) in m.iter_mut().enumerate().take(here) {
                        let from = self.of.lane(self.from + l + r) * d + c;
                        *row = E::load(x.as_ptr().add(from), first(d - c));
                    }
                    if let Some((to, by)) = rows {
                        for (r, row) in m.iter().enumerate() {
                            let row = _mm512_mul_ps(*row, _mm512_set1_ps(by));
                            _mm512_store_ps(to.add((l + r) * p + c), row);
                        }
                    }
                    transpose(&mut m);
                    for (i, column) in m.iter().enumerate() {
                        let column = _mm512_mul_ps(*column, _mm512_set1_ps(by));
                        _mm512_store_ps(lanes.add((c + i) * self.width + l), column);
                    }
                }
            }
        }
    }

    /// Copies lanes `[p, width]`, each times its factor, to rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn unpack<E: Lanes>(&self, lanes: *const f32, by: &[__m512; 4], x: *mut E) {
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

    /// Output and statistics of these queries.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn forward<E: Lanes>(&self, q: &[E], o: *mut E, stats: *mut f32, scratch: &Scratch) {
        let by = self.of.shape.scale * std::f32::consts::LOG2_E;
        let mut running = Running {
            max: [_mm512_set1_ps(LOW); 4],
            sum: [_mm512_setzero_ps(); 4],
        };
        // SAFETY: the scratch was made for this job; rows were checked.
        unsafe {
            self.pack(q, by, scratch.q_lanes, None);
            self.blocks(|at, keys| {
                self.scores(scratch.k, at, keys, scratch.q_lanes, scratch.s);
                match self.vectors {
                    4 => self.softmax::<4>(at, keys, &mut running, scratch),
                    3 => self.softmax::<3>(at, keys, &mut running, scratch),
                    2 => self.softmax::<2>(at, keys, &mut running, scratch),
                    _ => self.softmax::<1>(at, keys, &mut running, scratch),
                }
                self.weigh(scratch.v, at, keys, scratch.s, scratch.o_lanes);
            });
            let one = _mm512_set1_ps(1.0);
            let inverse = running.sum.map(|sum| _mm512_div_ps(one, sum));
            self.unpack(scratch.o_lanes, &inverse, o);
            let (mut max, mut inv) = ([0f32; QUERIES], [0f32; QUERIES]);
            for v in 0..self.vectors {
                _mm512_storeu_ps(max.as_mut_ptr().add(v * LANES), running.max[v]);
                _mm512_storeu_ps(inv.as_mut_ptr().add(v * LANES), inverse[v]);
            }
            for l in 0..self.count {
                let to = 2 * self.of.lane(self.from + l);
                *stats.add(to) = max[l];
                *stats.add(to + 1) = inv[l];
            }
        }
    }

    /// `to[key][lane] = sum over c of keys[key][c] * lanes[c][lane]`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn scores(
        &self,
        from: *const f32,
        at: usize,
        keys: usize,
        lanes: *const f32,
        to: *mut f32,
    ) {
        let (d, p, width) = (self.of.shape.d, self.of.p, self.width);
        // SAFETY: keys of the job, lanes of the chunk.
        unsafe {
            let a = Broadcast {
                at: from.add(at * p),
                by_n: p,
                by_i: 1,
            };
            let b = Rows {
                at: lanes,
                stride: width,
            };
            let c = Rows {
                at: to,
                stride: width,
            };
            product(keys, self.vectors, d, a, b, c, false);
        }
    }

    /// `to[c][lane] (+)= sum over keys of values[key][c] * weights[key][lane]`; sets at the first
    /// block.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn weigh(
        &self,
        from: *const f32,
        at: usize,
        keys: usize,
        weights: *const f32,
        to: *mut f32,
    ) {
        let (d, p, width) = (self.of.shape.d, self.of.p, self.width);
        // SAFETY: as in `scores`.
        unsafe {
            let a = Broadcast {
                at: from.add(at * p),
                by_n: 1,
                by_i: p,
            };
            let b = Rows {
                at: weights,
                stride: width,
            };
            let c = Rows {
                at: to,
                stride: width,
            };
            product(d, self.vectors, keys, a, b, c, at != self.first_key);
        }
    }

    /// Turns a block's scores into weights relative to the maxima so far, and what was summed
    /// before along with them.
    #[target_feature(enable = "avx512f")]
    unsafe fn softmax<const V: usize>(
        &self,
        at: usize,
        keys: usize,
        running: &mut Running,
        scratch: &Scratch,
    ) {
        let edge = self.is_edge(at, keys);
        let s = |j: usize, v: usize| scratch.s.wrapping_add(j * self.width + v * LANES);
        // SAFETY: inside the block.
        unsafe {
            let mut max: [__m512; V] = std::array::from_fn(|v| running.max[v]);
            for j in 0..keys {
                for (v, max) in max.iter_mut().enumerate() {
                    let mut x = _mm512_load_ps(s(j, v));
                    if edge {
                        x = _mm512_mask_mov_ps(_mm512_set1_ps(LOW), self.sees(v, at + j), x);
                    }
                    *max = _mm512_max_ps(*max, x);
                }
            }
            let mut sum = [_mm512_setzero_ps(); V];
            for j in 0..keys {
                for v in 0..V {
                    let mut x = exp2(_mm512_sub_ps(_mm512_load_ps(s(j, v)), max[v]));
                    if edge {
                        x = _mm512_maskz_mov_ps(self.sees(v, at + j), x);
                    }
                    sum[v] = _mm512_add_ps(sum[v], x);
                    _mm512_store_ps(s(j, v), x);
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

    /// Gradients of these queries, and their share of the keys' and values' in the scratch.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn backward<E: Lanes>(&self, seen: &Seen<E>, dq: *mut E, scratch: &Scratch) {
        let (shape, p) = (self.of.shape, self.of.p);
        let by = shape.scale * std::f32::consts::LOG2_E;
        // SAFETY: the scratch was made for this job; rows were checked.
        unsafe {
            self.pack(seen.q, by, scratch.q_lanes, Some((scratch.q, shape.scale)));
            self.pack(seen.d_o, 1.0, scratch.do_lanes, Some((scratch.d_o, 1.0)));
            self.pack(seen.o, 1.0, scratch.o_lanes, None);
            let known = self.known(seen.stats, scratch);
            self.blocks(|at, keys| {
                self.scores(scratch.k, at, keys, scratch.q_lanes, scratch.s);
                self.scores(scratch.v, at, keys, scratch.do_lanes, scratch.ds);
                match self.vectors {
                    4 => self.slopes::<4>(at, keys, &known, scratch),
                    3 => self.slopes::<3>(at, keys, &known, scratch),
                    2 => self.slopes::<2>(at, keys, &known, scratch),
                    _ => self.slopes::<1>(at, keys, &known, scratch),
                }
                let sum = |weights: *const f32, rows: *const f32, to: *mut f32| {
                    let a = Broadcast {
                        at: weights,
                        by_n: self.width,
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
                    product(keys, p / LANES, self.count, a, b, c, true);
                };
                sum(scratch.s, scratch.d_o, scratch.dv);
                sum(scratch.ds, scratch.q, scratch.dk);
                self.weigh(scratch.k, at, keys, scratch.ds, scratch.o_lanes);
            });
            self.unpack(scratch.o_lanes, &[_mm512_set1_ps(shape.scale); 4], dq);
        }
    }

    /// What forward found out about each lane, and `do o`, from the lanes in the scratch.
    #[target_feature(enable = "avx512f")]
    unsafe fn known(&self, stats: &[f32], scratch: &Scratch) -> Known {
        let mut known = Known {
            max: [_mm512_setzero_ps(); 4],
            inverse: [_mm512_setzero_ps(); 4],
            product: [_mm512_setzero_ps(); 4],
        };
        let (mut max, mut inverse) = ([0f32; QUERIES], [0f32; QUERIES]);
        for l in 0..self.count {
            let from = 2 * self.of.lane(self.from + l);
            (max[l], inverse[l]) = (stats[from], stats[from + 1]);
        }
        for v in 0..self.vectors {
            // SAFETY: inside the arrays and the scratch.
            unsafe {
                known.max[v] = _mm512_loadu_ps(max.as_ptr().add(v * LANES));
                known.inverse[v] = _mm512_loadu_ps(inverse.as_ptr().add(v * LANES));
                for c in 0..self.of.shape.d {
                    let at = c * self.width + v * LANES;
                    let (o, d_o) = (
                        _mm512_load_ps(scratch.o_lanes.add(at)),
                        _mm512_load_ps(scratch.do_lanes.add(at)),
                    );
                    known.product[v] = _mm512_fmadd_ps(o, d_o, known.product[v]);
                }
            }
        }
        known
    }

    /// Scores to probabilities, gradients of probabilities to those of scores.
    #[target_feature(enable = "avx512f")]
    unsafe fn slopes<const V: usize>(
        &self,
        at: usize,
        keys: usize,
        known: &Known,
        scratch: &Scratch,
    ) {
        let edge = self.is_edge(at, keys);
        for j in 0..keys {
            for v in 0..V {
                let here = j * self.width + v * LANES;
                // SAFETY: inside the block.
                unsafe {
                    let (s, ds) = (scratch.s.add(here), scratch.ds.add(here));
                    let mut p = exp2(_mm512_sub_ps(_mm512_load_ps(s), known.max[v]));
                    p = _mm512_mul_ps(p, known.inverse[v]);
                    if edge {
                        p = _mm512_maskz_mov_ps(self.sees(v, at + j), p);
                    }
                    let slope = _mm512_sub_ps(_mm512_load_ps(ds), known.product[v]);
                    _mm512_store_ps(s, p);
                    _mm512_store_ps(ds, _mm512_mul_ps(p, slope));
                }
            }
        }
    }
}

/// Maxima (in powers of two) and sums of the lanes so far.
struct Running {
    max: [__m512; 4],
    sum: [__m512; 4],
}

/// Per lane: the maximum, 1 / sum, and `do o`.
struct Known {
    max: [__m512; 4],
    inverse: [__m512; 4],
    product: [__m512; 4],
}
