//! libtorch's c10d over Gloo: CPU tensors over TCP. Tensors of a GPU go through host memory, so
//! that several ranks can share one.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch::dist::Work;

use super::net::{Net, hash};
use super::{Collective, Pending, report};
use crate::Error;

/// A group of processes over Gloo.
pub struct Gloo(pub(super) Rc<Inner>);

pub(super) struct Inner {
    net: Rc<Net>,
    group: torch::dist::Gloo,
    name: String,
    /// Ranks of the world, in the group's order.
    members: Vec<usize>,
    /// Collective, phase and shape of the calls that were compared once. Ranks that agree so far
    /// have the same here, so they compare at the same calls.
    checked: RefCell<HashSet<(&'static str, String, Vec<i64>)>>,
    calls: Cell<u64>,
}

impl Gloo {
    /// The group of all, named `world`.
    ///
    /// # Errors
    /// As [`Net::join`].
    pub fn join(
        rank: usize,
        size: usize,
        addr: &str,
        port: u16,
        deadline: Duration,
    ) -> Result<Gloo, Error> {
        let net = Net::join(rank, size, addr, port, deadline)?;
        Gloo::new(&net, "world", &(0..size).collect::<Vec<_>>())
    }

    /// The group of these ranks of the world, ascending, this one among them; every member calls
    /// this. A name may be used by several groups of different ranks.
    ///
    /// # Errors
    /// Members that did not come by the deadline.
    pub fn new(net: &Rc<Net>, name: &str, members: &[usize]) -> Result<Gloo, Error> {
        let place = members.iter().position(|&r| r == net.rank);
        let place = place.expect("a rank only joins groups of its own");
        let ranks: Vec<String> = members.iter().map(usize::to_string).collect();
        let id = format!("{name}:{}", ranks.join(","));
        let group = torch::dist::Gloo::new(&net.store, &id, place, members.len(), net.deadline)
            .map_err(|e| Error::Collective {
                rank: net.rank,
                size: net.size,
                collective: "join".into(),
                phase: "start".into(),
                reason: format!("group {name} of ranks {}: {e}", ranks.join(", ")),
            })?;
        Ok(Gloo(Rc::new(Inner {
            net: net.clone(),
            group,
            name: name.to_owned(),
            members: members.to_vec(),
            checked: RefCell::default(),
            calls: Cell::new(0),
        })))
    }
}

/// One call: what it is, for messages.
pub(super) struct Call<'a> {
    pub collective: &'static str,
    pub phase: &'a str,
    pub tensor: &'a Tensor,
}

impl Call<'_> {
    /// Bytes of the call's tensor.
    fn bytes(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }

    fn line(&self, call: u64, group: &str) -> String {
        format!(
            "{} over {group} of {:?} {:?} in phase '{}' (its call {call} there)",
            self.collective,
            self.tensor.size(),
            self.tensor.kind(),
            self.phase
        )
    }
}

impl Inner {
    /// Counts the call, and compares its tensor with the peers' when it is the first of its phase
    /// and shape.
    pub fn begin(&self, call: &Call) -> Result<(), Error> {
        self.calls.set(self.calls.get() + 1);
        let mut shape = call.tensor.size();
        if call.collective == "all_to_all" {
            // the number of rows is each rank's own
            shape.truncate(0);
        }
        let seen = (call.collective, call.phase.to_owned(), shape);
        if self.checked.borrow_mut().insert(seen) || self.net.check_all {
            self.compare(call)?;
        }
        self.net
            .counts
            .add(&self.name, call.collective, call.tensor);
        Ok(())
    }

    /// Counts a message; what it is its receiver knows.
    pub fn count(&self, call: &Call) {
        self.calls.set(self.calls.get() + 1);
        self.net
            .counts
            .add(&self.name, call.collective, call.tensor);
    }

    /// The call, for a trace, while this thread is in it.
    pub fn seen(&self, call: &Call) -> trace::Span {
        trace::span(trace::Category::Collective, call.collective)
            .with("axis", self.name.as_str())
            .with("ranks", self.members.len())
            .with("bytes", call.bytes())
            .with("for", call.phase)
    }

    /// As [`Inner::seen`], of a call that goes on beside this thread.
    fn beside(&self, call: &Call) -> trace::Beside {
        trace::Beside::new(trace::Category::Collective, call.collective)
            .with("axis", self.name.as_str())
            .with("ranks", self.members.len())
            .with("bytes", call.bytes())
            .with("for", call.phase)
    }

