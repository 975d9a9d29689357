//! What crosses tensor-parallel ranks inside a segment, as injected into it.

use tch::Tensor;

/// How the ranks that cut a segment's matrices share its rows. A segment enters once, before its
/// column-cut matrices, and leaves once, after the row-cut one; biases of the latter come after.
pub trait Split {
    /// Rows of the residual stream to the rows that a column-cut matrix multiplies: all of them.
    fn enter(&self, x: Tensor) -> Tensor;
    /// This rank's part of a sum over ranks, of all rows, to rows of the residual stream. The
    /// part is used up: nothing else may read it.
    fn leave(&self, partial: Tensor) -> Tensor;
    /// Rows of the residual stream for token ids (of all rows); `table` is this rank's part of
    /// the embedding.
    fn look_up(&self, table: &Tensor, ids: &Tensor) -> Tensor;
}

/// One rank has whole matrices and all rows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unsplit;

impl Split for Unsplit {
    fn enter(&self, x: Tensor) -> Tensor {
        x
    }
    fn leave(&self, partial: Tensor) -> Tensor {
        partial
    }
    fn look_up(&self, table: &Tensor, ids: &Tensor) -> Tensor {
        Tensor::embedding(table, ids, -1, false, false)
    }
}
