//! The inner loops of [`super::attention`] for AVX-512, with its bits: sums in registers, and the
//! next unit's keys and values asked for in time.

use std::arch::x86_64::*;

use kernels::cpu::simd::{Lanes, first};
use kernels::elem::LANES;

use super::attention::{Scratch, Seen, softmax};

/// Attention of `N` query heads over one head of keys and values.
///
/// # Safety
/// AVX-512; `q` and `out` are `N` heads of the memory's size, the tables' blocks are the memory's.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub unsafe fn heads<E: Lanes, const N: usize>(
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
    // two blocks at a time: enough independent sums to hide the latency of one
    for at in (0..table.len()).step_by(2) {
        let two = at + 1 < table.len();
        let keys = [at, at + usize::from(two)]
            .map(|b| seen.memory.keys(seen.layer, table[b] as usize, seen.head));
        let soon = soon(seen, base / LANES + at);
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        // SAFETY: a head's keys of a block are `[d][16]`; the scratch was made to fit.
        unsafe {
            for i in 0..d {
                if (i * LANES * size_of::<E>()).is_multiple_of(64) {
                    for p in soon {
                        // to the second-level cache: the keys and values of a unit come from far,
                        // in parts too short for the hardware to foresee
                        _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(i * LANES).cast());
                    }
                }
                let k = [
                    E::load(keys[0].add(i * LANES), !0),
                    E::load(keys[1].add(i * LANES), !0),
                ];
                for (n, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*scratch.query.as_ptr().add(n * d + i));
                    sums[0] = _mm512_fmadd_ps(k[0], x, sums[0]);
                    sums[1] = _mm512_fmadd_ps(k[1], x, sums[1]);
                }
            }
            for (n, sums) in sums.iter().enumerate() {
                let to = scratch.scores.as_mut_ptr().add(n * width + at * LANES);
                _mm512_storeu_ps(to, sums[0]);
                if two {
                    _mm512_storeu_ps(to.add(LANES), sums[1]);
                }
            }
        }
    }
    let sums = softmax::<E, N>(seen, &mut scratch.scores[..N * width], base);
    let mut from = 0;
    while from < d {
        // SAFETY: as above; scores are weights now.
        from += unsafe {
            match d - from {
                32.. => columns::<E, N, 2>(seen, &scratch.scores, sums, from, out),
                _ => columns::<E, N, 1>(seen, &scratch.scores, sums, from, out),
            }
        };
    }
}

/// The next unit's keys and values of two blocks from the one numbered `at`.
fn soon<E: Lanes>(seen: &Seen<E>, at: usize) -> [*const E; 4] {
    let (table, head) = seen.next;
    let id = |i: usize| table[i.min(table.len() - 1)] as usize;
    let (a, b) = (id(at), id(at + 1));
    [
        seen.memory.keys(seen.layer, a, head),
        seen.memory.values(seen.layer, a, head),
        seen.memory.keys(seen.layer, b, head),
        seen.memory.values(seen.layer, b, head),
    ]
    .map(<*mut E>::cast_const)
}

/// Elements from `from` of the output, up to `R` registers of them; returns how many those hold.
///
/// # Safety
/// As [`heads`]; `weights` are `[N][tokens of the blocks seen]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn columns<E: Lanes, const N: usize, const R: usize>(
    seen: &Seen<E>,
    weights: &[f32],
    sums: [f32; N],
    from: usize,
    out: &mut [E],
) -> usize {
    let d = out.len() / N;
    let (table, base) = seen.blocks();
    let width = table.len() * LANES;
    let mask = |r: usize| first(d - from - (r * LANES).min(d - from));
    let masks: [__mmask16; R] = std::array::from_fn(mask);
    let mut acc = [[_mm512_setzero_ps(); R]; N];
    // SAFETY: a head's values of a block are `[16][d]`; masks end with the head.
    unsafe {
        for (b, &id) in table.iter().enumerate() {
            let values = seen.memory.values(seen.layer, id as usize, seen.head);
            for slot in seen.slots(b, base) {
                let mut v = [_mm512_setzero_ps(); R];
                for (r, v) in v.iter_mut().enumerate() {
                    *v = E::load(values.add(slot * d + from + r * LANES), masks[r]);
                }
                for (n, acc) in acc.iter_mut().enumerate() {
                    let at = n * width + b * LANES + slot;
                    let w = _mm512_set1_ps(*weights.as_ptr().add(at));
                    for (acc, v) in acc.iter_mut().zip(v) {
                        *acc = _mm512_fmadd_ps(v, w, *acc);
                    }
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            for (r, acc) in acc.iter().enumerate() {
                let to = out.as_mut_ptr().add(n * d + from + r * LANES);
                E::store(to, masks[r], _mm512_div_ps(*acc, _mm512_set1_ps(sums[n])));
            }
        }
    }
    R * LANES
}
