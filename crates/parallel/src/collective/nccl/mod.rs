//! NCCL: tensors of GPUs, where every rank has a GPU of its own. Tensors in host memory, which a
//! group carries too (votes, texts), go over Gloo, and so do NCCL's own names and the comparison of
//! shapes.
//!
//! A collective runs on a stream of its own. It starts when the caller's stream has come to it, and
//! the caller's stream goes on when it has ended; the host waits for neither. What does not end is
//! aborted by [`watch::Watch`], and the next call on any group says so. Small results, which the host
//! is about to read and decide by, are waited for: so no decision rests on what was aborted.

mod comm;
mod library;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use tch::{Device, Kind, Tensor};
use torch::stream::{self, Event, Stream};

use super::gloo::{Call, Gloo};
use super::net::Net;
use super::{Collective, Pending};
use crate::Error;
use comm::Comm;
use library::{Code, Library, SUCCESS};
use watch::{Failed, Flight, Watch};

/// Elements of a result that the host waits for.
const SMALL: usize = 1024;

/// NCCL in this process.
pub struct Process {
    library: &'static Library,
    device: Device,
    watch: Watch,
    deadline: Duration,
}

impl Process {
    /// Loads NCCL for `device`. Every wait ends after `deadline`.
    ///
    /// # Errors
    /// Why it cannot be loaded, and what to do.
    pub fn new(device: Device, deadline: Duration) -> Result<Rc<Process>, String> {
        let library = Library::get()?;
        stream::select(device).map_err(|e| e.to_string())?;
        let watch = Watch::new(move || {
            // a device that this thread could select, another can
            let _ = stream::select(device);
        });
        Ok(Rc::new(Process {
            library,
            device,
            watch,
            deadline,
        }))
    }

    /// NCCL's version, such as 22809 for 2.28.9.
    pub fn version(&self) -> Result<i32, String> {
        let mut version: c_int = 0;
        // SAFETY: `version` is written.
        let code = unsafe { (self.library.version)(&mut version) };
        self.library.check(code, std::ptr::null_mut())?;
        Ok(version)
    }

    /// A communicator of these places of a group, the first of which names it; none where this rank
    /// is not among them. All of the group call this.
    fn lane(&self, gloo: &Gloo, places: &[usize]) -> Result<Option<Lane>, Error> {
        let failure = |e: String| gloo.0.failure("joining NCCL".into(), "join", "start", &e);
        let mut name = Tensor::zeros([128], (Kind::Uint8, Device::Cpu));
        if gloo.rank() == places[0] {
            let id = self.library.new_id().map_err(failure)?;
            name = Tensor::from_slice(&id.internal.map(|c| c as u8));
        }
        gloo.broadcast(&mut name, places[0], "start")?;
        let Some(rank) = places.iter().position(|&place| place == gloo.rank()) else {
            return Ok(None);
        };
        let mut bytes = [0u8; 128];
        name.copy_data(&mut bytes, 128);
        let id = ncclUniqueId {
            internal: bytes.map(|b| b as _),
        };
        let until = Instant::now() + self.deadline;
        let comm = Comm::join(self.library, id, rank, places.len(), until).map_err(failure)?;
        Ok(Some(Lane {
            comm: Arc::new(comm),
            stream: Stream::side(self.device)?,
        }))
    }
}

/// A communicator and the stream that its work runs on.
struct Lane {
    comm: Arc<Comm>,
    stream: Stream,
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

    /// Gives a lane work on tensors that `work` got the addresses of.
    fn start(
        &self,
        lane: &Lane,
        call: &Call,
        tensors: &[&Tensor],
        work: impl FnOnce(&Library, ncclDataType_t, ncclComm_t, cudaStream_t) -> Code,
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
            let native = lane.stream.native().map_err(text)?.cast();
            lane.comm.call(started + deadline, |library, comm| {
                work(library, element, comm, native)
            })?;
            lane.stream.record().map_err(text)
        };
        let end = enqueue().map_err(|e| self.failure(call, &e))?;
        let end = Arc::new(end);
        self.process.watch.follow(Flight {
            line: self.gloo.0.line(call),
            collective: call.collective,
            phase: call.phase.to_owned(),
            end: end.clone(),
            carrier: lane.comm.clone(),
            started,
            deadline,
        });
        Ok(Arrival {
            end,
            device: self.process.device,
            _tensors: tensors.iter().map(|t| t.shallow_clone()).collect(),
            ordered: false,
        })
    }

    /// Orders what follows behind a collective; waits for it where the host will read it.
    fn finish(&self, call: &Call, arrival: Arrival) -> Result<(), Error> {
        let end = arrival.end.clone();
        arrival.order()?;
        if call.tensor.numel() > SMALL {
            return Ok(());
        }
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
        self.gloo.0.begin(&call)?;
        let (at, count) = (tensor.data_ptr(), tensor.numel());
        let arrival = self.start(
            &self.all,
            &call,
            &[tensor],
            |nccl, element, comm, stream| {
                // SAFETY: `count` elements there, kept until the stream has passed.
                unsafe { (nccl.all_reduce)(at, at, count, element, op, comm, stream) }
            },
        )?;
        self.finish(&call, arrival)
    }

    fn gather(&self, call: &Call, out: &Tensor, input: &Tensor) -> Result<Arrival, Error> {
        self.gloo.0.sizes(out, input.numel() * self.size(), call)?;
        self.gloo.0.begin(call)?;
        let (from, to, count) = (input.data_ptr(), out.data_ptr(), input.numel());
        self.start(
            &self.all,
            call,
            &[out, input],
            |nccl, element, comm, stream| {
                // SAFETY: `count` elements here, `size` times as many there, kept as above.
                unsafe { (nccl.all_gather)(from, to, count, element, comm, stream) }
            },
        )
    }

    fn scatter(&self, call: &Call, out: &Tensor, input: &Tensor) -> Result<Arrival, Error> {
        self.gloo.0.sizes(out, input.numel() / self.size(), call)?;
        self.gloo.0.begin(call)?;
        let (from, to, count) = (input.data_ptr(), out.data_ptr(), out.numel());
        self.start(
            &self.all,
            call,
            &[out, input],
            |nccl, element, comm, stream| {
                // SAFETY: `count` elements there, `size` times as many here, kept as above.
                unsafe {
                    let sum = ncclRedOp_t::ncclSum;
                    (nccl.reduce_scatter)(from, to, count, element, sum, comm, stream)
                }
            },
        )
    }

    /// The message of one lane; `work` sends (as place 0) or receives (as place 1).
    fn message(
        &self,
        lane: &Lane,
        call: &Call,
        work: impl FnOnce(&Library, ncclDataType_t, ncclComm_t, cudaStream_t) -> Code,
    ) -> Result<Arrival, Error> {
        self.gloo.0.count(call);
        self.start(lane, call, &[call.tensor], work)
    }
}

