//! Experts: which layers have them, how a row chooses among them, and what their tensors are called.

use crate::error::Error;
use crate::reader::Reader;

/// The experts of a decoder. In the layers that have them, a router scores every expert for every
/// row, and the row's result is the weighted sum of the MLPs of the `per_token` best.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a row goes to; at most `count`.
    pub per_token: usize,
    /// Width of an expert's MLP.
    pub intermediate_size: usize,
    /// Whether the weights of a row's experts are divided by their sum.
    pub normalize: bool,
    /// For each layer: experts, or one MLP for all rows.
    pub layers: Vec<bool>,
    /// What their tensors are called.
    pub names: &'static Names,
}

/// Hugging Face names inside a layer (`model.layers.N.`).
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// The router.
    pub router: &'static str,
    /// Before an expert's number.
    pub experts: &'static str,
    /// An expert's three matrices.
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
}

impl Experts {
    /// Layers that have experts, ascending. A row's choices are kept in this order.
    pub fn sparse_layers(&self) -> impl Iterator<Item = usize> + '_ {
        let layers = self.layers.iter().enumerate();
        layers
            .filter(|(_, sparse)| **sparse)
            .map(|(layer, _)| layer)
    }

    /// Experts that a row goes to, over all layers.
    pub fn choices(&self) -> usize {
        self.sparse_layers().count() * self.per_token
    }

    /// Refuses a row that goes to more experts than there are.
    pub(crate) fn check(self, r: &Reader) -> Result<Self, Error> {
        if self.per_token > self.count {
            return Err(r.wrong(
                "num_experts_per_tok",
                &self.per_token.into(),
                &format!("at most the {} experts of a layer", self.count),
            ));
        }
        Ok(self)
    }
}

/// How many experts a layer has: transformers 5 writes `num_local_experts` for every family, while
/// Qwen's own files say `num_experts`. Zero experts are a dense model, where `zero` allows it.
pub(crate) fn count(r: &Reader, default: usize, zero: bool) -> Result<usize, Error> {
    let (a, b) = ("num_local_experts", "num_experts");
    let found = (r.count(a)?, r.count(b)?);
    let (key, n) = match found {
        (Some(x), Some(y)) if x != y => {
            return Err(r.wrong(a, &x.into(), &format!("equal to {b} ({y})")));
        }
        (Some(n), _) => (a, n),
        (None, Some(n)) => (b, n),
        (None, None) => (a, default),
    };
    if n == 0 && !zero {
        return Err(r.wrong(key, &n.into(), "a positive whole number"));
    }
    // a row's choice is recorded in 16 bits
    if n > 1 << 16 {
        return Err(r.wrong(key, &n.into(), "at most 65536"));
    }
    Ok(n)
}
