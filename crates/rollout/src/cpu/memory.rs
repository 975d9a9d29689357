//! Keys and values of all layers in blocks of 16 tokens.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::ptr::NonNull;

use kernels::elem::{Elem, LANES};

/// Bytes of a cache line.
const LINE: usize = 64;

/// What one token's keys and values take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Shape {
    /// Elements of one block of one layer: keys and values.
    fn block(&self) -> usize {
        2 * self.kv_heads * self.head_dim * LANES
    }

    /// Bytes of one token over all layers.
    pub fn token_bytes(&self, elem: usize) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * elem
    }
}

/// Blocks of keys and values. In a block and head, keys lie transposed, `[head_dim][16]`, so that
/// one register holds an element of 16 tokens' keys; values lie `[16][head_dim]`.
///
/// Fresh memory is zeros that the system provides when first written.
pub struct Memory<E> {
    allocation: NonNull<u8>,
    layout: Layout,
    /// The first cache line in it.
    start: NonNull<u8>,
    pub shape: Shape,
    pub blocks: usize,
    elem: PhantomData<E>,
}

impl<E: Elem> Memory<E> {
    /// Memory for `blocks` blocks of 16 tokens.
    pub fn new(shape: Shape, blocks: usize) -> Self {
        let bytes = shape.layers * blocks * shape.block() * size_of::<E>();
        // aligned here, not by the allocator: that one would write the zeros itself
        let layout =
            Layout::from_size_align(bytes + LINE, 16).expect("a size that fits an address space");
        // SAFETY: the size is not zero, and has room for the alignment.
        unsafe {
            let allocation =
                NonNull::new(alloc_zeroed(layout)).unwrap_or_else(|| handle_alloc_error(layout));
            let start = allocation.add(allocation.align_offset(LINE));
            ask_for_large_pages(allocation.as_ptr(), layout.size());
            Self {
                allocation,
                layout,
                start,
                shape,
                blocks,
                elem: PhantomData,
            }
        }
    }

    fn block(&self, layer: usize, block: usize) -> *mut E {
        assert!(
            layer < self.shape.layers && block < self.blocks,
            "block {block} of layer {layer}"
        );
        // SAFETY: inside the allocation.
        unsafe {
            self.start
                .as_ptr()
                .cast::<E>()
                .add((layer * self.blocks + block) * self.shape.block())
        }
    }

    /// Keys of a block and head, `[head_dim][16]`.
    #[inline]
    pub fn keys(&self, layer: usize, block: usize, head: usize) -> *mut E {
        // SAFETY: a head's part of the block.
        unsafe {
            self.block(layer, block)
                .add(head * self.shape.head_dim * LANES)
        }
    }

    /// Values of a block and head, `[16][head_dim]`.
    #[inline]
    pub fn values(&self, layer: usize, block: usize, head: usize) -> *mut E {
        // SAFETY: a head's part of the second half of the block.
        unsafe {
            self.block(layer, block)
                .add((self.shape.kv_heads + head) * self.shape.head_dim * LANES)
        }
    }

    /// Copies a block of every layer.
    pub fn copy(&mut self, from: usize, to: usize) {
        for layer in 0..self.shape.layers {
            // SAFETY: two whole blocks; `copy` allows from == to.
            unsafe {
                std::ptr::copy(
                    self.block(layer, from),
                    self.block(layer, to),
                    self.shape.block(),
                )
            };
        }
    }
}

/// A hint: attention walks through much of this memory in every step.
fn ask_for_large_pages(start: *mut u8, bytes: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let skip = start.align_offset(PAGE);
        if bytes > skip + PAGE {
            // SAFETY: whole pages inside an allocation; the advice does not change contents.
            unsafe {
                libc::madvise(
                    start.add(skip).cast(),
                    (bytes - skip) / PAGE * PAGE,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, bytes);
}

impl<E> Drop for Memory<E> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

// SAFETY: owns plain numbers; whoever writes through the pointers keeps to disjoint blocks.
unsafe impl<E: Send> Send for Memory<E> {}
unsafe impl<E: Sync> Sync for Memory<E> {}
