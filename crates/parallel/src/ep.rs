//! Expert parallelism: experts lie on the ranks of a group, and rows travel to them and back.
//!
//! For every layer: each rank sorts its rows' choices by expert, tells the others how many rows they
//! get of each of their experts, sends them, computes the rows that came, and sends the results
//! home, where they are weighted and summed. The way back sends the gradients along the same paths.
//! Every rank of the group takes part every time, with rows or without.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use arch::slice::even;
use model::Ops;
use model::moe::{Choice, Dispatch, Expert, Places, reorder, run_experts};
use tch::{Device, Kind, Tensor};
use torch::autograd;

use crate::{Collective, Error};

/// [`Dispatch`] over a group of ranks. Experts are dealt to the ranks in order, as evenly as
/// possible ([`arch::slice::experts`]).
pub struct AllToAll {
    group: Rc<dyn Collective>,
    /// The first failure: a dispatch gives a tensor, and what stopped it is asked for afterwards.
    failure: Rc<RefCell<Option<Error>>>,
}

/// Rows to and from each rank.
struct Traffic {
    sent: Vec<i64>,
    received: Vec<i64>,
}

impl AllToAll {
    /// Over the ranks of `group`.
    pub fn new(group: Rc<dyn Collective>) -> Self {
        Self {
            group,
            failure: Rc::default(),
        }
    }

    /// What went wrong since the last call, in a forward or on the way back. The tensors computed
    /// since then mean nothing.
    ///
    /// # Errors
    /// The first failed collective.
    pub fn check(&self) -> Result<(), Error> {
        self.failure.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// How many rows come from each rank for each expert that lies here: `[rank][expert]`.
    /// Nothing comes after a failure: the ranks no longer agree on what is next.
    fn announce(
        &self,
        counts: &[i64],
        places: &[Range<usize>],
        device: Device,
    ) -> Result<Vec<Vec<i64>>, Error> {
        let mine = places[self.group.rank()].len();
        if self.failure.borrow().is_some() {
            return Ok(vec![vec![0; mine]; places.len()]);
        }
        let input = Tensor::from_slice(counts).to_device(device);
        let size = (mine * places.len()) as i64;
        let mut out = Tensor::zeros([size], (Kind::Int64, device));
        let sent: Vec<i64> = places.iter().map(|p| p.len() as i64).collect();
        let received = vec![mine as i64; places.len()];
        self.group
            .all_to_all(&mut out, &input, &received, &sent, "row counts of experts")?;
        let flat: Vec<i64> =
            Vec::try_from(out.to_device(Device::Cpu)).map_err(torch::Error::from)?;
        Ok(flat.chunks(mine.max(1)).map(<[i64]>::to_vec).collect())
    }

    fn route(&self, x: &Tensor, choice: &Choice, experts: &[Expert], ops: &dyn Ops) -> Tensor {
        let ranks = self.group.size();
        let ranges: Vec<_> = (0..ranks)
            .map(|rank| even(choice.experts, ranks, rank))
            .collect();
        let places = Places::new(&choice.ids, choice.experts);
        let arriving = match self.announce(&places.counts, &ranges, x.device()) {
            Ok(arriving) => arriving,
            Err(e) => {
                self.fail(e);
                vec![vec![0; experts.len()]; ranks]
            }
        };
        let there = Traffic {
            sent: ranges
                .iter()
                .map(|range| places.counts[range.clone()].iter().sum())
                .collect(),
            received: arriving.iter().map(|counts| counts.iter().sum()).collect(),
        };
        let back = Traffic {
            sent: there.received.clone(),
            received: there.sent.clone(),
        };
        // rows arrive rank by rank; experts want theirs together
        let (order, inverse) = by_expert(&arriving, experts.len());
        let counts: Vec<i64> = (0..experts.len())
            .map(|e| arriving.iter().map(|counts| counts[e]).sum())
            .collect();
        let index = |v: Vec<i64>| Tensor::from_slice(&v).to_device(x.device());
        let (order, inverse) = (index(order), index(inverse));
        let came = self.exchange(&places.spread(x), there, "rows to experts");
        let rows = run_experts(&reorder(&came, &order, &inverse), &counts, experts, ops);
        let home = self.exchange(&reorder(&rows, &inverse, &order), back, "rows from experts");
        places.combine(&home, &choice.weights)
    }

    /// Rows to other ranks; on the way back their gradients return.
    fn exchange(&self, x: &Tensor, traffic: Traffic, phase: &'static str) -> Tensor {
        let there = Wire {
            group: self.group.clone(),
            failure: self.failure.clone(),
            phase,
        };
        let y = tch::no_grad(|| there.send(&x.detach(), &traffic));
        if !autograd::wanted(&[x]) {
            return y;
        }
        let back = Traffic {
            sent: traffic.received,
            received: traffic.sent,
        };
        let zeros = y.detach();
        let node = autograd::node(
            &[x],
            vec![y],
            Box::new(move |mut grads| {
                // the others wait for this rank's part, of zeros if need be
                let dy = grads.pop().flatten().unwrap_or_else(|| zeros.zeros_like());
                vec![Some(there.send(&dy, &back))]
            }),
        );
        // Fails only where libtorch cannot allocate a node, as its own operators would.
        node.expect("libtorch records an autograd node").remove(0)
    }

    fn fail(&self, e: Error) {
        self.failure.borrow_mut().get_or_insert(e);
    }
}

impl Dispatch for AllToAll {
    fn dispatch(&self, x: &Tensor, choice: &Choice, experts: &[Expert], ops: &dyn Ops) -> Tensor {
        self.route(x, choice, experts, ops)
    }

