//! SwiGLU's product (Shazeer, arXiv:2002.05202), elementwise over g, u of one shape:
//!
//! ```text
//! y = g sigma(g) u
//! dg = dy u sigma(g) (1 + g (1 - sigma(g)))          du = dy g sigma(g)
//! ```

use torch::threads::parallel_for;

use super::{Shared, grain};
use crate::elem::{Elem, sigmoid};
use crate::multiversion;

/// `y` from `g`, `u`.
///
/// # Panics
/// If lengths differ.
pub fn forward<E: Elem>(g: &[E], u: &[E], y: &mut [E]) {
    assert!(g.len() == u.len() && g.len() == y.len(), "shapes of swiglu");
    let out = Shared::new(y);
    parallel_for(g.len(), grain(1), &|part| {
        // SAFETY: parts are disjoint.
        forward_part(&g[part.clone()], &u[part.clone()], unsafe {
            out.rows(&part, 1)
        });
    });
}

/// `dg` and `du` from `dy`.
///
/// # Panics
/// If lengths differ.
pub fn backward<E: Elem>(g: &[E], u: &[E], dy: &[E], dg: &mut [E], du: &mut [E]) {
    let n = g.len();
    assert!(
        [u.len(), dy.len(), dg.len(), du.len()]
            .iter()
            .all(|&l| l == n),
        "shapes of swiglu's backward"
    );
    let (out_g, out_u) = (Shared::new(dg), Shared::new(du));
    parallel_for(n, grain(1), &|part| {
        // SAFETY: parts are disjoint.
        let (dg, du) = unsafe { (out_g.rows(&part, 1), out_u.rows(&part, 1)) };
        backward_part(&g[part.clone()], &u[part.clone()], &dy[part], dg, du);
    });
}

multiversion!(fn forward_part[E: Elem][E](g: &[E], u: &[E], y: &mut [E]) = forward_body);
multiversion!(
    fn backward_part[E: Elem][E](g: &[E], u: &[E], dy: &[E], dg: &mut [E], du: &mut [E]) = backward_body
);

#[inline(always)]
fn forward_body<E: Elem>(g: &[E], u: &[E], y: &mut [E]) {
    for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
        let g = g.to_f32();
        *y = E::from_f32(g * sigmoid(g) * u.to_f32());
    }
}

#[inline(always)]
fn backward_body<E: Elem>(g: &[E], u: &[E], dy: &[E], dg: &mut [E], du: &mut [E]) {
    let into = dg.iter_mut().zip(du.iter_mut());
    for (((dg, du), (g, u)), dy) in into.zip(g.iter().zip(u)).zip(dy) {
        let (g, u, dy) = (g.to_f32(), u.to_f32(), dy.to_f32());
        let s = sigmoid(g);
        *dg = E::from_f32(dy * u * s * (1.0 + g * (1.0 - s)));
        *du = E::from_f32(dy * g * s);
    }
}
