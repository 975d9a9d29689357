//! Sums over the parts of a flat list of per-token values.

use std::ops::Range;

use tch::{Device, Tensor};

/// Sequences laid over rows of a `[N]` tensor: what per-sequence sums and means need.
///
/// Sums go through a zero-padded `[S, L]` view gathered by index, whose order of additions is
/// fixed on every device (a scatter-add is not, on CUDA).
pub struct Rows {
    /// `[S * L]` i64: the row at each padded place (0 where there is none).
    index: Tensor,
    /// `[S, L]` bool: whether the place holds a row.
    present: Tensor,
    /// `[S]` i64: rows per sequence.
    lengths: Tensor,
    /// `[N]` i64: the sequence of each row that some sequence covers, in order of sequences.
    owner: Tensor,
    sequences: i64,
    width: i64,
}

impl Rows {
    /// `spans[s]` are the rows of sequence `s`. Spans may be empty but must not overlap.
    pub fn new(spans: &[Range<usize>], device: Device) -> Rows {
        let sequences = spans.len();
        let width = spans.iter().map(|span| span.len()).max().unwrap_or(0);
        let mut index = vec![0i64; sequences * width];
        let mut present = vec![false; sequences * width];
        let mut owner = Vec::new();
        for (s, span) in spans.iter().enumerate() {
            for (place, row) in span.clone().enumerate() {
                index[s * width + place] = row as i64;
                present[s * width + place] = true;
                owner.push(s as i64);
            }
        }
        let lengths: Vec<i64> = spans.iter().map(|span| span.len() as i64).collect();
        Rows {
            index: Tensor::from_slice(&index).to_device(device),
            present: Tensor::from_slice(&present)
                .reshape([sequences as i64, width as i64])
                .to_device(device),
            lengths: Tensor::from_slice(&lengths).to_device(device),
            owner: Tensor::from_slice(&owner).to_device(device),
            sequences: sequences as i64,
            width: width as i64,
        }
    }

    /// How many sequences.
    pub fn len(&self) -> usize {
        self.sequences as usize
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.sequences == 0
    }

    /// Rows per sequence, `[S]`, in the kind of `like`.
    pub fn lengths(&self, like: &Tensor) -> Tensor {
        self.lengths.to_kind(like.kind())
    }

    /// `[N] -> [S]`: the sum over each sequence.
    pub fn sum(&self, x: &Tensor) -> Tensor {
        if self.width == 0 {
            return Tensor::zeros([self.sequences], (x.kind(), x.device()));
        }
        let padded = x
            .index_select(0, &self.index)
            .reshape([self.sequences, self.width]);
        let zero = Tensor::zeros([], (x.kind(), x.device()));
        padded
            .where_self(&self.present, &zero)
            .sum_dim_intlist([1i64].as_slice(), false, x.kind())
    }

    /// `[N] -> [S]`: the mean over each sequence (0 for an empty one).
    pub fn mean(&self, x: &Tensor) -> Tensor {
        self.sum(x) / self.lengths(x).clamp_min(1)
    }

    /// `[S] -> [N]`: each sequence's value on all its rows. The spans must cover the rows in
    /// order, as [`UnitSpan`](crate::UnitSpan)s do.
    pub fn spread(&self, x: &Tensor) -> Tensor {
        x.index_select(0, &self.owner)
    }
}
