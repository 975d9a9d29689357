//! NCCL: tensors of GPUs, where every rank has a GPU of its own. Tensors in host memory, which a
//! group carries too (votes, texts), go over Gloo, and so do NCCL's own names and the comparison of
//! shapes.
//!
//! A collective runs on a stream of its own. It starts when the caller's stream has come to it, and
//! the caller's stream goes on when it has ended; the host waits for neither. What does not end is
//! aborted by [`watch::Watch`], and the next call on any group says so. Small results, which the host
//! is about to read and decide by, are waited for: so no decision rests on what was aborted.

mod arrival;
mod comm;
mod library;
mod process;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t};
use tch::{Kind, Tensor};
use torch::stream::{Event, Stream};

use super::gloo::{Call, Gloo};
use super::net::Net;
use super::{Collective, Pending};
use crate::Error;
use arrival::Arrival;
use library::{Code, Library, SUCCESS};
use process::Lane;
pub use process::Process;
use watch::{Failed, Flight};

/// What the work of a collective runs on, and what its elements are.
struct On {
    element: ncclDataType_t,
    comm: ncclComm_t,
    stream: cudaStream_t,
}

/// A group of processes over NCCL.
pub struct Nccl {
    gloo: Gloo,
    process: Rc<Process>,
    all: Lane,
    /// From one place to a neighbour's. Each direction has its own, so that what goes there does
    /// not wait for what comes back.
    lanes: BTreeMap<(usize, usize), Lane>,
}

impl Nccl {
    /// The group of these ranks of the world, as [`Gloo::new`]. With `neighbours`, messages between
    /// ranks that follow one another (the last and the first do) go over NCCL as well; others go
    /// through host memory.
    ///
    /// # Errors
    /// Members that did not come by the deadline, and what NCCL says.
    pub fn new(
        net: &Rc<Net>,
        name: &str,
        members: &[usize],
        process: &Rc<Process>,
        neighbours: bool,
    ) -> Result<Nccl, Error> {
        let gloo = Gloo::new(net, name, members)?;
        let size = members.len();
        let everyone: Vec<usize> = (0..size).collect();
        let all = process.lane(&gloo, &everyone)?.expect("of all");
        let mut lanes = BTreeMap::new();
        for (from, to) in pairs(if neighbours { size } else { 0 }) {
            if let Some(lane) = process.lane(&gloo, &[from, to])? {
                lanes.insert((from, to), lane);
            }
        }
        Ok(Nccl {
            gloo,
            process: process.clone(),
            all,
            lanes,
        })
    }

    fn carries(&self, tensor: &Tensor) -> bool {
        tensor.device() == self.process.device
    }

    fn failure(&self, call: &Call, reason: &str) -> Error {
        let line = self.gloo.0.line(call);
        self.gloo
            .0
            .failure(line, call.collective, call.phase, &reason)
    }

    fn lost(&self, failed: Failed) -> Error {
        let Failed {
            line,
            collective,
            phase,
            reason,
        } = failed;
        self.gloo.0.failure(line, collective, &phase, &reason)
    }

    /// Counts a collective of all ranks, compares its shapes, and gives it to NCCL: `work` on
    /// `tensors`, whose addresses it got.
    fn start(
        &self,
        call: &Call,
        tensors: &[&Tensor],
        work: impl FnOnce(&Library, &On) -> Code,
    ) -> Result<Arrival, Error> {
        self.gloo.0.begin(call)?;
        self.enqueue(&self.all, call, tensors, work)
    }

    /// Counts a message, and gives it to NCCL; the lane's first place sends, its second receives.
    fn message(
        &self,
        lane: &Lane,
        call: &Call,
        work: impl FnOnce(&Library, &On) -> Code,
    ) -> Result<Arrival, Error> {
        self.gloo.0.count(call);
        self.enqueue(lane, call, &[call.tensor], work)
    }

    fn enqueue(
        &self,
        lane: &Lane,
        call: &Call,
        tensors: &[&Tensor],
        work: impl FnOnce(&Library, &On) -> Code,
    ) -> Result<Arrival, Error> {
        if let Some(failed) = self.process.watch.failed() {
            return Err(self.lost(failed));
        }
        let (started, deadline) = (Instant::now(), self.process.deadline);
        let enqueue = || -> Result<Event, String> {
            if tensors.iter().any(|t| !t.is_contiguous()) {
                return Err("a tensor is not contiguous".into());
            }
            let element = library::element(tensors[0].kind())?;
            let text = |e: torch::Error| e.to_string();
            let here = Stream::current(self.process.device).map_err(text)?;
            lane.stream
                .wait(&here.record().map_err(text)?)
                .map_err(text)?;
            let _seen = self.gloo.0.seen(call).on(lane.stream);
            let stream = lane.stream.native().map_err(text)?.cast();
            lane.comm.call(started + deadline, |library, comm| {
                let on = On {
                    element,
                    comm,
                    stream,
                };
                work(library, &on)
            })?;
            lane.stream.record().map_err(text)
        };
        let end = Arc::new(enqueue().map_err(|e| self.failure(call, &e))?);
        self.process.watch.follow(Flight {
            line: self.gloo.0.line(call),
            collective: call.collective,
            phase: call.phase.to_owned(),
            end: end.clone(),
            carrier: lane.comm.clone(),
            started,
            deadline,
        });
        Ok(Arrival::new(end, self.process.device, tensors, call.tensor))
    }

