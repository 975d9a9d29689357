//! Causal attention of single rows over paged keys and values.
//!
//! A row's result is a function of its query, its position and its own blocks' contents: scores
//! of 16 tokens stand in the lanes of a register, sums run over tokens in ascending order, and the
//! softmax's sum is taken lane by lane from the first block seen. So it has the same bits however
//! rows are grouped into prefill chunks and batches, and wherever its blocks lie.

use super::Number;
use super::gemm::Shared;
use super::memory::Memory;
use super::pool::Pool;
use crate::batch::Batch;
use kernels::elem::{Elem, LANES, exp_neg};
use model::AttendSpec;

/// Query heads of one key and value head that are computed together.
const TOGETHER: usize = 4;

/// A layer's keys and values, and the rows at hand.
pub struct Layer<'a, E> {
    pub memory: &'a Memory<E>,
    pub layer: usize,
    pub batch: &'a Batch,
}

/// Stores keys and values (`[rows, kv_heads, d]`) of a batch's rows.
pub fn store<E: Elem>(pool: &mut Pool, of: &Layer<E>, k: &[E], v: &[E]) {
    let Layer {
        memory,
        layer,
        batch,
    } = *of;
    let (heads, d) = (memory.shape.kv_heads, memory.shape.head_dim);
    assert!(
        k.len() == batch.rows.len() * heads * d && v.len() == k.len(),
        "shapes of keys and values"
    );
    if batch.rows.is_empty() {
        return;
    }
    let each = batch.rows.len().div_ceil(4 * pool.threads());
    pool.run(batch.rows.len().div_ceil(each), |piece| {
        for r in piece * each..((piece + 1) * each).min(batch.rows.len()) {
            let (block, slot) = batch.place(r);
            for h in 0..heads {
                let (keys, values) = (memory.keys(layer, block, h), memory.values(layer, block, h));
                let from = (r * heads + h) * d;
                for (i, (&key, &value)) in
                    k[from..from + d].iter().zip(&v[from..from + d]).enumerate()
                {
                    // SAFETY: inside the head's parts; rows have slots of their own.
                    unsafe {
                        *keys.add(i * LANES + slot) = key;
                        *values.add(slot * d + i) = value;
                    }
                }
            }
        }
    });
}

/// Attention of a batch's rows, `q` and `out` `[rows, heads, d]`, after [`store`].
pub fn attend<E: Number>(
    pool: &mut Pool,
    of: &Layer<E>,
    spec: &AttendSpec,
    q: &[E],
    out: &mut [E],
) {
    let Layer {
        memory,
        layer,
        batch,
    } = *of;
    let scale = spec.scale as f32;
    let (rows, d, kv_heads) = (
        batch.rows.len(),
        memory.shape.head_dim,
        memory.shape.kv_heads,
    );
    if rows == 0 {
        return;
    }
    assert!(
        q.len() == out.len() && q.len().is_multiple_of(rows * kv_heads * d),
        "shapes of queries"
    );
    let group = q.len() / (rows * kv_heads * d);
    // a unit is a row and key head; runs of units, so that most know which comes next
    let units = rows * kv_heads;
    let each = units.div_ceil(8 * pool.threads());
    let result = Shared(out.as_mut_ptr());
    pool.run(units.div_ceil(each), |piece| {
        let end = ((piece + 1) * each).min(units);
        let mut scratch = Scratch::default();
        for unit in piece * each..end {
            let (r, h) = (unit / kv_heads, unit % kv_heads);
            let next = (unit + 1).min(end - 1);
            let position = batch.rows[r].position as usize;
            let q = &q[unit * group * d..(unit + 1) * group * d];
            // SAFETY: a row and head's own part of the output.
            let out = unsafe {
                std::slice::from_raw_parts_mut(result.get().add(unit * group * d), group * d)
            };
            let seen = Seen {
                memory,
                layer,
                head: h,
                table: batch.table(r),
                next: (batch.table(next / kv_heads), next % kv_heads),
                first: spec.window.map_or(0, |w| (position + 1).saturating_sub(w)),
                position,
            };
            for (q, out) in q.chunks(TOGETHER * d).zip(out.chunks_mut(TOGETHER * d)) {
                match q.len() / d {
                    4 => heads::<E, 4>(&seen, q, out, scale, &mut scratch),
                    3 => heads::<E, 3>(&seen, q, out, scale, &mut scratch),
                    2 => heads::<E, 2>(&seen, q, out, scale, &mut scratch),
                    _ => heads::<E, 1>(&seen, q, out, scale, &mut scratch),
                }
            }
        }
    });
}

