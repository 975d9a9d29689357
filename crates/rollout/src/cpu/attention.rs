//! Causal attention of single rows over paged keys and values.
//!
//! A row's result is a function of its query, its position and its own blocks' contents: scores
//! of 16 tokens stand in the lanes of a register, sums run over tokens in ascending order, and the
//! softmax's sum is taken lane by lane from the first block seen. So it has the same bits however
//! rows are grouped into prefill chunks and batches, and wherever its blocks lie.

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
pub fn attend<E: Elem>(pool: &mut Pool, of: &Layer<E>, spec: &AttendSpec, q: &[E], out: &mut [E]) {
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
    // few rows are also cut by head, so that every thread has work
    let cut = if rows < 4 * pool.threads() {
        kv_heads
    } else {
        1
    };
    let result = Shared(out.as_mut_ptr());
    pool.run(rows * cut, |piece| {
        let (r, part) = (piece / cut, piece % cut);
        let position = batch.rows[r].position as usize;
        let first = spec.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut scratch = Scratch::default();
        for h in part * (kv_heads / cut)..(part + 1) * (kv_heads / cut) {
            let from = (r * kv_heads + h) * group * d;
            let q = &q[from..from + group * d];
            // SAFETY: a row and head's own part of the output.
            let out = unsafe { std::slice::from_raw_parts_mut(result.get().add(from), group * d) };
            let seen = Seen {
                memory,
                layer,
                head: h,
                table: batch.table(r),
                first,
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
pub struct Seen<'a, E> {
    memory: &'a Memory<E>,
    layer: usize,
    head: usize,
    table: &'a [u32],
    first: usize,
    position: usize,
}

#[derive(Default)]
pub struct Scratch {
    query: Vec<f32>,
    scores: Vec<f32>,
}

kernels::multiversion! {
    /// Attention of `N` query heads over one head of keys and values.
    pub fn heads[E: Elem, const N: usize][E, N](seen: &Seen<E>, q: &[E], out: &mut [E], scale: f32, scratch: &mut Scratch) = heads_body
}

#[inline(always)]
fn heads_body<E: Elem, const N: usize>(
    seen: &Seen<E>,
    q: &[E],
    out: &mut [E],
    scale: f32,
    scratch: &mut Scratch,
) {
    let d = q.len() / N;
    let (first_block, last_block) = (seen.first / LANES, seen.position / LANES);
    let table = &seen.table[first_block..=last_block];
    let width = table.len() * LANES;
    let base = first_block * LANES;
    scratch.query.clear();
    scratch.query.extend(q.iter().map(|x| x.to_f32() * scale));
    scratch
        .scores
        .resize(scratch.scores.len().max(N * width), 0.0);
    let scores = &mut scratch.scores[..N * width];

    // 1. scores, two blocks at a time: enough independent sums to hide the latency of one
    let mut at = 0;
    while at < table.len() {
        let two = at + 1 < table.len();
        let keys = |i: usize| -> &[E] {
            let p = seen.memory.keys(seen.layer, table[i] as usize, seen.head);
            // SAFETY: a head's keys of one block.
            unsafe { std::slice::from_raw_parts(p, d * LANES) }
        };
        let pair = [keys(at), keys(if two { at + 1 } else { at })];
        // while these are summed, the values of the same tokens and the next keys are on their way
        let id = |i: usize| table[i.min(table.len() - 1)] as usize;
        let soon = [
            seen.memory.keys(seen.layer, id(at + 2), seen.head),
            seen.memory.keys(seen.layer, id(at + 3), seen.head),
            seen.memory.values(seen.layer, id(at), seen.head),
            seen.memory.values(seen.layer, id(at + 1), seen.head),
        ];
        let mut sums = [[[0f32; LANES]; 2]; N];
        for i in 0..d {
            for p in soon {
                prefetch(p.wrapping_add(i * LANES));
            }
            let lanes = pair.map(|k| widen(&k[i * LANES..]));
            for (n, sum) in sums.iter_mut().enumerate() {
                let x = scratch.query[n * d + i];
                for (s, k) in sum.iter_mut().zip(&lanes) {
                    for l in 0..LANES {
                        s[l] = k[l].mul_add(x, s[l]);
                    }
                }
            }
        }
        for (n, sum) in sums.iter().enumerate() {
            let to = &mut scores[n * width + at * LANES..];
            to[..LANES].copy_from_slice(&sum[0]);
            if two {
                to[LANES..2 * LANES].copy_from_slice(&sum[1]);
            }
        }
        at += 2;
    }

    // 2. softmax without its division
    let mut sums = [0f32; N];
    for (row, total) in scores.chunks_exact_mut(width).zip(&mut sums) {
        row[..seen.first - base].fill(f32::NEG_INFINITY);
        row[seen.position - base + 1..].fill(f32::NEG_INFINITY);
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for c in row.chunks_exact(LANES) {
            for l in 0..LANES {
                lanes[l] = if c[l] > lanes[l] { c[l] } else { lanes[l] };
            }
        }
        let max = lanes
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut lanes = [0f32; LANES];
        for c in row.chunks_exact_mut(LANES) {
            for l in 0..LANES {
                c[l] = exp_neg(c[l] - max);
                lanes[l] += c[l];
            }
        }
        *total = lanes.iter().sum();
    }

    // 3. weighted sum of the values, a register or two of the head at a time
    let weighted = Weighted {
        seen,
        table,
        base,
        scores,
        width,
        sums: &sums,
    };
    let mut from = 0;
    while from < d {
        from += match d - from {
            left if left >= 2 * LANES => weighted.columns::<N, 2>(from, 2 * LANES, out),
            left => weighted.columns::<N, 1>(from, left.min(LANES), out),
        };
    }
}

/// Softmax weights (before their division by `sums`) of `table`'s tokens, `[N][width]`.
struct Weighted<'a, E> {
    seen: &'a Seen<'a, E>,
    table: &'a [u32],
    /// Position of the table's first token.
    base: usize,
    scores: &'a [f32],
    width: usize,
    sums: &'a [f32],
}

impl<E: Elem> Weighted<'_, E> {
    /// Elements `from..from + count` of the output, held in `R` registers; returns `count`.
    #[inline(always)]
    fn columns<const N: usize, const R: usize>(
        &self,
        from: usize,
        count: usize,
        out: &mut [E],
    ) -> usize {
        let (seen, d) = (self.seen, out.len() / N);
        let mut acc = [[[0f32; LANES]; R]; N];
        for (b, &id) in self.table.iter().enumerate() {
            let p = seen.memory.values(seen.layer, id as usize, seen.head);
            // SAFETY: a head's values of one block.
            let block = unsafe { std::slice::from_raw_parts(p, d * LANES) };
            let start = if b == 0 { seen.first - self.base } else { 0 };
            let end = (seen.position + 1 - self.base - b * LANES).min(LANES);
            for slot in start..end {
                let v = &block[slot * d + from..][..count];
                let mut lanes = [[0f32; LANES]; R];
                if count == R * LANES {
                    for (r, lane) in lanes.iter_mut().enumerate() {
                        *lane = widen(&v[r * LANES..]);
                    }
                } else {
                    for (lane, v) in lanes[0].iter_mut().zip(v) {
                        *lane = v.to_f32();
                    }
                }
                for (n, acc) in acc.iter_mut().enumerate() {
                    let w = self.scores[n * self.width + b * LANES + slot];
                    for (a, v) in acc.iter_mut().zip(&lanes) {
                        for l in 0..LANES {
                            a[l] = v[l].mul_add(w, a[l]);
                        }
                    }
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            for (o, x) in out[n * d + from..][..count]
                .iter_mut()
                .zip(acc.iter().flatten())
            {
                *o = E::from_f32(x / self.sums[n]);
            }
        }
        count
    }
}

#[inline(always)]
fn prefetch<E>(at: *const E) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, valid for any address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

#[inline(always)]
fn widen<E: Elem>(x: &[E]) -> [f32; LANES] {
    let x: &[E; LANES] = x[..LANES].try_into().expect("a register");
    let mut out = [0f32; LANES];
    for l in 0..LANES {
        out[l] = x[l].to_f32();
    }
    out
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
                batch.push(&vec![0; len], 0, &table);
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
