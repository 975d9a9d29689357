//! CPU kernels over slices. Rows are shared out over libtorch's threads in blocks whose size does
//! not depend on their number, so results do not either.

pub mod rms_norm;
pub mod rope;
pub mod swiglu;

/// A pointer that the parts of one job share.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);
// SAFETY: each part writes a range of its own (see `rows`).
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr())
    }

    /// The rows `range` of a slice of rows of `width`.
    ///
    /// # Safety
    /// `range` lies inside the slice and no other part holds an overlapping one.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn rows(&self, range: &std::ops::Range<usize>, width: usize) -> &mut [T] {
        // SAFETY: by the contract above.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.add(range.start * width), range.len() * width)
        }
    }
}

/// How many rows of `width` a thread takes at least: about 16 K elements, some microseconds' work.
pub(crate) fn grain(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}