/// Tokens that one row sees: positions `first..=position` of the sequence with this block table.
pub(super) struct Seen<'a, E> {
    pub memory: &'a Memory<E>,
    pub layer: usize,
    pub head: usize,
    pub table: &'a [u32],
    /// Table and head of the unit that is computed after this one.
    pub next: (&'a [u32], usize),
    pub first: usize,
    pub position: usize,
}

impl<'a, E: Elem> Seen<'a, E> {
    /// The blocks seen, and the position of the first one's first token.
    pub fn blocks(&self) -> (&'a [u32], usize) {
        let first = self.first / LANES;
        (&self.table[first..=self.position / LANES], first * LANES)
    }

    /// Tokens seen of block `b` of these.
    #[inline(always)]
    pub fn slots(&self, b: usize, base: usize) -> std::ops::Range<usize> {
        let start = if b == 0 { self.first - base } else { 0 };
        start..(self.position + 1 - base - b * LANES).min(LANES)
    }
}

#[derive(Default)]
pub(super) struct Scratch {
    pub query: Vec<f32>,
    pub scores: Vec<f32>,
}

impl Scratch {
    /// The query times `scale`, and room for scores.
    pub fn fit<E: Elem>(&mut self, q: &[E], scale: f32, scores: usize) {
        self.query.clear();
        self.query.extend(q.iter().map(|x| x.to_f32() * scale));
        if self.scores.len() < scores {
            self.scores.resize(scores, 0.0);
        }
    }
}

/// Attention of `N` query heads over one head of keys and values.
fn heads<E: Number, const N: usize>(
    seen: &Seen<E>,
    q: &[E],
    out: &mut [E],
    scale: f32,
    scratch: &mut Scratch,
) {
    #[cfg(target_arch = "x86_64")]
    if kernels::cpu::simd::available() {
        // SAFETY: the instruction set was just checked; `seen` and the slices fit one another.
        return unsafe { super::wide::heads::<E, N>(seen, q, out, scale, scratch) };
    }
    portable::<E, N>(seen, q, out, scale, scratch);
}

kernels::multiversion! {
    /// [`heads`] on any machine.
    fn portable[E: Elem, const N: usize][E, N](seen: &Seen<E>, q: &[E], out: &mut [E], scale: f32, scratch: &mut Scratch) = portable_body
}