/// All directions between neighbours in a ring of this size, in an order that is the same on all
/// ranks: each waits for those before it only.
fn pairs(size: usize) -> BTreeSet<(usize, usize)> {
    let next = (0..size).map(|i| (i, (i + 1) % size));
    let both = next.flat_map(|(a, b)| [(a, b), (b, a)]);
    both.filter(|(a, b)| a != b).collect()
}

/// A collective on its way to the caller's stream.
struct Arrival {
    end: Arc<Event>,
    device: Device,
    /// Alive until the caller's stream is behind the collective.
    _tensors: Vec<Tensor>,
    ordered: bool,
}

impl Arrival {
    /// What the caller's stream does next comes after it.
    fn order(mut self) -> Result<(), Error> {
        self.ordered = true;
        Ok(Stream::current(self.device)?.wait(&self.end)?)
    }

    fn pending(self) -> Pending {
        Pending::new(move || self.order())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.ordered {
            // its tensors' memory is handed out again in the order of that stream
            let _ = Stream::current(self.device).and_then(|here| here.wait(&self.end));
        }
    }
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
        self.gloo.0.begin(&call)?;
        let (at, count) = (tensor.data_ptr(), tensor.numel());
        let arrival = self.start(
            &self.all,
            &call,
            &[tensor],
            |nccl, element, comm, stream| {
                // SAFETY: `count` elements there, kept until the stream has passed.
                unsafe { (nccl.broadcast)(at, at, count, element, root as c_int, comm, stream) }
            },
        )?;
        self.finish(&call, arrival)
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        if !self.carries(out) {
            return self.gloo.all_gather(out, input, phase);
        }
        let call = Call {
            collective: "all_gather",
            phase,
            tensor: out,
        };
        let arrival = self.gather(&call, out, input)?;
        self.finish(&call, arrival)
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
        let call = Call {
            collective: "all_gather",
            phase,
            tensor: out,
        };
        Ok(self.gather(&call, out, input)?.pending())
    }

    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        if !self.carries(out) {
            return self.gloo.reduce_scatter(out, input, phase);
        }
        let call = Call {
            collective: "reduce_scatter",
            phase,
            tensor: input,
        };
        let arrival = self.scatter(&call, out, input)?;
        self.finish(&call, arrival)
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
        let call = Call {
            collective: "reduce_scatter",
            phase,
            tensor: input,
        };
        Ok(self.scatter(&call, out, input)?.pending())
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
        self.gloo.0.begin(&call)?;
        let width: i64 = input.size().iter().skip(1).product();
        let bytes = width as usize * input.kind().elt_size_in_bytes();
        let (from, to) = (input.data_ptr(), out.data_ptr());
        let arrival = self.start(
            &self.all,
            &call,
            &[out, input],
            |nccl, element, comm, stream| {
                // SAFETY: rows of both tensors, kept as above; between start and end nothing waits.
                unsafe {
                    let mut code = (nccl.group_start)();
                    let (mut sent, mut received) = (0, 0);
                    for peer in 0..in_rows.len() {
                        let (give, take) = (in_rows[peer] as usize, out_rows[peer] as usize);
                        let (source, target) = (from.byte_add(sent), to.byte_add(received));
                        let wide = width as usize;
                        if code == SUCCESS && give > 0 {
                            code = (nccl.send)(
                                source,
                                give * wide,
                                element,
                                peer as c_int,
                                comm,
                                stream,
                            );
                        }
                        if code == SUCCESS && take > 0 {
                            code = (nccl.recv)(
                                target,
                                take * wide,
                                element,
                                peer as c_int,
                                comm,
                                stream,
                            );
                        }
                        sent += give * bytes;
                        received += take * bytes;
                    }
                    let end = (nccl.group_end)();
                    if code == SUCCESS { end } else { code }
                }
            },
        )?;
        self.finish(&call, arrival)
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
        let arrival = self.message(lane, &call, |nccl, element, comm, stream| {
            // SAFETY: `count` elements here, kept until the stream has passed.
            unsafe { (nccl.send)(at, count, element, 1, comm, stream) }
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
        let arrival = self.message(lane, &call, |nccl, element, comm, stream| {
            // SAFETY: `count` elements there, kept until the stream has passed.
            unsafe { (nccl.recv)(at, count, element, 0, comm, stream) }
        })?;
        self.finish(&call, arrival)
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
