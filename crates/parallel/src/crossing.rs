//! Collectives inside a segment, as autograd nodes.
//!
//! A segment's callers return tensors, not results, and a node's backward runs within libtorch: the
//! first failure is kept, what follows it is skipped, and the engine asks after every segment.

use std::cell::RefCell;
use std::rc::Rc;

use tch::Tensor;

use crate::{Collective, Error};

/// The first failure of a collective inside a segment.
#[derive(Clone, Default)]
pub(crate) struct Fault(Rc<RefCell<Option<Error>>>);

impl Fault {
    /// Fails if something did, and forgets it.
    pub fn check(&self) -> Result<(), Error> {
        self.0.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Does `work` on `x` unless something failed before or there is nothing to do, here as on all
    /// ranks.
    fn run(&self, x: &Tensor, work: impl FnOnce() -> Result<(), Error>) {
        if x.numel() == 0 || self.0.borrow().is_some() {
            return;
        }
        if let Err(error) = work() {
            *self.0.borrow_mut() = Some(error);
        }
    }
}

/// A group of ranks that a segment's rows cross. What crosses is `[rows, ..]`, of equal shape on
/// all ranks; after a failure the results have their shapes and any values.
#[derive(Clone)]
pub(crate) struct Crossing {
    group: Rc<dyn Collective>,
    fault: Fault,
}

impl Crossing {
    pub fn new(group: Rc<dyn Collective>, fault: &Fault) -> Self {
        Self {
            group,
            fault: fault.clone(),
        }
    }

    pub fn rank(&self) -> usize {
        self.group.rank()
    }

    pub fn size(&self) -> usize {
        self.group.size()
    }

    /// All ranks' rows, in rank order. No graph.
    pub fn gather(&self, x: &Tensor, phase: &str) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let x = x.detach().contiguous();
        let mut out = x.new_empty(rows(&x, |n| n * self.size() as i64), (x.kind(), x.device()));
        self.fault
            .run(&x, || self.group.all_gather(&mut out, &x, phase));
        out
    }

    /// The sum over ranks of rows, of which this rank gets its equal part. No graph.
    pub fn scatter(&self, x: &Tensor, phase: &str) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let x = x.detach().contiguous();
        let mut out = x.new_empty(rows(&x, |n| n / self.size() as i64), (x.kind(), x.device()));
        self.fault
            .run(&x, || self.group.reduce_scatter(&mut out, &x, phase));
        out
    }

    /// The sum over ranks, in place of `x`, which no one else may read. No graph.
    pub fn sum(&self, x: Tensor, phase: &str) -> Tensor {
        let _no_grad = tch::no_grad_guard();
        let mut out = x.detach().contiguous();
        self.fault
            .run(&x, || self.group.all_reduce_sum(&mut out, phase));
        out
    }

    /// [`Crossing::gather`]; its gradient is scattered.
    pub fn gather_node(&self, x: Tensor, phase: &'static str) -> Tensor {
        let (y, this) = (self.gather(&x, phase), self.clone());
        node(&x, y, move |d| this.scatter(&d, phase))
    }

    /// [`Crossing::scatter`]; its gradient is gathered.
    pub fn scatter_node(&self, x: Tensor, phase: &'static str) -> Tensor {
        let (y, this) = (self.scatter(&x, phase), self.clone());
        node(&x, y, move |d| this.gather(&d, phase))
    }

    /// [`Crossing::sum`], whose gradient goes back as it is: every rank has all of it.
    pub fn sum_node(&self, x: Tensor, phase: &'static str) -> Tensor {
        let y = self.sum(x.shallow_clone(), phase);
        node(&x, y, |d| d)
    }

    /// `x` itself, of whose gradient every rank has a part of the sum.
    pub fn part_node(&self, x: Tensor, phase: &'static str) -> Tensor {
        let this = self.clone();
        // a copy, as autograd may use the same gradient elsewhere
        node(&x, x.detach(), move |d| this.sum(d.copy(), phase))
    }
}

/// The shape of `x` with another number of rows.
fn rows(x: &Tensor, count: impl Fn(i64) -> i64) -> Vec<i64> {
    let mut size = x.size();
    size[0] = count(size[0]);
    size
}

/// `y`, made of `x` without a graph, with this backward.
fn node(x: &Tensor, y: Tensor, back: impl FnOnce(Tensor) -> Tensor + 'static) -> Tensor {
    if !torch::autograd::wanted(&[x]) {
        return y;
    }
    let (size, options) = (y.size(), (y.kind(), y.device()));
    let backward = move |mut grads: Vec<Option<Tensor>>| {
        // without a gradient here there may still be one on another rank, which waits
        let d = grads
            .pop()
            .flatten()
            .unwrap_or_else(|| Tensor::zeros(&size, options));
        vec![Some(back(d))]
    };
    torch::autograd::node(&[x], vec![y], Box::new(backward))
        .expect("a node over one tensor")
        .swap_remove(0)
}
