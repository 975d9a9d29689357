//! CPU kernels over slices. Rows are shared out over libtorch's threads in blocks whose size does
//! not depend on their number, so results do not either.

use crate::elem::LANES;

#[cfg(target_arch = "x86_64")]
pub mod attention;
#[cfg(target_arch = "x86_64")]
pub mod gemm;
pub mod rms_norm;
pub mod rope;
#[cfg(target_arch = "x86_64")]
pub mod simd;
#[cfg(target_arch = "x86_64")]
pub mod softmax;
pub mod swiglu;

/// f32 memory that starts on a cache line.
#[derive(Default)]
pub struct Lines(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(align(64))]
#[allow(dead_code)] // read as the slice that all lines are
struct Line([f32; LANES]);

impl Lines {
    /// No memory.
    pub const EMPTY: Self = Self(Vec::new());

    /// Zeros; room for at least `size` elements.
    pub fn new(size: usize) -> Self {
        let mut lines = Self::default();
        lines.fit(size);
        lines
    }

    /// Makes room for at least `size` elements.
    pub fn fit(&mut self, size: usize) {
        let lines = size.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LANES]));
        }
    }

    /// The elements.
    pub fn get(&self) -> &[f32] {
        // SAFETY: a line is its 16 elements, without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LANES) }
    }

    /// The elements.
    pub fn get_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LANES) }
    }
}

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

    /// Where the slice starts.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn pointer(&self) -> *mut T {
        self.0
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

/// Calls `work(0..count)`, each once, in any order on libtorch's threads: one that is slow takes
/// fewer.
#[cfg(target_arch = "x86_64")]
pub(crate) fn pieces(count: usize, work: &(dyn Fn(usize) + Sync)) {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let next = AtomicUsize::new(0);
    let take = || {
        loop {
            let piece = next.fetch_add(1, Relaxed);
            if piece >= count {
                return;
            }
            work(piece);
        }
    };
    let threads = torch::threads::get().min(count);
    torch::threads::parallel_for(threads, 1, &|part| part.for_each(|_| take()));
}

/// How many rows of `width` a thread takes at least: about 16 K elements, some microseconds' work.
pub(crate) fn grain(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}
