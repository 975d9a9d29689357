//! Multi-tensor optimizer steps.

use tch::Tensor;

use crate::{Error, ffi};

/// Hyperparameters of one AdamW step; `lr` is this step's.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub eps: f64,
}

/// One AdamW step with decoupled decay (Loshchilov and Hutter, arXiv:1711.05101) over lists of
/// tensors of equal shapes, in place: `p -= lr (wd p + m^ / (sqrt(v^) + eps))`. `steps[i]` is a
/// float32 scalar tensor holding the count *of this step* (1 for the first); the caller counts.
pub fn adamw(
    params: &[&Tensor],
    grads: &[&Tensor],
    m: &[&Tensor],
    v: &[&Tensor],
    steps: &[&Tensor],
    with: AdamW,
) -> Result<(), Error> {
    let n = params.len();
    assert!(
        [grads.len(), m.len(), v.len(), steps.len()]
            .iter()
            .all(|&l| l == n),
        "adamw takes lists of one length"
    );
    if n == 0 {
        return Ok(());
    }
    let (p, g, a, b, s) = (
        ffi::raws(params),
        ffi::raws(grads),
        ffi::raws(m),
        ffi::raws(v),
        ffi::raws(steps),
    );
    // SAFETY: five arrays of `n` live handles.
    ffi::check(unsafe {
        ffi::rt_fused_adamw(
            p.as_ptr(),
            g.as_ptr(),
            a.as_ptr(),
            b.as_ptr(),
            s.as_ptr(),
            n,
            with.lr,
            with.beta1,
            with.beta2,
            with.weight_decay,
            with.eps,
        )
    })
}
