//! libtorch's flash attention over sequences laid end to end, forward and backward. A GPU's, in half precision.

use tch::Tensor;

use crate::{Error, ffi};

/// Where sequences end, and what a row sees: itself and the rows before it of its sequence's keys, whose last row stands
/// beside the last query.
#[derive(Debug)]
pub struct Sequences {
    /// 0, then where each sequence's queries end, int32 on the device.
    pub ends_q: Tensor,
    /// The same of keys.
    pub ends_k: Tensor,
    /// The longest sequence's queries.
    pub max_q: i64,
    /// The longest sequence's keys.
    pub max_k: i64,
}

/// What backward needs of a forward, its output first.
#[derive(Debug)]
pub struct Kept([Tensor; 4]);

impl Kept {
    /// The attention's output `[queries, heads, d]`.
    pub fn out(&self) -> &Tensor {
        &self.0[0]
    }
}

impl Sequences {
    /// Attention of `q` `[queries, heads, d]` over `k` and `v` `[keys, kv_heads, d]`, without a graph. `window` counts the
    /// row itself.
    ///
    /// # Errors
    /// libtorch's: another device or kind, heads that it has no kernel for.
    pub fn forward(
        &self,
        [q, k, v]: [&Tensor; 3],
        scale: f64,
        window: Option<usize>,
    ) -> Result<Kept, Error> {
        let mut out = [std::ptr::null_mut(); 4];
        // SAFETY: live handles; `out` receives four owned ones on success.
        ffi::check(unsafe {
            ffi::rt_flash_forward(
                ffi::raw(q),
                ffi::raw(k),
                ffi::raw(v),
                ffi::raw(&self.ends_q),
                ffi::raw(&self.ends_k),
                self.max_q,
                self.max_k,
                scale,
                window.map_or(0, |w| w as i64),
                out.as_mut_ptr(),
            )
        })?;
        // SAFETY: as above.
        Ok(Kept(out.map(|t| unsafe { ffi::own(t) })))
    }

    /// Gradients of `q`, `k` and `v` from that of the output; sums in a fixed order.
    ///
    /// # Errors
    /// libtorch's.
    pub fn backward(
        &self,
        grad: &Tensor,
        [q, k, v]: [&Tensor; 3],
        kept: &Kept,
        scale: f64,
        window: Option<usize>,
    ) -> Result<[Tensor; 3], Error> {
        let saved = ffi::raws(&kept.0.each_ref());
        let mut out = [std::ptr::null_mut(); 3];
        // SAFETY: live handles; `out` receives three owned ones on success.
        ffi::check(unsafe {
            ffi::rt_flash_backward(
                ffi::raw(grad),
                ffi::raw(q),
                ffi::raw(k),
                ffi::raw(v),
                saved.as_ptr(),
                ffi::raw(&self.ends_q),
                ffi::raw(&self.ends_k),
                self.max_q,
                self.max_k,
                scale,
                window.map_or(0, |w| w as i64),
                out.as_mut_ptr(),
            )
        })?;
        // SAFETY: as above.
        Ok(out.map(|t| unsafe { ffi::own(t) }))
    }
}
