//! What an engine tells the routers of its layers with experts, and what it learns from them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use arch::ModelConfig;
use arch::experts::Experts;
use model::moe::{Dispatch, Local, Routing};
use tch::{Kind, Tensor};
use torch::autograd;

use crate::ep::AllToAll;
use crate::{Collective, Error};

/// Of each row of a microbatch: where it goes, and how often it counts.
pub struct Routes {
    /// Experts that the rows go to, `[rows, choices]` int64: the choices of every layer with
    /// experts, ascending, side by side. `None`: the routers choose.
    pub ids: Option<Tensor>,
    /// How many sequences each row stands for, `[rows]`, fp64: 1, the number of branches for a
    /// prefix that they share, 0 for padding.
    pub weight: Tensor,
}

impl Routes {
    /// The same, sharing memory.
    pub(crate) fn share(&self) -> Routes {
        Routes {
            ids: self.ids.as_ref().map(Tensor::shallow_clone),
            weight: self.weight.shallow_clone(),
        }
    }

    /// Those of the rows at `index` `[n]`, int64.
    pub fn select(&self, index: &Tensor) -> Routes {
        Routes {
            ids: self.ids.as_ref().map(|ids| ids.index_select(0, index)),
            weight: self.weight.index_select(0, index),
        }
    }

    /// With rows after the last that count for nothing, `rows` in all.
    pub fn pad(&self, rows: i64) -> Routes {
        let more = |x: &Tensor| {
            let mut size = x.size();
            size[0] = rows - size[0];
            Tensor::cat(&[x, &Tensor::zeros(&size, (x.kind(), x.device()))], 0)
        };
        Routes {
            ids: self.ids.as_ref().map(more),
            weight: more(&self.weight),
        }
    }
}

/// What the layers with experts share. Without any, it is never asked.
#[derive(Default)]
pub struct Moe {
    across: Option<AllToAll>,
    /// Gradient of the balance loss with respect to each expert's probability of a row that
    /// counts once, the same in every layer.
    pull: Option<Vec<f64>>,
    /// All rows pass the last layer's experts, not only those whose hidden states are wanted.
    every_row: bool,
    /// By layer: how many rows each expert got, and the sum of its probabilities, `[experts]` fp64.
    seen: RefCell<BTreeMap<usize, (Tensor, Tensor)>>,
}

/// How rows went to experts: by layer with experts, ascending, then by expert.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Rows that each expert got.
    pub rows: Vec<Vec<f64>>,
    /// The sum over rows of the router's probability of each expert.
    pub shares: Vec<Vec<f64>>,
}

impl Moe {
    /// Experts dealt over the ranks of `group`; one of one rank is no group.
    pub fn across(group: Rc<dyn Collective>) -> Moe {
        Moe {
            across: (group.size() > 1).then(|| AllToAll::new(group)),
            ..Moe::default()
        }
    }

    /// Whether all rows pass the last layer's experts, as a loss over all of them needs.
    pub fn set_every_row(&mut self, every_row: bool) {
        self.every_row = every_row;
    }

    /// What backward adds to the gradient of each expert's probability, times the row's weight.
    pub fn set_pull(&mut self, pull: Option<Vec<f64>>) {
        self.pull = pull;
    }

    /// Where rows meet their experts.
    pub fn dispatch(&self) -> &dyn Dispatch {
        match &self.across {
            Some(across) => across,
            None => &Local,
        }
    }

    /// What went wrong between ranks since the last call.
    ///
    /// # Errors
    /// The first failed collective.
    pub fn check(&self) -> Result<(), Error> {
        self.across.as_ref().map_or(Ok(()), AllToAll::check)
    }

    pub(crate) fn every_row(&self) -> bool {
        self.every_row
    }

    /// Takes what forwards saw since the last call, zeros for layers that were not run.
    pub fn take_load(&self, experts: &Experts) -> Load {
        let mut seen = self.seen.take();
        let values = |x: Option<Tensor>| match x {
            // of the right kind and with as many elements as there are experts
            Some(x) => Vec::try_from(x).unwrap_or_default(),
            None => vec![0.0; experts.count],
        };
        let mut load = Load::default();
        for layer in experts.sparse_layers() {
            let (rows, shares) = seen.remove(&layer).unzip();
            load.rows.push(values(rows));
            load.shares.push(values(shares));
        }
        load
    }

    fn see(&self, layer: usize, rows: Tensor, shares: Tensor) {
        let mut seen = self.seen.borrow_mut();
        let sum = match seen.remove(&layer) {
            Some((a, b)) => (a + rows, b + shares),
            None => (rows, shares),
        };
        seen.insert(layer, sum);
    }
}

/// The routing of one run of a segment.
pub(crate) struct Told<'a> {
    pub config: &'a ModelConfig,
    pub moe: &'a Moe,
    /// Of the rows that the segment's router sees.
    pub routes: Option<&'a Routes>,
    /// The first run of the segment, not one for the way back.
    pub first: bool,
}

impl Routing for Told<'_> {
    fn replay(&self, layer: usize) -> Option<Tensor> {
        let ids = self.routes?.ids.as_ref()?;
        let experts = self.config.experts_of(layer)?;
        let before = experts.sparse_layers().take_while(|l| *l < layer).count();
        let n = experts.per_token as i64;
        Some(ids.narrow(1, before as i64 * n, n))
    }

    fn routed(&self, layer: usize, probabilities: Tensor, ids: &Tensor) -> Tensor {
        let Some(routes) = self.routes else {
            return probabilities;
        };
        let weight = routes.weight.unsqueeze(1);
        if self.first {
            tch::no_grad(|| {
                let seen = probabilities.detach();
                let shares = (&seen * &weight).sum_dim_intlist(0, false, Kind::Double);
                let each = weight.expand_as(ids).reshape([-1]);
                // whole numbers: the sum is exact in any order
                let rows = shares
                    .zeros_like()
                    .scatter_add(0, &ids.reshape([-1]), &each);
                self.moe.see(layer, rows, shares);
            });
        }
        match &self.moe.pull {
            Some(pull) => pulled(probabilities, pull, &weight),
            None => probabilities,
        }
    }
}

/// The same values; on the way back `pull` `[experts]` times the row's weight is added to the
/// gradient.
fn pulled(probabilities: Tensor, pull: &[f64], weight: &Tensor) -> Tensor {
    if !autograd::wanted(&[&probabilities]) {
        return probabilities;
    }
    let value = probabilities.detach();
    let pull = Tensor::from_slice(pull).to_device(value.device());
    let pull = (weight * pull.unsqueeze(0)).to_kind(value.kind());
    let node = autograd::node(
        &[&probabilities],
        vec![value],
        Box::new(move |mut grads| {
            vec![Some(match grads.pop().flatten() {
                Some(grad) => grad + &pull,
                None => pull.shallow_clone(),
            })]
        }),
    );
    // Fails only where libtorch cannot allocate a node, as its own operators would.
    node.expect("libtorch records an autograd node").remove(0)
}
