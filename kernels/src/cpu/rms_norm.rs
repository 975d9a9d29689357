//! Root-mean-square norm (Zhang and Sennrich, arXiv:1910.07467) over rows of width d:
//!
//! ```text
//! s = 1 / sqrt(mean(x^2) + eps)        y_i = x_i s w_i
//! g_i = dy_i w_i                       dx_i = s (g_i - x_i s^2 mean(g x))
//! dw_i = sum over rows of dy_i x_i s
//! ```
//!
//! x, y, dy, dx `[rows, d]`, w `[d]`, dw `[d]` f32; sums in f32.

use torch::threads::parallel_for;

use super::{Shared, grain};
use crate::elem::{Elem, LANES, total};
use crate::multiversion;

/// Rows whose share of dw is summed before it is added to the others'.
const BLOCK: usize = 256;

/// `y` from `x`, `w`.
///
/// # Panics
/// If lengths are not `rows * d`, `d`, `rows * d`.
pub fn forward<E: Elem>(x: &[E], w: &[E], eps: f32, y: &mut [E]) {
    let d = w.len();
    assert!(
        d > 0 && x.len() == y.len() && x.len().is_multiple_of(d),
        "shapes of rms_norm"
    );
    let out = Shared::new(y);
    parallel_for(x.len() / d, grain(d), &|rows| {
        // SAFETY: parts are disjoint.
        let y = unsafe { out.rows(&rows, d) };
        forward_rows(&x[rows.start * d..rows.end * d], w, eps, y);
    });
}

/// `dx` and `dw` from `dy`.
///
/// # Panics
/// If lengths are not `rows * d` for x, dy, dx and `d` for w, dw.
pub fn backward<E: Elem>(x: &[E], w: &[E], eps: f32, dy: &[E], dx: &mut [E], dw: &mut [f32]) {
    let d = w.len();
    let fits = x.len() == dy.len() && x.len() == dx.len() && dw.len() == d;
    assert!(
        d > 0 && fits && x.len().is_multiple_of(d),
        "shapes of rms_norm's backward"
    );
    let rows = x.len() / d;
    let blocks = rows.div_ceil(BLOCK);
    let mut partial = vec![0f32; blocks * d];
    let (out, sums) = (Shared::new(dx), Shared::new(&mut partial));
    parallel_for(blocks, grain(d * BLOCK), &|part| {
        for block in part {
            let rows = block * BLOCK..((block + 1) * BLOCK).min(rows);
            // SAFETY: blocks are disjoint.
            let (dx, dw) = unsafe { (out.rows(&rows, d), sums.rows(&(block..block + 1), d)) };
            let span = rows.start * d..rows.end * d;
            backward_rows(&x[span.clone()], w, eps, &dy[span], dx, dw);
        }
    });
    dw.fill(0.0);
    for block in partial.chunks_exact(d) {
        for (sum, part) in dw.iter_mut().zip(block) {
            *sum += part;
        }
    }
}

multiversion!(fn forward_rows[E: Elem][E](x: &[E], w: &[E], eps: f32, y: &mut [E]) = forward_body);
multiversion!(
    fn backward_rows[E: Elem][E](x: &[E], w: &[E], eps: f32, dy: &[E], dx: &mut [E], dw: &mut [f32]) =
        backward_body
);

/// 1 / sqrt(mean(x^2) + eps).
#[inline(always)]
fn inverse<E: Elem>(x: &[E], eps: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        for l in 0..LANES {
            let v = x[l].to_f32();
            lanes[l] = v.mul_add(v, lanes[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.to_f32().mul_add(x.to_f32(), *lane);
    }
    1.0 / (total(lanes) / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn forward_body<E: Elem>(x: &[E], w: &[E], eps: f32, y: &mut [E]) {
    let d = w.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let s = inverse(x, eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = E::from_f32(x.to_f32() * s * w.to_f32());
        }
    }
}

#[inline(always)]
fn backward_body<E: Elem>(x: &[E], w: &[E], eps: f32, dy: &[E], dx: &mut [E], dw: &mut [f32]) {
    let d = w.len();
    let rows = x
        .chunks_exact(d)
        .zip(dy.chunks_exact(d))
        .zip(dx.chunks_exact_mut(d));
    for ((x, dy), dx) in rows {
        let s = inverse(x, eps);
        let c = s * s * product(x, w, dy) / d as f32;
        let elements = x.iter().zip(dy).zip(w).zip(dx).zip(dw.iter_mut());
        for ((((x, dy), w), dx), dw) in elements {
            let (x, dy) = (x.to_f32(), dy.to_f32());
            *dx = E::from_f32(s * (dy * w.to_f32() - x * c));
            *dw += dy * x * s;
        }
    }
}

/// The sum of x w dy.
#[inline(always)]
fn product<E: Elem>(x: &[E], w: &[E], dy: &[E]) -> f32 {
    let mut lanes = [0f32; LANES];
    let ((x, x_rest), (w, w_rest), (dy, dy_rest)) = (
        x.as_chunks::<LANES>(),
        w.as_chunks::<LANES>(),
        dy.as_chunks::<LANES>(),
    );
    for ((x, w), dy) in x.iter().zip(w).zip(dy) {
        for l in 0..LANES {
            lanes[l] += dy[l].to_f32() * w[l].to_f32() * x[l].to_f32();
        }
    }
    for (((lane, x), w), dy) in lanes.iter_mut().zip(x_rest).zip(w_rest).zip(dy_rest) {
        *lane += dy.to_f32() * w.to_f32() * x.to_f32();
    }
    total(lanes)
}
