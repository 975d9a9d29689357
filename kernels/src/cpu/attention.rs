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
//! `stats` `[rows, heads, 2]` (m in powers of two, 1 / l). Sums in f32; of bf16, p and ds are rounded
//! to bf16 before they are multiplied, as libtorch's attention does.
//!
//! Queries (rows times the heads that share a key head) stand in the lanes of registers, so that a
//! softmax runs down the lanes and every product broadcasts keys or values as they lie. A job is
//! one [`Family`] and key head: it alone writes the gradients of its keys, in a fixed order, so
//! results do not depend on the number of threads.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::gemm::Cell;
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
pub fn forward<E: Cell>(
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
                    of.keys(k, v, v, &scratch);
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
pub fn backward<E: Cell>(
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
                    of.keys(k, v, k, &scratch);
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

/// Memory of one job, in 32-bit cells; `p` is d rounded up to registers, `w` a chunk's lanes. An f32
/// is a cell; two bf16 that follow one another in the dimension that is summed over are one.
struct Scratch {
    /// `[keys, p]` elements.
    k: *mut f32,
    v: *mut f32,
    /// Of bf16 only: values, in backward keys, two by two, `[keys / 2, p]` cells.
    pairs: *mut f32,
    /// `[keys, p]` f32.
    dk: *mut f32,
    dv: *mut f32,
    /// Queries, `[p, w]` elements, two of p to a cell.
    q_lanes: *mut f32,
    /// Gradient of the output, as `q_lanes`.
    do_lanes: *mut f32,
    /// Output, or gradient of the queries, `[p, w]` f32.
    o_lanes: *mut f32,
    /// Queries, `[w, p]` elements, two of w to a cell.
    q: *mut f32,
    /// Gradient of the output, as `q`.
    d_o: *mut f32,
    /// Scores `[KEYS, w]` f32; then probabilities, in forward two of KEYS to a cell.
    s: *mut f32,
    /// Probabilities in backward, two of w to a cell; those of f32 are in `s`.
    p_rows: *mut f32,
    /// Gradients of probabilities `[KEYS, w]` f32; then of scores, two of KEYS to a cell.
    ds: *mut f32,
    /// Gradients of scores, two of w to a cell; those of f32 are in `ds`.
    ds_rows: *mut f32,
}

/// Calls `work` with memory of these sizes, each on cache lines of its own.
fn with_scratch(sizes: [usize; 14], work: impl FnOnce(Scratch)) {
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

    fn sizes(&self) -> [usize; 14] {
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
    fn lane(&self, l: usize) -> usize {
        let row = self.piece.queries.start + l / self.group;
        row * self.shape.heads + self.head * self.group + l % self.group
    }

    /// Copies keys and values to the scratch, and pairs of `paired` of them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn keys<E: Cell>(&self, k: &[E], v: &[E], paired: &[E], scratch: &Scratch) {
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
    /// First key that any lane sees, or the one before it.
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

    /// Copies rows (`[.., d]`, by [`Job::lane`]) to lanes `[p, width]` of cells over p and, if wanted,
    /// to rows `[width, p]` of cells over the rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack<E: Cell>(&self, x: &[E], lanes: *mut f32, rows: Option<*mut f32>) {
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
    unsafe fn forward<E: Cell>(&self, q: &[E], o: *mut E, stats: *mut f32, scratch: &Scratch) {
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
    unsafe fn scores<E: Cell>(
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
    unsafe fn weigh<E: Cell>(
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
    unsafe fn collect<E: Cell>(
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

    /// Gradients of these queries, and their share of the keys' and values' in the scratch.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn backward<E: Cell>(&self, seen: &Seen<E>, dq: *mut E, scratch: &Scratch) {
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
        let mut of = [[0f32; QUERIES]; 3];
        for l in 0..self.count {
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
            of[0][l] = seen.stats[2 * row];
            of[1][l] = seen.stats[2 * row + 1];
            of[2][l] = _mm512_reduce_add_ps(sum);
        }
        let mut lanes = [[_mm512_setzero_ps(); 4]; 3];
        for (lanes, of) in lanes.iter_mut().zip(&of) {
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

/// The nearest bf16, with whatever behind its bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(x: __m512) -> __m512 {
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
unsafe fn put(to: *mut f32, low: __m512, high: __m512) {
    let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
    let cells = _mm512_mask_mov_epi16(low, 0xaaaa_aaaa, _mm512_castps_si512(high));
    // SAFETY: by the contract above.
    unsafe { _mm512_storeu_si512(to.cast(), cells) }
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
