//! Norm, rotary position, SwiGLU and softmax of rows; arithmetic in f32, rounded once.

use kernels::elem::{Elem, LANES, exp_neg, total};
use kernels::multiversion;

multiversion! {
    /// `y = x / sqrt(mean(x^2) + eps) * w` for each row of `w.len()` elements.
    pub fn rms_norm[E: Elem][E](x: &[E], w: &[E], eps: f32, y: &mut [E]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<E: Elem>(x: &[E], w: &[E], eps: f32, y: &mut [E]) {
    let size = w.len();
    for (x, y) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)) {
        let mut lanes = [0f32; LANES];
        let whole = size / LANES * LANES;
        for c in x[..whole].chunks_exact(LANES) {
            for l in 0..LANES {
                let v = c[l].to_f32();
                lanes[l] = v.mul_add(v, lanes[l]);
            }
        }
        for (l, v) in x[whole..].iter().enumerate() {
            lanes[l] = v.to_f32().mul_add(v.to_f32(), lanes[l]);
        }
        let mean = lanes.iter().sum::<f32>() / size as f32;
        let factor = 1.0 / (mean + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = E::from_f32(x.to_f32() * factor * w.to_f32());
        }
    }
}

multiversion! {
    /// Turns each head of one row: pairs (i, i + d/2) by the angles of `cos` and `sin` (`[d/2]`).
    pub fn rope[E: Elem][E](x: &[E], cos: &[f32], sin: &[f32], y: &mut [E]) = rope_body
}

#[inline(always)]
fn rope_body<E: Elem>(x: &[E], cos: &[f32], sin: &[f32], y: &mut [E]) {
    let half = cos.len();
    let sin = &sin[..half];
    for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
        let ((a, b), (p, q)) = (x.split_at(half), y.split_at_mut(half));
        for i in 0..half {
            let (a, b) = (a[i].to_f32(), b[i].to_f32());
            p[i] = E::from_f32(a * cos[i] - b * sin[i]);
            q[i] = E::from_f32(b * cos[i] + a * sin[i]);
        }
    }
}

multiversion! {
    /// `y = gate / (1 + e^-gate) * up`.
    pub fn swiglu[E: Elem][E](gate: &[E], up: &[E], y: &mut [E]) = swiglu_body
}

#[inline(always)]
fn swiglu_body<E: Elem>(gate: &[E], up: &[E], y: &mut [E]) {
    for ((g, u), y) in gate.iter().zip(up).zip(y) {
        let g = g.to_f32();
        // of e^-|g| both signs of g can be served, and it never overflows
        let e = exp_neg(-g.abs());
        let sigmoid = if g >= 0.0 { 1.0 } else { e } / (1.0 + e);
        *y = E::from_f32(g * sigmoid * u.to_f32());
    }
}

multiversion! {
    /// `y = e^x / sum(e^x)` for each row of `size` elements.
    pub fn softmax[E: Elem][E](x: &[E], size: usize, y: &mut [f32]) = softmax_body
}

#[inline(always)]
fn softmax_body<E: Elem>(x: &[E], size: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(size).zip(y.chunks_exact_mut(size)) {
        let max = x.iter().fold(f32::NEG_INFINITY, |m, v| m.max(v.to_f32()));
        for (y, x) in y.iter_mut().zip(x) {
            *y = exp_neg(x.to_f32() - max);
        }
        let mut lanes = [0f32; LANES];
        for c in y.chunks(LANES) {
            for (lane, y) in lanes.iter_mut().zip(c) {
                *lane += y;
            }
        }
        let total = total(lanes);
        y.iter_mut().for_each(|y| *y /= total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_hold() {
        let x: Vec<f32> = (0..100).map(|i| (i as f32 - 40.0) / 7.0).collect();
        let w: Vec<f32> = (0..50).map(|i| i as f32 / 50.0).collect();
        let mut y = vec![0f32; 100];
        rms_norm(&x, &w, 1e-6, &mut y);
        for r in 0..2 {
            let row = &x[r * 50..(r + 1) * 50];
            let mean = row.iter().map(|v| (*v as f64).powi(2)).sum::<f64>() / 50.0;
            for i in 0..50 {
                let exact = row[i] as f64 / (mean + 1e-6).sqrt() * w[i] as f64;
                assert!((exact - y[r * 50 + i] as f64).abs() < 1e-6);
            }
        }
        let up: Vec<f32> = x.iter().map(|v| 1.0 - v).collect();
        swiglu(&x, &up, &mut y);
        for i in 0..100 {
            let exact = x[i] as f64 / (1.0 + (-x[i] as f64).exp()) * up[i] as f64;
            assert!((exact - y[i] as f64).abs() < 1e-5 * exact.abs().max(1.0));
        }
        softmax(&x, 50, &mut y);
        for (x, y) in x.chunks(50).zip(y.chunks(50)) {
            let max = x.iter().fold(f32::MIN, |m, v| m.max(*v)) as f64;
            let total: f64 = x.iter().map(|v| (*v as f64 - max).exp()).sum();
            for (x, y) in x.iter().zip(y) {
                let exact = (*x as f64 - max).exp() / total;
                assert!((exact - *y as f64).abs() < 1e-6 * exact);
            }
        }
        let angles: Vec<f32> = (0..5).map(|i| i as f32).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        rope(&x[..20], &cos, &sin, &mut y[..20]);
        for h in 0..2 {
            for i in 0..5 {
                let (a, b) = (x[h * 10 + i], x[h * 10 + 5 + i]);
                assert!((y[h * 10 + i] - (a * cos[i] - b * sin[i])).abs() < 1e-5);
                assert!((y[h * 10 + 5 + i] - (b * cos[i] + a * sin[i])).abs() < 1e-5);
            }
        }
    }
}
