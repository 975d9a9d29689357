//! Attention as injected into a segment: who sees whom is the layout's business, not the model's.

pub mod packed;
mod plan;

use crate::Error;
use tch::Tensor;

/// Attention over rows. An implementation knows the rows' layout; a layer gives its tensors.
pub trait Attend {
    /// Queries `[rows, heads, d]`, keys and values `[rows, kv_heads, d]`, rotated already;
    /// the result is `[rows, heads, d]`. Head `h` of the queries uses head `h / (heads / kv_heads)`
    /// of keys and values. `layer` names the layer, for those that keep keys and values.
    fn attend(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttendSpec)
    -> Tensor;
}

/// What a layer asks of attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttendSpec {
    /// What scores are multiplied by: `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// A row sees itself and the `window - 1` positions before it; `None` is all before it.
    pub window: Option<usize>,
}

/// The rows of a packed batch. Rows outside every span attend to nothing and give zeros.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// In order of `start`, not overlapping.
    pub spans: Vec<Span>,
}

/// Rows `start..start + len`, causal among themselves, after all rows of `prefix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Rows; may be zero.
    pub len: usize,
    /// An earlier span, itself without prefix, that every row here sees whole.
    pub prefix: Option<usize>,
}

/// A part of a layout's rows, where the ranks of a context-parallel group share them: who asks
/// here, and in which order the gathered keys lie. `None` is a row of padding, which attends to
/// nothing and which no one sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    /// Layout row of each query row.
    pub queries: Vec<Option<usize>>,
    /// Layout row of each key row; every row of every span is among them once.
    pub keys: Vec<Option<usize>>,
}

impl Share {
    /// Checks that queries are rows of the layout, each once at most, and that no key is missing.
    ///
    /// # Errors
    /// Names the first row that breaks a rule.
    pub fn check(&self, layout: &Layout) -> Result<(), Error> {
        let mut times = vec![(0, 0); layout.rows()];
        let rows = times.len();
        let beyond = |row| {
            Error::Layout(format!(
                "a share names row {row} of a layout of {rows} rows"
            ))
        };
        for &row in self.queries.iter().flatten() {
            times.get_mut(row).ok_or_else(|| beyond(row))?.0 += 1;
        }
        for &row in self.keys.iter().flatten() {
            times.get_mut(row).ok_or_else(|| beyond(row))?.1 += 1;
        }
        let spanned = |row| {
            let mut spans = layout.spans.iter();
            spans.any(|s| (s.start..s.start + s.len).contains(&row))
        };
        for (row, &(asks, keys)) in times.iter().enumerate() {
            if asks > 1 || keys > 1 || (keys == 0 && spanned(row)) {
                return Err(Error::Layout(format!(
                    "a share has row {row} {asks} times among its queries and {keys} times among \
                     its keys"
                )));
            }
        }
        Ok(())
    }
}

impl Layout {
    /// Spans of these lengths one after the other, none with a prefix.
    pub fn sequences(lengths: &[usize]) -> Self {
        let mut layout = Self::default();
        for &len in lengths {
            layout.push(len, None);
        }
        layout
    }

    /// Appends a span after the last row and gives its index.
    pub fn push(&mut self, len: usize, prefix: Option<usize>) -> usize {
        let start = self.rows();
        self.spans.push(Span { start, len, prefix });
        self.spans.len() - 1
    }

    /// Rows up to the end of the last span.
    pub fn rows(&self) -> usize {
        self.spans.last().map_or(0, |s| s.start + s.len)
    }

    /// Position of every row: within its span, after its prefix; rows outside spans get 0.
    pub fn positions(&self) -> Vec<i64> {
        let mut out = vec![0; self.rows()];
        for span in &self.spans {
            let first = span.prefix.map_or(0, |p| self.spans[p].len);
            for i in 0..span.len {
                out[span.start + i] = (first + i) as i64;
            }
        }
        out
    }

    /// Checks order, overlap and prefixes.
    ///
    /// # Errors
    /// Names the first span that breaks a rule.
    pub fn check(&self) -> Result<(), Error> {
        let mut end = 0;
        for (i, span) in self.spans.iter().enumerate() {
            if span.start < end {
                return Err(Error::Layout(format!(
                    "span {i} starts at row {}, before the end of the one before it, {end}",
                    span.start
                )));
            }
            end = span.start + span.len;
            match span.prefix {
                Some(p) if p >= i => {
                    return Err(Error::Layout(format!(
                        "span {i} has prefix {p}, which is not an earlier span"
                    )));
                }
                Some(p) if self.spans[p].prefix.is_some() => {
                    return Err(Error::Layout(format!(
                        "span {i} has prefix {p}, which has a prefix itself"
                    )));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
