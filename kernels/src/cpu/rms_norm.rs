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
use crate::elem::{Elem, sum};
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

#[inline(always)]
fn inverse<E: Elem>(x: &[E], eps: f32) -> f32 {
    let squares = sum(x.len(), |i| {
        let v = x[i].to_f32();
        v * v
    });
    1.0 / (squares / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn forward_body<E: Elem>(x: &[E], w: &[E], eps: f32, y: &mut [E]) {
    let d = w.len();
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        let s = inverse(x, eps);
        for i in 0..d {
            y[i] = E::from_f32(x[i].to_f32() * s * w[i].to_f32());
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
        let gx = sum(d, |i| dy[i].to_f32() * w[i].to_f32() * x[i].to_f32());
        let c = s * s * gx / d as f32;
        for i in 0..d {
            let (x, dy) = (x[i].to_f32(), dy[i].to_f32());
            dx[i] = E::from_f32(s * (dy * w[i].to_f32() - x * c));
            dw[i] += dy * x * s;
        }
    }
}
