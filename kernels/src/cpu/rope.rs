//! Rotary position embedding (Su et al., arXiv:2104.09864), in the half-split form of Hugging Face:
//!
//! ```text
//! y_i = x_i c_i - x_{i+h} s_i          y_{i+h} = x_{i+h} c_i + x_i s_i          h = d / 2
//! ```
//!
//! x, y `[rows, heads, d]`, c and s `[rows, d / 2]` f32. The backward is the rotation by the
//! opposite angle.

use torch::threads::parallel_for;

use super::{Shared, grain};
use crate::elem::Elem;
use crate::multiversion;

/// A rotation of heads of width `d`; `inverse` turns the other way.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    pub cos: &'a [f32],
    pub sin: &'a [f32],
    pub d: usize,
    pub inverse: bool,
}

/// `y` from `x`.
///
/// # Panics
/// If lengths are not `rows * heads * d` and `rows * d / 2`, or `d` is odd.
pub fn turn<E: Elem>(x: &[E], turn: Turn, y: &mut [E]) {
    let half = turn.d / 2;
    assert!(
        half > 0 && turn.d.is_multiple_of(2),
        "rope turns pairs: a head of {}",
        turn.d
    );
    let rows = turn.cos.len() / half;
    let fits = turn.cos.len() == rows * half && turn.sin.len() == turn.cos.len();
    let heads = x.len() / (rows * turn.d).max(1);
    assert!(
        fits && x.len() == rows * heads * turn.d && y.len() == x.len(),
        "shapes of rope"
    );
    let width = heads * turn.d;
    let out = Shared::new(y);
    parallel_for(rows, grain(width), &|part| {
        // SAFETY: parts are disjoint.
        let y = unsafe { out.rows(&part, width) };
        let span = part.start * half..part.end * half;
        let turn = Turn {
            cos: &turn.cos[span.clone()],
            sin: &turn.sin[span],
            ..turn
        };
        turn_rows(&x[part.start * width..part.end * width], turn, width, y);
    });
}

multiversion!(fn turn_rows[E: Elem][E](x: &[E], turn: Turn<'_>, width: usize, y: &mut [E]) = turn_body);

#[inline(always)]
fn turn_body<E: Elem>(x: &[E], turn: Turn<'_>, width: usize, y: &mut [E]) {
    let half = turn.d / 2;
    let sign = if turn.inverse { -1.0 } else { 1.0 };
    let angles = turn.cos.chunks_exact(half).zip(turn.sin.chunks_exact(half));
    let rows = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
    for ((x, y), (cos, sin)) in rows.zip(angles) {
        for (x, y) in x.chunks_exact(turn.d).zip(y.chunks_exact_mut(turn.d)) {
            let ((a, b), (ya, yb)) = (x.split_at(half), y.split_at_mut(half));
            let pairs = a.iter().zip(b).zip(cos.iter().zip(sin));
            for ((ya, yb), ((a, b), (c, s))) in ya.iter_mut().zip(yb).zip(pairs) {
                let (a, b, s) = (a.to_f32(), b.to_f32(), sign * s);
                *ya = E::from_f32(a * c - b * s);
                *yb = E::from_f32(b * c + a * s);
            }
        }
    }
}
