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
//!
//! | module | what |
//! |---|---|
//! | `job` | a piece and key head: its memory, its keys and values |
//! | `chunk` | some lanes of its queries: rows to lanes and back, products |
//! | `ahead`, `back` | a chunk's output, and its gradients |

mod ahead;
mod back;
mod chunk;
mod job;

use std::ops::Range;

use super::simd::{Cell, available};
use super::{Shared, pieces};
use crate::elem::LANES;
use back::Seen;
use job::{Job, with_scratch};

/// Queries of a chunk: four registers.
const QUERIES: usize = 4 * LANES;
/// Keys of a block: scores of a chunk stay in the first-level cache.
const KEYS: usize = 64;

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
