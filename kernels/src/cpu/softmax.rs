//! Log-probability of one element of a softmax, and its entropy, over rows of logits z:
//!
//! ```text
//! u_j = (z_j - max z) b        s = sum e^(u_j)        p_j = e^(u_j) / s
//! logp = u_t - ln s            H = ln s - sum p_j u_j
//! dz_j = b (g ([j = t] - p_j) - h p_j (u_j - ln s + H))       g, h: gradients of logp and H
//! ```
//!
//! z, dz `[rows, n]`, t, logp, H, g, h `[rows]`; `stats` `[rows, 2]` holds max z and ln s. Two passes
//! over a row that is in the first-level cache by the second, arithmetic in f32. A row's results
//! depend on that row alone.

use std::arch::x86_64::*;

use torch::threads::parallel_for;

use super::simd::{Lanes, available, exp2, first};
use super::{Shared, grain};
use crate::elem::LANES;

/// What is known of rows after [`forward`].
#[derive(Clone, Copy)]
pub struct Known<'a> {
    pub targets: &'a [i64],
    pub stats: &'a [f32],
    /// Empty unless the entropy has a gradient.
    pub entropy: &'a [f32],
    /// What logits are multiplied by: b.
    pub by: f32,
}

/// `logp`, `stats` and, unless it is empty, `entropy`.
///
/// # Panics
/// Without AVX-512, if lengths do not fit, or for a target that is no element of its row.
pub fn forward<E: Lanes>(
    z: &[E],
    targets: &[i64],
    by: f32,
    logp: &mut [f32],
    entropy: &mut [f32],
    stats: &mut [f32],
) {
    let n = check(z, targets);
    let rows = targets.len();
    let fits = logp.len() == rows && stats.len() == 2 * rows;
    assert!(
        fits && (entropy.is_empty() || entropy.len() == rows),
        "shapes of a softmax"
    );
    let wanted = !entropy.is_empty();
    let (logp, entropy, stats) = (Shared::new(logp), Shared::new(entropy), Shared::new(stats));
    parallel_for(rows, grain(n), &|part| {
        for r in part {
            let z = &z[r * n..(r + 1) * n];
            // SAFETY: `check` found AVX-512; rows are disjoint.
            unsafe {
                let row = measure(z, by);
                let ln = row.sum.ln();
                let u = (z[targets[r] as usize].to_f32() - row.max) * by;
                *logp.pointer().add(r) = u - ln;
                if wanted {
                    *entropy.pointer().add(r) = ln - row.weighted / row.sum;
                }
                *stats.pointer().add(2 * r) = row.max;
                *stats.pointer().add(2 * r + 1) = ln;
            }
        }
    });
}

/// Turns `z` into `dz`; `h` may be empty.
///
/// # Panics
/// As [`forward`].
pub fn backward<E: Lanes>(z: &mut [E], known: Known, g: &[f32], h: &[f32]) {
    let n = check(z, known.targets);
    let rows = known.targets.len();
    let fits = g.len() == rows && known.stats.len() == 2 * rows;
    let entropy = h.is_empty() || h.len() == rows && known.entropy.len() == rows;
    assert!(fits && entropy, "shapes of a softmax's backward");
    let out = Shared::new(z);
    parallel_for(rows, grain(n), &|part| {
        for r in part {
            let row = Row {
                max: known.stats[2 * r],
                ln: known.stats[2 * r + 1],
                by: known.by,
                g: g[r],
                h: h.get(r).copied().unwrap_or(0.0),
                entropy: known.entropy.get(r).copied().unwrap_or(0.0),
            };
            // SAFETY: `check` found AVX-512; rows are disjoint.
            unsafe { slopes(out.rows(&(r..r + 1), n), known.targets[r] as usize, row) };
        }
    });
}

/// Elements of a row.
fn check<E>(z: &[E], targets: &[i64]) -> usize {
    assert!(available(), "a softmax by this kernel needs AVX-512");
    let n = z.len() / targets.len().max(1);
    let inside = targets.iter().all(|&t| (0..n as i64).contains(&t));
    assert!(
        z.len() == n * targets.len() && inside,
        "shapes and targets of a softmax"
    );
    n
}

struct Measure {
    max: f32,
    sum: f32,
    /// The sum of e^u u.
    weighted: f32,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn measure<E: Lanes>(z: &[E], by: f32) -> Measure {
    let mut most = _mm512_set1_ps(f32::NEG_INFINITY);
    for at in (0..z.len()).step_by(LANES) {
        let mask = first(z.len() - at);
        // SAFETY: masked to the row.
        let x = unsafe { E::load(z.as_ptr().add(at), mask) };
        // of a number and a NaN this takes the second: a NaN stays, or shows in the sum
        most = _mm512_mask_max_ps(most, mask, most, x);
    }
    let max = _mm512_reduce_max_ps(most);
    let (bases, by) = (_mm512_set1_ps(max), _mm512_set1_ps(by));
    let to_powers = _mm512_set1_ps(std::f32::consts::LOG2_E);
    let (mut sum, mut weighted) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for at in (0..z.len()).step_by(LANES) {
        let mask = first(z.len() - at);
        // SAFETY: masked to the row.
        let x = unsafe { E::load(z.as_ptr().add(at), mask) };
        let u = _mm512_mul_ps(_mm512_sub_ps(x, bases), by);
        let e = exp2(_mm512_mul_ps(u, to_powers));
        sum = _mm512_mask_add_ps(sum, mask, sum, e);
        weighted = _mm512_mask3_fmadd_ps(e, u, weighted, mask);
    }
    Measure {
        max,
        sum: _mm512_reduce_add_ps(sum),
        weighted: _mm512_reduce_add_ps(weighted),
    }
}

struct Row {
    max: f32,
    ln: f32,
    by: f32,
    g: f32,
    h: f32,
    entropy: f32,
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn slopes<E: Lanes>(z: &mut [E], target: usize, row: Row) {
    let set = |x: f32| _mm512_set1_ps(x);
    let to_powers = set(std::f32::consts::LOG2_E);
    // g + h (u - ln s + H) = h u + rest
    let rest = set(row.g + row.h * (row.entropy - row.ln));
    let from = z[target].to_f32();
    for at in (0..z.len()).step_by(LANES) {
        let mask = first(z.len() - at);
        // SAFETY: masked to the row.
        unsafe {
            let x = E::load(z.as_ptr().add(at), mask);
            let u = _mm512_mul_ps(_mm512_sub_ps(x, set(row.max)), set(row.by));
            let p = exp2(_mm512_mul_ps(_mm512_sub_ps(u, set(row.ln)), to_powers));
            let slope = _mm512_mul_ps(p, _mm512_fmadd_ps(u, set(row.h), rest));
            E::store(
                z.as_mut_ptr().add(at),
                mask,
                _mm512_mul_ps(slope, set(-row.by)),
            );
        }
    }
    // the target's own, rounded once
    let u = (from - row.max) * row.by;
    let p = (u - row.ln).exp();
    let slope = row.g - p * (row.g + row.h * (u - row.ln + row.entropy));
    z[target] = E::from_f32(slope * row.by);
}
