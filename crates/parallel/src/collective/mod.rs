//! Collectives: what ranks do together. Every call names its phase, so that a failure says where.

mod gloo;
mod nccl;
mod net;
mod report;
mod solo;
mod transport;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use tch::Tensor;

use crate::Error;

pub use gloo::Gloo;
pub use nccl::{Nccl, Process as NcclProcess};
pub use net::{Net, free_port};
pub use solo::Solo;
pub use transport::{Carrier, Transport, Wanted};

/// Operations that every rank of a group calls in the same order. Tensors are contiguous and of
/// equal kind on all ranks. An implementation has a deadline on every wait; a failure names the
/// rank, the collective and the phase.
pub trait Collective {
    /// The group's name, such as `tp`.
    fn name(&self) -> &str;
    /// This rank's place in the group, `0..size`.
    fn rank(&self) -> usize;
    /// Ranks in the group, at least 1.
    fn size(&self) -> usize;
    /// Sums `tensor` over ranks, in place. All ranks get the same bits.
    fn all_reduce_sum(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error>;
    /// Replaces each element by its maximum over ranks.
    fn all_reduce_max(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error>;
    /// Copies `tensor` of rank `root` over that of all others.
    fn broadcast(&self, tensor: &mut Tensor, root: usize, phase: &str) -> Result<(), Error>;
    /// Concatenates every rank's `input` (equal sizes) in rank order into `out` on every rank.
    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error>;
    /// [`Collective::all_gather`] beside the caller's work. Neither tensor may be changed, nor
    /// `out` read, before [`Pending::wait`].
    fn all_gather_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error>;
    /// Sums `input` over ranks and leaves the rank-th of `size` equal slices in `out`.
    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error>;
    /// [`Collective::reduce_scatter`] beside the caller's work; as
    /// [`Collective::all_gather_start`].
    fn reduce_scatter_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error>;
    /// Sends `in_rows[r]` rows of `input` to rank r and receives `out_rows[r]` rows from it.
    fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        out_rows: &[i64],
        in_rows: &[i64],
        phase: &str,
    ) -> Result<(), Error>;
    /// Sends `tensor` to rank `to`, which calls [`Collective::recv`]. Messages between two ranks
    /// arrive in the order they were sent.
    fn send(&self, tensor: &Tensor, to: usize, phase: &str) -> Result<(), Error>;
    /// [`Collective::send`] beside the caller's work. The tensor may not be changed before
    /// [`Pending::wait`].
    fn send_start(&self, tensor: &Tensor, to: usize, phase: &str) -> Result<Pending, Error>;
    /// Receives into `tensor`, which is as large as what rank `from` sends.
    fn recv(&self, tensor: &mut Tensor, from: usize, phase: &str) -> Result<(), Error>;
    /// Returns when all ranks have called it.
    fn barrier(&self, phase: &str) -> Result<(), Error>;
}

/// A collective under way.
#[must_use = "its tensors may only be used after `wait`"]
pub struct Pending(Option<Box<dyn FnOnce() -> Result<(), Error>>>);

impl Pending {
    /// Nothing to wait for.
    pub fn done() -> Pending {
        Pending(None)
    }

    pub(crate) fn new(wait: impl FnOnce() -> Result<(), Error> + 'static) -> Pending {
        Pending(Some(Box::new(wait)))
    }

    /// Returns when the collective has ended, at its deadline at the latest; on a GPU, when what is
    /// given to it next is ordered behind the collective.
    pub fn wait(self) -> Result<(), Error> {
        self.0.map_or(Ok(()), |wait| wait())
    }
}

/// What went through one collective of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Calls made by this rank.
    pub calls: u64,
    /// Bytes of this rank's tensors: all of `out` for an all-gather, all of `input` for a
    /// reduce-scatter or an all-to-all, the tensor itself for the others.
    pub bytes: u64,
}

/// Counters of a process, by group name and collective.
#[derive(Debug, Clone, Default)]
pub struct Counts(Rc<RefCell<BTreeMap<(String, &'static str), Count>>>);

impl Counts {
    fn add(&self, group: &str, collective: &'static str, tensor: &Tensor) {
        let mut all = self.0.borrow_mut();
        let count = all.entry((group.to_owned(), collective)).or_default();
        count.calls += 1;
        count.bytes += (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    }

    /// All counters since the last [`Counts::reset`].
    pub fn all(&self) -> BTreeMap<(String, &'static str), Count> {
        self.0.borrow().clone()
    }

    /// One counter.
    pub fn get(&self, group: &str, collective: &'static str) -> Count {
        let key = (group.to_owned(), collective);
        self.0.borrow().get(&key).copied().unwrap_or_default()
    }

    /// Starts again from zero.
    pub fn reset(&self) {
        self.0.borrow_mut().clear();
    }
}