#[inline(always)]
fn portable_body<E: Elem, const N: usize>(
    seen: &Seen<E>,
    q: &[E],
    out: &mut [E],
    scale: f32,
    scratch: &mut Scratch,
) {
    let d = q.len() / N;
    let (table, base) = seen.blocks();
    let width = table.len() * LANES;
    scratch.fit(q, scale, N * width);
    let scores = &mut scratch.scores[..N * width];
    for (b, &id) in table.iter().enumerate() {
        let p = seen.memory.keys(seen.layer, id as usize, seen.head);
        // SAFETY: a head's keys of one block.
        let keys = unsafe { std::slice::from_raw_parts(p, d * LANES) };
        let mut sums = [[0f32; LANES]; N];
        for (i, k) in keys.as_chunks::<LANES>().0.iter().enumerate() {
            for (n, sum) in sums.iter_mut().enumerate() {
                let x = scratch.query[n * d + i];
                for l in 0..LANES {
                    sum[l] = k[l].to_f32().mul_add(x, sum[l]);
                }
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            scores[n * width + b * LANES..][..LANES].copy_from_slice(sum);
        }
    }
    let sums = softmax::<E, N>(seen, scores, base);
    for from in (0..d).step_by(LANES) {
        let count = LANES.min(d - from);
        let mut acc = [[0f32; LANES]; N];
        for (b, &id) in table.iter().enumerate() {
            let p = seen.memory.values(seen.layer, id as usize, seen.head);
            // SAFETY: a head's values of one block.
            let values = unsafe { std::slice::from_raw_parts(p, d * LANES) };
            for slot in seen.slots(b, base) {
                let v = &values[slot * d + from..][..count];
                for (n, acc) in acc.iter_mut().enumerate() {
                    let w = scores[n * width + b * LANES + slot];
                    for (a, v) in acc.iter_mut().zip(v) {
                        *a = v.to_f32().mul_add(w, *a);
                    }
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            for (o, x) in out[n * d + from..][..count].iter_mut().zip(acc) {
                *o = E::from_f32(x / sums[n]);
            }
        }
    }
}

/// Softmax of `N` rows of scores without its division; returns what to divide by.
#[inline(always)]
pub(super) fn softmax<E: Elem, const N: usize>(
    seen: &Seen<E>,
    scores: &mut [f32],
    base: usize,
) -> [f32; N] {
    let mut sums = [0f32; N];
    for (row, total) in scores.chunks_exact_mut(scores.len() / N).zip(&mut sums) {
        row[..seen.first - base].fill(f32::NEG_INFINITY);
        row[seen.position - base + 1..].fill(f32::NEG_INFINITY);
        let row = row.as_chunks_mut::<LANES>().0;
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for c in row.iter() {
            for l in 0..LANES {
                lanes[l] = if c[l] > lanes[l] { c[l] } else { lanes[l] };
            }
        }
        let max = lanes
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut lanes = [0f32; LANES];
        for c in row {
            for l in 0..LANES {
                c[l] = exp_neg(c[l] - max);
                lanes[l] += c[l];
            }
        }
        *total = lanes.iter().sum();
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::memory::Shape;

    /// Rows of several sequences whose blocks lie in no order, against a plain softmax in f64.
    #[test]
    fn equals_plain_attention() {
        for (kv_heads, group, d, window) in [
            (2, 1, 32, None),
            (1, 2, 20, Some(9)),
            (2, 3, 12, None),
            (1, 4, 64, Some(40)),
            (1, 7, 50, None),
            (3, 2, 16, Some(1)),
        ] {
            let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 500.0 - 1.0;
            let lens = [1usize, 15, 16, 17, 70];
            let memory = Memory::<f32>::new(
                Shape {
                    layers: 2,
                    kv_heads,
                    head_dim: d,
                },
                40,
            );
            let mut pool = Pool::new(2);
            let mut batch = Batch::default();
            let mut next = 0u32;
            for len in lens {
                // 27 and 40 have no common divisor: every block once
                let table: Vec<u32> = (0..len.div_ceil(LANES))
                    .map(|_| {
                        next += 1;
                        next * 27 % 40
                    })
                    .collect();
                batch.push(&vec![0; len], 0, &table, None);
            }
            let rows = batch.rows.len();
            let make = |heads: usize, salt: usize| {
                (0..rows * heads * d)
                    .map(|i| number(i + salt))
                    .collect::<Vec<f32>>()
            };
            let (q, k, v) = (
                make(kv_heads * group, 1),
                make(kv_heads, 500),
                make(kv_heads, 7000),
            );
            let of = Layer {
                memory: &memory,
                layer: 1,
                batch: &batch,
            };
            store(&mut pool, &of, &k, &v);
            let mut out = vec![0f32; q.len()];
            attend(
                &mut pool,
                &of,
                &AttendSpec { scale: 0.3, window },
                &q,
                &mut out,
            );
            for run in &batch.runs {
                for r in run.clone() {
                    let first =
                        window.map_or(run.start, |w| (r + 1).saturating_sub(w).max(run.start));
                    for h in 0..kv_heads * group {
                        let at = |x: &[f32], row: usize, heads: usize, head: usize, i: usize| {
                            x[(row * heads + head) * d + i] as f64
                        };
                        let score = |t: usize| {
                            let dot: f64 = (0..d)
                                .map(|i| {
                                    at(&q, r, kv_heads * group, h, i)
                                        * at(&k, t, kv_heads, h / group, i)
                                })
                                .sum();
                            (dot * 0.3).exp()
                        };
                        let total: f64 = (first..=r).map(score).sum();
                        for i in 0..d {
                            let exact: f64 = (first..=r)
                                .map(|t| score(t) * at(&v, t, kv_heads, h / group, i))
                                .sum::<f64>()
                                / total;
                            let found = at(&out, r, kv_heads * group, h, i);
                            assert!(
                                (exact - found).abs() < 1e-5,
                                "row {r} head {h} {i}: {exact} {found}"
                            );
                        }
                    }
                }
            }
        }
    }
}