    fn is_collective(&self) -> bool {
        true
    }
}

/// One direction of rows between ranks.
struct Wire {
    group: Rc<dyn Collective>,
    failure: Rc<RefCell<Option<Error>>>,
    phase: &'static str,
}

impl Wire {
    /// After a failure nothing is sent: the ranks no longer agree on what comes next.
    fn send(&self, x: &Tensor, traffic: &Traffic) -> Tensor {
        let rows = traffic.received.iter().sum();
        let mut out = Tensor::zeros([rows, x.size()[1]], (x.kind(), x.device()));
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() {
            let (to, from) = (&traffic.sent, &traffic.received);
            let x = x.contiguous();
            *failure = self
                .group
                .all_to_all(&mut out, &x, from, to, self.phase)
                .err();
        }
        out
    }
}

/// Where the rows that arrived stand, expert by expert, and where each of them goes: the inverse.
/// `arriving[rank][expert]` rows came, rank by rank and by expert within.
fn by_expert(arriving: &[Vec<i64>], experts: usize) -> (Vec<i64>, Vec<i64>) {
    let mut start = 0;
    let starts: Vec<Vec<i64>> = arriving
        .iter()
        .map(|counts| {
            let each = counts.iter().map(|n| {
                start += n;
                start - n
            });
            each.collect()
        })
        .collect();
    let mut order = Vec::with_capacity(start as usize);
    for expert in 0..experts {
        for (counts, starts) in arriving.iter().zip(&starts) {
            order.extend(starts[expert]..starts[expert] + counts[expert]);
        }
    }
    let mut inverse = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        inverse[from as usize] = to as i64;
    }
    (order, inverse)
}

#[cfg(test)]
mod tests {
    use super::by_expert;

    #[test]
    fn rows_that_arrived_are_grouped_by_expert_and_back() {
        // rank 0 sent two rows for expert 0 and one for 2; rank 1 one each for 1 and 2
        let (order, inverse) = by_expert(&[vec![2, 0, 1], vec![0, 1, 1]], 3);
        assert_eq!(order, [0, 1, 3, 2, 4]);
        assert_eq!(inverse, [0, 1, 3, 2, 4]);
        let (order, inverse) = by_expert(&[vec![0, 3], vec![2, 0]], 2);
        assert_eq!(order, [3, 4, 0, 1, 2]);
        assert_eq!(inverse, [2, 3, 4, 0, 1]);
        assert_eq!(by_expert(&[vec![], vec![]], 0), (vec![], vec![]));
    }
}