    /// Orders what follows behind a collective; waits for it where the host will read it.
    fn finish(&self, arrival: Arrival) -> Result<(), Error> {
        let read = arrival.read_by_host();
        arrival.order()?;
        let Some(end) = read else {
            return Ok(());
        };
        let landed = self.process.watch.land(&*end);
        landed.map_err(|failed| self.lost(failed))
    }

    fn reduce(
        &self,
        collective: &'static str,
        tensor: &mut Tensor,
        phase: &str,
        op: ncclRedOp_t,
    ) -> Result<(), Error> {
        let call = Call {
            collective,
            phase,
            tensor,
        };
        let (at, count) = (tensor.data_ptr(), tensor.numel());
        let arrival = self.start(&call, &[tensor], |nccl, on| {
            // SAFETY: `count` elements there, kept until the stream has passed.
            unsafe { (nccl.all_reduce)(at, at, count, on.element, op, on.comm, on.stream) }
        })?;
        self.finish(arrival)
    }

    fn gather(&self, out: &Tensor, input: &Tensor, phase: &str) -> Result<Arrival, Error> {
        let call = Call {
            collective: "all_gather",
            phase,
            tensor: out,
        };
        self.gloo.0.sizes(out, input.numel() * self.size(), &call)?;
        let (from, to, count) = (input.data_ptr(), out.data_ptr(), input.numel());
        self.start(&call, &[out, input], |nccl, on| {
            // SAFETY: `count` elements here, `size` times as many there, kept as above.
            unsafe { (nccl.all_gather)(from, to, count, on.element, on.comm, on.stream) }
        })
    }

    fn scatter(&self, out: &Tensor, input: &Tensor, phase: &str) -> Result<Arrival, Error> {
        let call = Call {
            collective: "reduce_scatter",
            phase,
            tensor: input,
        };
        self.gloo.0.sizes(out, input.numel() / self.size(), &call)?;
        let (from, to, count) = (input.data_ptr(), out.data_ptr(), out.numel());
        self.start(&call, &[out, input], |nccl, on| {
            let sum = ncclRedOp_t::ncclSum;
            // SAFETY: `count` elements there, `size` times as many here, kept as above.
            unsafe { (nccl.reduce_scatter)(from, to, count, on.element, sum, on.comm, on.stream) }
        })
    }
}

/// All directions between neighbours in a ring of this size, in an order that is the same on all
/// ranks: each waits for those before it only.
fn pairs(size: usize) -> BTreeSet<(usize, usize)> {
    let next = (0..size).map(|i| (i, (i + 1) % size));
    let both = next.flat_map(|(a, b)| [(a, b), (b, a)]);
    both.filter(|(a, b)| a != b).collect()
}

impl Collective for Nccl {
    fn name(&self) -> &str {
        self.gloo.name()
    }

    fn rank(&self) -> usize {
        self.gloo.rank()
    }

