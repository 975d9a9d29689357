//! The ranks that hold a rollout's model together. All of them are given the same requests, and as
//! their logits have the same bits they choose the same tokens.

use std::rc::Rc;

use arch::ModelConfig;
use model::{Dispatch, Split};
use parallel::{Collective, Inside, Moe, Solo};
use tch::Tensor;

use crate::Error;

/// Ranks with parts of the same matrices, or with different experts.
pub struct Peers {
    tp: Rc<dyn Collective>,
    inside: Inside,
    moe: Moe,
    vocabulary: usize,
}

impl Peers {
    /// One rank has all of the model.
    pub fn alone() -> Self {
        Self {
            tp: Rc::new(Solo),
            inside: Inside::solo(),
            moe: Moe::across(Rc::new(Solo)),
            vocabulary: 0,
        }
    }

    /// The ranks of `tp` have the parts that `arch::slice` gives tensor-parallel ranks, those of
    /// `ep` the experts that it gives expert-parallel ones.
    pub fn new(config: &ModelConfig, tp: Rc<dyn Collective>, ep: Rc<dyn Collective>) -> Self {
        let inside = Inside::new(Rc::new(Solo), tp.clone(), false, config.vocab_size);
        Self {
            tp,
            inside,
            moe: Moe::across(ep),
            vocabulary: config.vocab_size,
        }
    }

    /// How they meet inside a segment.
    pub(crate) fn split(&self) -> &dyn Split {
        self.inside.split()
    }

    /// How rows go to experts.
    pub(crate) fn dispatch(&self) -> &dyn Dispatch {
        self.moe.dispatch()
    }

    /// Fails if a meeting did.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.moe.check()?;
        Ok(self.inside.check()?)
    }

    /// The most key and value heads that a rank has: what decides how many tokens all can cache.
    pub(crate) fn kv_heads(&self, config: &ModelConfig) -> usize {
        arch::slice::heads(config, self.tp.size(), 0).kv.len()
    }

    /// Logits `[rows, vocabulary]` from this rank's part of the vocabulary, the same on all.
    pub(crate) fn logits(&self, own: Tensor) -> Result<Tensor, Error> {
        let ranks = self.tp.size();
        if ranks == 1 {
            return Ok(own);
        }
        let part = |rank| arch::slice::even(self.vocabulary, ranks, rank).len() as i64;
        // the first part is the widest
        let (rows, width) = (own.size()[0], part(0));
        let own = own.constant_pad_nd([0, width - own.size()[1]]).contiguous();
        let mut all = Tensor::empty([ranks as i64 * rows, width], (own.kind(), own.device()));
        self.tp.all_gather(&mut all, &own, "logits")?;
        let parts: Vec<Tensor> = (0..ranks)
            .map(|rank| {
                all.narrow(0, rank as i64 * rows, rows)
                    .narrow(1, 0, part(rank))
            })
            .collect();
        Ok(Tensor::cat(&parts, 1))
    }
}
