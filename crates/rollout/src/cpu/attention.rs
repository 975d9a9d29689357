//! Causal attention of single rows over paged keys and values.
//!
//! A row's result is a function of its query, its position and its own blocks' contents: scores
//! of 16 tokens stand in the lanes of a register, sums run over tokens in ascending order, and the
//! softmax's sum is taken lane by lane from the first block seen. So it has the same bits however
//! rows are grouped into prefill chunks and batches, and wherever its blocks lie.

use super::elem::{Elem, LANES, exp_neg};
use super::gemm::Shared;
use super::memory::Memory;
use super::pool::Pool;
use crate::batch::Batch;

/// Query heads of one key and value head that are computed together.
const TOGETHER: usize = 4;
/// Elements of a head summed in registers at a time.
const WIDE: usize = 2 * LANES;

/// Stores keys and values (`[rows, kv_heads, d]`) of a batch's rows.
pub fn store<E: Elem>(pool: &mut Pool, memory: &Memory<E>, layer: usize, batch: &Batch, k: &[E], v: &[E]) {
    let (heads, d) = (memory.shape.kv_heads, memory.shape.head_dim);
    assert!(k.len() == batch.rows.len() * heads * d && v.len() == k.len(), "shapes of keys and values");
    let each = batch.rows.len().div_ceil(4 * pool.threads());
    pool.run(batch.rows.len().div_ceil(each), |piece| {
        for r in piece * each..((piece + 1) * each).min(batch.rows.len()) {
            let (block, slot) = batch.place(r);
            for h in 0..heads {
                let (keys, values) = (memory.keys(layer, block, h), memory.values(layer, block, h));
                let from = (r * heads + h) * d;
                for (i, (&key, &value)) in k[from..from + d].iter().zip(&v[from..from + d]).enumerate() {
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
pub fn attend<E: Elem>(
    pool: &mut Pool,
    memory: &Memory<E>,
    layer: usize,
    batch: &Batch,
    q: &[E],
    out: &mut [E],
    scale: f32,
    window: Option<usize>,
) {
    let (rows, d, kv_heads) = (batch.rows.len(), memory.shape.head_dim, memory.shape.kv_heads);
    if rows == 0 {
        return;
    }
    assert!(q.len() == out.len() && q.len().is_multiple_of(rows * kv_heads * d), "shapes of queries");
    let group = q.len() / (rows * kv_heads * d);
    // few rows are also cut by head, so that every thread has work
    let cut = if rows < 4 * pool.threads() { kv_heads } else { 1 };
    let result = Shared(out.as_mut_ptr());
    pool.run(rows * cut, |piece| {
        let (r, part) = (piece / cut, piece % cut);
        let position = batch.rows[r].position as usize;
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let mut scratch = Scratch::default();
        for h in part * (kv_heads / cut)..(part + 1) * (kv_heads / cut) {
            let from = (r * kv_heads + h) * group * d;
            let q = &q[from..from + group * d];
            // SAFETY: a row and head's own part of the output.
            let out = unsafe { std::slice::from_raw_parts_mut(result.get().add(from), group * d) };
            let seen = Seen { memory, layer, head: h, table: batch.table(r), first, position };
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

super::elem::multiversion! {
    /// Attention of `N` query heads over one head of keys and values.
    pub fn heads[E: Elem, const N: usize][E, N](seen: &Seen<E>, q: &[E], out: &mut [E], scale: f32, scratch: &mut Scratch) = heads_body
}

#[inline(always)]
fn heads_body<E: Elem, const N: usize>(seen: &Seen<E>, q: &[E], out: &mut [E], scale: f32, scratch: &mut Scratch) {
    let d = q.len() / N;
    let (first_block, last_block) = (seen.first / LANES, seen.position / LANES);
    let table = &seen.table[first_block..=last_block];
    let width = table.len() * LANES;
    let base = first_block * LANES;
    scratch.query.clear();
    scratch.query.extend(q.iter().map(|x| x.to_f32() * scale));
    scratch.scores.resize(scratch.scores.len().max(N * width), 0.0);
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
        let mut sums = [[[0f32; LANES]; 2]; N];
        for i in 0..d {
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
        let max = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
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
    let values = |i: usize| -> &[E] {
        let p = seen.memory.values(seen.layer, table[i] as usize, seen.head);
        // SAFETY: a head's values of one block.
        unsafe { std::slice::from_raw_parts(p, d * LANES) }
    };
    let mut from = 0;
    while from < d {
        let step = if from + WIDE <= d { WIDE } else { LANES.min(d - from) };
        let mut acc = [[0f32; WIDE]; N];
        for b in 0..table.len() {
            let block = values(b);
            let start = if b == 0 { seen.first - base } else { 0 };
            let end = (seen.position + 1 - base - b * LANES).min(LANES);
            for slot in start..end {
                let v = &block[slot * d + from..];
                let weight = |n: usize| scores[n * width + b * LANES + slot];
                if step == WIDE {
                    let v: &[E; WIDE] = v[..WIDE].try_into().expect("two registers");
                    for (n, a) in acc.iter_mut().enumerate() {
                        let w = weight(n);
                        for l in 0..WIDE {
                            a[l] = v[l].to_f32().mul_add(w, a[l]);
                        }
                    }
                } else {
                    for (n, a) in acc.iter_mut().enumerate() {
                        let w = weight(n);
                        for (x, y) in a.iter_mut().zip(&v[..step]) {
                            *x = y.to_f32().mul_add(w, *x);
                        }
                    }
                }
            }
        }
        for (n, a) in acc.iter().enumerate() {
            for (o, x) in out[n * d + from..][..step].iter_mut().zip(a) {
                *o = E::from_f32(x / sums[n]);
            }
        }
        from += step;
    }
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