    /// The call in words.
    pub fn line(&self, call: &Call) -> String {
        call.line(self.calls.get(), &self.name)
    }

    /// All ranks must be in the same collective and phase with equal shapes and kinds. In an
    /// all-to-all the number of rows is each rank's own.
    fn compare(&self, call: &Call) -> Result<(), Error> {
        let mut mine = [0i64; 10];
        mine[0] = hash(call.collective, call.phase);
        mine[1] = call.tensor.kind() as i64;
        mine[2] = call.tensor.dim() as i64;
        let own_rows = usize::from(call.collective == "all_to_all");
        for (i, &n) in call.tensor.size().iter().enumerate().skip(own_rows) {
            // shapes beyond seven dimensions do not occur
            mine[3 + i.min(6)] = n;
        }
        let mut all = Tensor::zeros([self.members.len() as i64, 10], (Kind::Int64, Device::Cpu));
        let mine = Tensor::from_slice(&mine).unsqueeze(0);
        let gathered = self.group.all_gather(&mut all, &mine);
        gathered.map_err(|e| self.failure(self.line(call), call.collective, call.phase, &e))?;
        let differ = (0..self.members.len() as i64).any(|r| all.get(r) != mine.get(0));
        if !differ {
            return Ok(());
        }
        let line = self.line(call);
        let peers = self.peers(line.clone());
        Err(Error::Mismatch {
            rank: self.net.rank,
            size: self.net.size,
            mine: line,
            peers,
        })
    }

    fn peers(&self, line: String) -> String {
        let me = self.net.rank;
        let peers = self.members.iter().copied().filter(|&r| r != me).collect();
        let turn = self.net.failures.replace(self.net.failures.get() + 1);
        report::exchange(&self.net.store, turn, me, line, peers)
    }

    pub fn failure(
        &self,
        line: String,
        collective: &'static str,
        phase: &str,
        error: &dyn Display,
    ) -> Error {
        Error::Collective {
            rank: self.net.rank,
            size: self.net.size,
            collective: format!("{collective} over {}", self.name),
            phase: phase.to_owned(),
            reason: match self.peers(line.clone()) {
                peers if peers.is_empty() => format!("{error}; this rank: {line}"),
                peers => format!("{error}; this rank: {line}; {peers}"),
            },
        }
    }

    fn run<T>(
        &self,
        call: &Call,
        op: impl FnOnce(&torch::dist::Gloo) -> Result<T, torch::Error>,
    ) -> Result<T, Error> {
        op(&self.group).map_err(|e| {
            let line = self.line(call);
            self.failure(line, call.collective, call.phase, &e)
        })
    }

    pub fn sizes(&self, out: &Tensor, want: usize, call: &Call) -> Result<(), Error> {
        let got = out.numel();
        if got == want {
            return Ok(());
        }
        Err(Error::Sizes {
            rank: self.net.rank,
            size: self.net.size,
            collective: call.collective,
            phase: call.phase.to_owned(),
            got: got as i64,
            want: want as i64,
        })
    }
}

/// Waits for `work`; where `out` lies on a GPU, copies what arrived in `staged` to it.
fn pending(
    inner: &Rc<Inner>,
    call: &Call,
    work: Work,
    staged: Tensor,
    out: Option<&Tensor>,
) -> Pending {
    let line = inner.line(call);
    let (collective, phase) = (call.collective, call.phase.to_owned());
    let beside = inner.beside(call);
    let inner = inner.clone();
    let out = out.map(Tensor::shallow_clone);
    Pending::new(move || {
        let waiting = trace::span(trace::Category::Collective, "wait").with("on", collective);
        let waited = work.wait();
        drop((beside, waiting));
        waited.map_err(|e| inner.failure(line, collective, &phase, &e))?;
        if let Some(mut out) = out {
            unstage(&staged, &mut out);
        }
        Ok(())
    })
}

/// The tensor in host memory: itself, or a copy of what lies on a GPU.
fn host(tensor: &Tensor) -> Tensor {
    if tensor.device() == Device::Cpu {
        tensor.detach()
    } else {
        tensor.detach().to_device(Device::Cpu)
    }
}

/// Copies a result back to where it belongs, if it was staged.
fn unstage(staged: &Tensor, out: &mut Tensor) {
    if out.device() != Device::Cpu {
        tch::no_grad(|| out.copy_(staged));
    }
}

/// Message tag of what has a collective's order anyway.
const TAG: u32 = 0;

