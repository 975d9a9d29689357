//! From units to rows: spans for attention, and which row predicts which token.

use std::ops::Range;

use model::Layout;
use parallel::Microbatch;
use tch::{Device, Tensor};

use crate::{Branch, Error, Unit, UnitSpan};

/// A microbatch laid out.
pub(crate) struct Laid {
    /// What the engine runs; keeps one row per masked token.
    pub batch: Microbatch,
    /// Masked token ids `[N]`, i64: what each kept row predicts.
    pub targets: Tensor,
    /// Where each unit's tokens lie.
    pub units: Vec<UnitSpan>,
    /// Rows computed.
    pub rows: usize,
}

/// Lays out the units of these indices, in this order.
pub(crate) fn lay(units: &[Unit], indices: &[usize], share_prefix: bool, device: Device) -> Laid {
    let mut rows = Rows::default();
    let spans = indices
        .iter()
        .map(|&unit| UnitSpan {
            unit,
            branches: rows.unit(&units[unit], share_prefix),
        })
        .collect();
    let upload = |ids: &[i64]| Tensor::from_slice(ids).to_device(device);
    let all = rows
        .keep
        .iter()
        .enumerate()
        .all(|(i, &row)| i as i64 == row)
        && rows.keep.len() == rows.tokens.len();
    Laid {
        batch: Microbatch {
            tokens: upload(&rows.tokens),
            layout: rows.layout,
            keep: (!all).then(|| upload(&rows.keep)),
        },
        targets: upload(&rows.targets),
        units: spans,
        rows: rows.tokens.len(),
    }
}

#[derive(Default)]
struct Rows {
    tokens: Vec<i64>,
    layout: Layout,
    keep: Vec<i64>,
    targets: Vec<i64>,
}

impl Rows {
    fn unit(&mut self, unit: &Unit, share_prefix: bool) -> Vec<Range<usize>> {
        let live = unit.branches.iter().filter(|b| b.masked() > 0).count();
        // One branch needs no sharing: prefix and branch are one span.
        let shared = (share_prefix && live > 1 && !unit.prefix.is_empty())
            .then(|| self.span(&[&unit.prefix], None));
        unit.branches
            .iter()
            .map(|branch| self.branch(&unit.prefix, branch, shared))
            .collect()
    }

    fn branch(&mut self, prefix: &[u32], branch: &Branch, shared: Option<usize>) -> Range<usize> {
        let first = self.targets.len();
        if branch.masked() == 0 {
            return first..first;
        }
        let own = &branch.tokens[..branch.inputs()];
        // row of tokens[i] is `start + i`; what predicts tokens[0] is the prefix's last row
        let (start, before) = match shared {
            Some(span) => {
                let prompt = &self.layout.spans[span];
                let before = prompt.start + prompt.len - 1;
                let start = self.tokens.len();
                if !own.is_empty() {
                    self.span(&[own], Some(span));
                }
                (start, before)
            }
            None => {
                let span = self.span(&[prefix, own], None);
                let start = self.layout.spans[span].start + prefix.len();
                (start, start.wrapping_sub(1))
            }
        };
        for (i, _) in branch.mask.iter().enumerate().filter(|(_, m)| **m) {
            self.keep
                .push(if i == 0 { before } else { start + i - 1 } as i64);
            self.targets.push(branch.tokens[i].into());
        }
        first..self.targets.len()
    }

    /// Appends one span made of `parts`; its index.
    fn span(&mut self, parts: &[&[u32]], prefix: Option<usize>) -> usize {
        let start = self.tokens.len();
        for part in parts {
            self.tokens.extend(part.iter().map(|&t| i64::from(t)));
        }
        self.layout.push(self.tokens.len() - start, prefix)
    }
}

/// Refuses units that cannot be computed: masks of the wrong length, a masked token that nothing
/// predicts, ids beyond the vocabulary, sequences beyond the context.
pub(crate) fn check(units: &[Unit], vocabulary: usize, context: usize) -> Result<(), Error> {
    for (unit, u) in units.iter().enumerate() {
        for (branch, b) in u.branches.iter().enumerate() {
            let fail = |what: String| Err(Error::Unit { unit, branch, what });
            if b.mask.len() != b.tokens.len() {
                return fail(format!(
                    "a mask of {} entries for {} tokens; give one entry per token",
                    b.mask.len(),
                    b.tokens.len()
                ));
            }
            if u.prefix.is_empty() && b.mask.first() == Some(&true) {
                return fail("its first token is masked but nothing comes before it; give a prefix or leave it out of the mask".into());
            }
            if let Some(id) = u
                .prefix
                .iter()
                .chain(&b.tokens)
                .find(|&&id| id as usize >= vocabulary)
            {
                return fail(format!(
                    "token id {id} in a vocabulary of {vocabulary}; use the model's own tokenizer"
                ));
            }
            let length = u.prefix.len() + b.tokens.len();
            if length > context {
                return fail(format!(
                    "{length} tokens in a context of {context} (max_position_embeddings); shorten it with max_length"
                ));
            }
        }
    }
    Ok(())
}