    fn size(&self) -> usize {
        self.gloo.size()
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error> {
        if !self.carries(tensor) {
            return self.gloo.all_reduce_sum(tensor, phase);
        }
        self.reduce("all_reduce_sum", tensor, phase, ncclRedOp_t::ncclSum)
    }

    fn all_reduce_max(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error> {
        if !self.carries(tensor) {
            return self.gloo.all_reduce_max(tensor, phase);
        }
        self.reduce("all_reduce_max", tensor, phase, ncclRedOp_t::ncclMax)
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize, phase: &str) -> Result<(), Error> {
        if !self.carries(tensor) {
            return self.gloo.broadcast(tensor, root, phase);
        }
        let call = Call {
            collective: "broadcast",
            phase,
            tensor,
        };
        let (at, count) = (tensor.data_ptr(), tensor.numel());
        let root = root as c_int;
        let arrival = self.start(&call, &[tensor], |nccl, on| {
            // SAFETY: `count` elements there, kept until the stream has passed.
            unsafe { (nccl.broadcast)(at, at, count, on.element, root, on.comm, on.stream) }
        })?;
        self.finish(arrival)
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        if !self.carries(out) {
            return self.gloo.all_gather(out, input, phase);
        }
        self.finish(self.gather(out, input, phase)?)
    }

    fn all_gather_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error> {
        if !self.carries(out) {
            return self.gloo.all_gather_start(out, input, phase);
        }
        Ok(self.gather(out, input, phase)?.pending())
    }

    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        if !self.carries(out) {
            return self.gloo.reduce_scatter(out, input, phase);
        }
        self.finish(self.scatter(out, input, phase)?)
    }

    fn reduce_scatter_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error> {
        if !self.carries(out) {
            return self.gloo.reduce_scatter_start(out, input, phase);
        }
        Ok(self.scatter(out, input, phase)?.pending())
    }

    fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        out_rows: &[i64],
        in_rows: &[i64],
        phase: &str,
    ) -> Result<(), Error> {
        if !self.carries(out) {
            return self.gloo.all_to_all(out, input, out_rows, in_rows, phase);
        }
        let call = Call {
            collective: "all_to_all",
            phase,
            tensor: input,
        };
        for (tensor, rows) in [(&*out, out_rows), (input, in_rows)] {
            let rows: i64 = rows.iter().sum();
            if tensor.size().first() != Some(&rows) {
                let shape = tensor.size();
                return Err(self.failure(&call, &format!("{rows} rows are not those of {shape:?}")));
            }
        }
        let width = input.size().iter().skip(1).product::<i64>() as usize;
        let bytes = width * input.kind().elt_size_in_bytes();
        let (from, to) = (input.data_ptr(), out.data_ptr());
        let arrival = self.start(&call, &[out, input], |nccl, on| {
            let (element, comm, stream) = (on.element, on.comm, on.stream);
            // SAFETY: rows of both tensors, kept as above; between start and end nothing waits.
            unsafe {
                let mut code = (nccl.group_start)();
                let (mut source, mut target) = (from, to);
                for (peer, (&give, &take)) in in_rows.iter().zip(out_rows).enumerate() {
                    let (give, take, peer) = (give as usize, take as usize, peer as c_int);
                    if code == SUCCESS && give > 0 {
                        code = (nccl.send)(source, give * width, element, peer, comm, stream);
                    }
                    if code == SUCCESS && take > 0 {
                        code = (nccl.recv)(target, take * width, element, peer, comm, stream);
                    }
                    source = source.byte_add(give * bytes);
                    target = target.byte_add(take * bytes);
                }
                let end = (nccl.group_end)();
                if code == SUCCESS { end } else { code }
            }
        })?;
        self.finish(arrival)
    }

    fn send(&self, tensor: &Tensor, to: usize, phase: &str) -> Result<(), Error> {
        self.send_start(tensor, to, phase)?.wait()
    }

    fn send_start(&self, tensor: &Tensor, to: usize, phase: &str) -> Result<Pending, Error> {
        let lane = self.lanes.get(&(self.rank(), to));
        let Some(lane) = lane.filter(|_| self.carries(tensor)) else {
            return self.gloo.send_start(tensor, to, phase);
        };
        let call = Call {
            collective: "send",
            phase,
            tensor,
        };
        let (at, count) = (tensor.data_ptr(), tensor.numel());
        let arrival = self.message(lane, &call, |nccl, on| {
            // SAFETY: `count` elements here, kept until the stream has passed.
            unsafe { (nccl.send)(at, count, on.element, 1, on.comm, on.stream) }
        })?;
        Ok(arrival.pending())
    }

    fn recv(&self, tensor: &mut Tensor, from: usize, phase: &str) -> Result<(), Error> {
        let lane = self.lanes.get(&(from, self.rank()));
        let Some(lane) = lane.filter(|_| self.carries(tensor)) else {
            return self.gloo.recv(tensor, from, phase);
        };
        let call = Call {
            collective: "recv",
            phase,
            tensor,
        };
        let (at, count) = (tensor.data_ptr(), tensor.numel());
        let arrival = self.message(lane, &call, |nccl, on| {
            // SAFETY: `count` elements there, kept until the stream has passed.
            unsafe { (nccl.recv)(at, count, on.element, 0, on.comm, on.stream) }
        })?;
        self.finish(arrival)
    }

    fn barrier(&self, phase: &str) -> Result<(), Error> {
        // a rank is there when its device has come as far
        let mut token = Tensor::zeros([1], (Kind::Float, self.process.device));
        self.all_reduce_sum(&mut token, phase)?;
        self.gloo.barrier(phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_a_ring_have_a_lane_each_way() {
        assert!(pairs(0).is_empty() && pairs(1).is_empty());
        assert!(pairs(2).iter().eq(&[(0, 1), (1, 0)]));
        let four = pairs(4);
        assert_eq!(four.len(), 8);
        assert!(four.contains(&(3, 0)) && four.contains(&(0, 3)) && !four.contains(&(0, 2)));
    }
}
