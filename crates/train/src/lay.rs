//! From units to rows: spans for attention, and which row predicts which token.

use std::ops::Range;

use arch::ModelConfig;
use arch::experts::Experts;
use model::Layout;
use parallel::{Collective, Microbatch, Routes};
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

/// Lays out the units of these indices, in this order, for a model with or without experts.
pub(crate) fn lay(
    units: &[Unit],
    indices: &[usize],
    share_prefix: bool,
    device: Device,
    experts: Option<&Experts>,
) -> Laid {
    let mut rows = Rows {
        choices: experts.map_or(0, Experts::choices),
        ..Rows::default()
    };
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
    let routes = experts.map(|_| Routes {
        ids: (!rows.ids.is_empty()).then(|| upload(&rows.ids).view([-1, rows.choices as i64])),
        weight: Tensor::from_slice(&rows.weights).to_device(device),
    });
    Laid {
        batch: Microbatch {
            tokens: upload(&rows.tokens),
            layout: rows.layout,
            keep: (!all).then(|| upload(&rows.keep)),
            routes,
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
    /// Ids that a row's replay has; 0 without experts.
    choices: usize,
    /// Replayed ids of every row, if any.
    ids: Vec<i64>,
    /// How many branches each row stands for.
    weights: Vec<f64>,
}

/// Tokens of a span, and where they go if that is known.
type Part<'a> = (&'a [u32], Option<&'a [u16]>);

impl Rows {
    fn unit(&mut self, unit: &Unit, share_prefix: bool) -> Vec<Range<usize>> {
        let live = unit.branches.iter().filter(|b| b.masked() > 0).count();
        // One branch needs no sharing: prefix and branch are one span.
        let replay = unit.replay.as_ref();
        let prefix: Part = (&unit.prefix, replay.map(|r| r.prefix.as_slice()));
        let shared = (share_prefix && live > 1 && !unit.prefix.is_empty())
            .then(|| self.span(&[prefix], None, live as f64));
        let own = |i: usize| replay.map(|r| r.branches[i].as_slice());
        let branches = unit.branches.iter().enumerate();
        branches
            .map(|(i, branch)| self.branch(prefix, branch, own(i), shared))
            .collect()
    }

    fn branch(
        &mut self,
        prefix: Part,
        branch: &Branch,
        replay: Option<&[u16]>,
        shared: Option<usize>,
    ) -> Range<usize> {
        let first = self.targets.len();
        if branch.masked() == 0 {
            return first..first;
        }
        let own: Part = (&branch.tokens[..branch.inputs()], replay);
        // row of tokens[i] is `start + i`; what predicts tokens[0] is the prefix's last row
        let (start, before) = match shared {
            Some(span) => {
                let prompt = &self.layout.spans[span];
                let before = prompt.start + prompt.len - 1;
                let start = self.tokens.len();
                if !own.0.is_empty() {
                    self.span(&[own], Some(span), 1.0);
                }
                (start, before)
            }
            None => {
                let span = self.span(&[prefix, own], None, 1.0);
                let start = self.layout.spans[span].start + prefix.0.len();
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

    /// Appends one span made of `parts`, whose rows stand for `weight` branches; its index.
    fn span(&mut self, parts: &[Part], prefix: Option<usize>, weight: f64) -> usize {
        let start = self.tokens.len();
        for (tokens, replay) in parts {
            self.tokens.extend(tokens.iter().map(|&t| i64::from(t)));
            if let Some(ids) = replay {
                let ids = &ids[..tokens.len() * self.choices];
                self.ids.extend(ids.iter().map(|&id| i64::from(id)));
            }
        }
        self.weights.resize(self.tokens.len(), weight);
        self.layout.push(self.tokens.len() - start, prefix)
    }
}

/// The tokens of a microbatch, of which context-parallel ranks compute some each. A loss sees all
/// of them on every rank.
pub(crate) struct Owned<'a> {
    /// Which tokens are computed here, i64; `None` is all.
    own: Option<Tensor>,
    /// Tokens of the microbatch.
    all: i64,
    ranks: &'a dyn Collective,
}

impl<'a> Owned<'a> {
    /// `own` as [`Inside::own`](parallel::Inside::own) says.
    pub fn new(own: Option<Tensor>, laid: &Laid, ranks: &'a dyn Collective) -> Self {
        let all = laid.targets.size()[0];
        Self { own, all, ranks }
    }

    /// Of one entry per token those of this rank.
    pub fn take(&self, x: &Tensor) -> Tensor {
        match &self.own {
            None => x.shallow_clone(),
            Some(own) => x.index_select(0, own),
        }
    }

    /// One entry per token, the same on all ranks, from each rank's.
    pub fn gather(&self, mut own: Vec<Tensor>) -> Result<Vec<Tensor>, Error> {
        let Some(index) = &self.own else {
            return Ok(own);
        };
        let _no_grad = tch::no_grad_guard();
        for x in &mut own {
            // every rank fills in its entries of zeros, so the sum is exact
            *x = Tensor::zeros([self.all], (x.kind(), x.device())).index_copy_(0, index, x);
        }
        let mut all = Tensor::stack(&own, 0);
        self.ranks.all_reduce_sum(&mut all, "token values")?;
        Ok(all.unbind(0))
    }
}

/// Refuses units that cannot be computed: masks of the wrong length, a masked token that nothing
/// predicts, ids beyond the vocabulary, sequences beyond the context, a replay that does not fit.
pub(crate) fn check(units: &[Unit], config: &ModelConfig) -> Result<(), Error> {
    let (vocabulary, context) = (config.vocab_size, config.max_positions);
    for (unit, u) in units.iter().enumerate() {
        check_replay(units, unit, config.experts.as_ref())?;
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

/// Every computed token has as many ids as it has choices, and they are of experts.
fn check_replay(units: &[Unit], unit: usize, experts: Option<&Experts>) -> Result<(), Error> {
    let (u, fail) = (&units[unit], |branch: usize, what: String| {
        Err(Error::Unit { unit, branch, what })
    });
    let replays = u.replay.is_some();
    if replays != units[0].replay.is_some() {
        return fail(
            0,
            "some units of the batch replay their routing and some do not".into(),
        );
    }
    let (Some(replay), Some(experts)) = (&u.replay, experts) else {
        return match replays {
            true => fail(
                0,
                "a routing to replay, but the model has no experts".into(),
            ),
            false => Ok(()),
        };
    };
    let choices = experts.choices();
    if replay.branches.len() != u.branches.len() {
        let (got, want) = (replay.branches.len(), u.branches.len());
        return fail(
            0,
            format!("a routing to replay for {got} branches of {want}"),
        );
    }
    for (branch, (ids, b)) in replay.branches.iter().zip(&u.branches).enumerate() {
        let rows = [
            ("prefix", replay.prefix.len(), u.prefix.len()),
            ("branch", ids.len(), b.inputs()),
        ];
        for (part, got, tokens) in rows {
            if got < tokens * choices {
                return fail(
                    branch,
                    format!(
                        "{got} expert ids for {tokens} tokens of the {part}, at {choices} each"
                    ),
                );
            }
        }
        let all = replay.prefix.iter().chain(ids);
        if let Some(id) = all.copied().find(|&id| usize::from(id) >= experts.count) {
            let count = experts.count;
            return fail(branch, format!("expert {id} of a layer that has {count}"));
        }
    }
    Ok(())
}