impl Gloo {
    /// A collective that changes `tensor` itself.
    fn in_place(
        &self,
        collective: &'static str,
        tensor: &mut Tensor,
        phase: &str,
        op: impl FnOnce(&torch::dist::Gloo, &mut Tensor) -> Result<(), torch::Error>,
    ) -> Result<(), Error> {
        let seen = tensor.shallow_clone();
        let call = Call {
            collective,
            phase,
            tensor: &seen,
        };
        let _seen = self.0.seen(&call);
        self.0.begin(&call)?;
        let mut staged = host(tensor);
        self.0.run(&call, |g| op(g, &mut staged))?;
        unstage(&staged, tensor);
        Ok(())
    }

    /// Starts a collective from `input` to `out`, which must have `want` elements.
    fn start(
        &self,
        call: &Call,
        out: &Tensor,
        want: usize,
        input: &Tensor,
        op: impl FnOnce(&torch::dist::Gloo, &Tensor, &Tensor) -> Result<Work, torch::Error>,
    ) -> Result<Pending, Error> {
        self.0.sizes(out, want, call)?;
        self.0.begin(call)?;
        let (staged, input) = (host(out), host(input));
        let work = self.0.run(call, |g| op(g, &staged, &input))?;
        Ok(pending(&self.0, call, work, staged, Some(out)))
    }
}

impl Collective for Gloo {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn rank(&self) -> usize {
        self.0.group.rank()
    }

    fn size(&self) -> usize {
        self.0.group.size()
    }

    fn all_reduce_sum(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error> {
        self.in_place("all_reduce_sum", tensor, phase, |g, staged| {
            g.all_reduce_sum(staged)
        })
    }

    fn all_reduce_max(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error> {
        self.in_place("all_reduce_max", tensor, phase, |g, staged| {
            g.all_reduce_max(staged)
        })
    }

    fn broadcast(&self, tensor: &mut Tensor, root: usize, phase: &str) -> Result<(), Error> {
        self.in_place("broadcast", tensor, phase, |g, staged| {
            g.broadcast(staged, root)
        })
    }

    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        self.all_gather_start(out, input, phase)?.wait()
    }

    fn all_gather_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error> {
        let call = Call {
            collective: "all_gather",
            phase,
            tensor: out,
        };
        let want = input.numel() * self.size();
        self.start(&call, out, want, input, |g, out, input| {
            g.all_gather_start(out, input)
        })
    }

    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        self.reduce_scatter_start(out, input, phase)?.wait()
    }

    fn reduce_scatter_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error> {
        let call = Call {
            collective: "reduce_scatter",
            phase,
            tensor: input,
        };
        let want = input.numel() / self.size();
        self.start(&call, out, want, input, |g, out, input| {
            g.reduce_scatter_start(out, input)
        })
    }

    fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        out_rows: &[i64],
        in_rows: &[i64],
        phase: &str,
    ) -> Result<(), Error> {
        let call = Call {
            collective: "all_to_all",
            phase,
            tensor: input,
        };
        let _seen = self.0.seen(&call);
        self.0.begin(&call)?;
        let (mut staged, input) = (host(out), host(input));
        self.0.run(&call, |g| {
            g.all_to_all(&mut staged, &input, out_rows, in_rows)
        })?;
        unstage(&staged, out);
        Ok(())
    }

    fn send(&self, tensor: &Tensor, to: usize, phase: &str) -> Result<(), Error> {
        self.send_start(tensor, to, phase)?.wait()
    }

    fn send_start(&self, tensor: &Tensor, to: usize, phase: &str) -> Result<Pending, Error> {
        let call = Call {
            collective: "send",
            phase,
            tensor,
        };
        self.0.count(&call);
        let staged = host(tensor);
        let work = self.0.run(&call, |g| g.send_start(&staged, to, TAG))?;
        Ok(pending(&self.0, &call, work, staged, None))
    }

    fn recv(&self, tensor: &mut Tensor, from: usize, phase: &str) -> Result<(), Error> {
        let seen = tensor.shallow_clone();
        let call = Call {
            collective: "recv",
            phase,
            tensor: &seen,
        };
        let _seen = self.0.seen(&call);
        self.0.count(&call);
        let mut staged = host(tensor);
        self.0.run(&call, |g| g.recv(&mut staged, from, TAG))?;
        unstage(&staged, tensor);
        Ok(())
    }

    fn barrier(&self, phase: &str) -> Result<(), Error> {
        let none = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        let call = Call {
            collective: "barrier",
            phase,
            tensor: &none,
        };
        let _seen = self.0.seen(&call);
        self.0.calls.set(self.0.calls.get() + 1);
        self.0.run(&call, |g| g.barrier())
    }
}
