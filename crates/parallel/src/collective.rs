//! Collectives: what ranks do together. Every call names its phase, so that a failure says where.

use std::time::Duration;

use tch::Tensor;

use crate::Error;

/// Operations that every rank of a group calls in the same order. Tensors are contiguous and of
/// equal kind on all ranks. An implementation has a deadline on every wait; a failure names the
/// rank, the collective and the phase.
pub trait Collective {
    /// This rank, `0..size`.
    fn rank(&self) -> usize;
    /// Ranks in the group, at least 1.
    fn size(&self) -> usize;
    /// Sums `tensor` over ranks, in place. All ranks get the same bits.
    fn all_reduce_sum(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error>;
    /// Copies `tensor` of rank `root` over that of all others.
    fn broadcast(&self, tensor: &mut Tensor, root: usize, phase: &str) -> Result<(), Error>;
    /// Concatenates every rank's `input` (equal sizes) in rank order into `out` on every rank.
    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error>;
    /// Sums `input` over ranks and leaves the rank-th of `size` equal slices in `out`.
    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error>;
    /// Sends `in_rows[r]` rows of `input` to rank r and receives `out_rows[r]` rows from it.
    fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        out_rows: &[i64],
        in_rows: &[i64],
        phase: &str,
    ) -> Result<(), Error>;
    /// Returns when all ranks have called it.
    fn barrier(&self, phase: &str) -> Result<(), Error>;
}

/// A group of one rank: nothing to wait for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Solo;

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn all_reduce_sum(&self, _: &mut Tensor, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn broadcast(&self, _: &mut Tensor, _: usize, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        copy_whole(out, input, "all_gather", phase)
    }
    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        copy_whole(out, input, "reduce_scatter", phase)
    }
    fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        _: &[i64],
        _: &[i64],
        phase: &str,
    ) -> Result<(), Error> {
        copy_whole(out, input, "all_to_all", phase)
    }
    fn barrier(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
}

fn copy_whole(
    out: &mut Tensor,
    input: &Tensor,
    collective: &'static str,
    phase: &str,
) -> Result<(), Error> {
    expect(out, input.numel() as i64, 0, 1, collective, phase)?;
    tch::no_grad(|| out.view_as(input).copy_(input));
    Ok(())
}

fn expect(
    out: &Tensor,
    want: i64,
    rank: usize,
    size: usize,
    collective: &'static str,
    phase: &str,
) -> Result<(), Error> {
    let got = out.numel() as i64;
    if got == want {
        return Ok(());
    }
    Err(Error::Sizes {
        rank,
        size,
        collective,
        phase: phase.to_owned(),
        got,
        want,
    })
}

/// libtorch's c10d over Gloo: CPU tensors, TCP between processes.
pub struct Gloo {
    group: torch::dist::Gloo,
    // the store of rank 0 serves the others as long as the group lives
    _store: torch::dist::Store,
    rank: usize,
    size: usize,
}

impl Gloo {
    /// Joins the group whose store rank 0 serves at `addr:port`. `deadline` bounds the meeting and
    /// every later wait.
    pub fn join(
        rank: usize,
        size: usize,
        addr: &str,
        port: u16,
        deadline: Duration,
    ) -> Result<Gloo, Error> {
        let failed = |e| failure(rank, size, "join", "start", e);
        let store =
            torch::dist::Store::connect(addr, port, rank == 0, size, deadline).map_err(failed)?;
        let group =
            torch::dist::Gloo::new(&store, "world", rank, size, deadline).map_err(failed)?;
        Ok(Gloo {
            group,
            _store: store,
            rank,
            size,
        })
    }

    fn named<T>(
        &self,
        collective: &'static str,
        phase: &str,
        result: Result<T, torch::Error>,
    ) -> Result<T, Error> {
        result.map_err(|e| failure(self.rank, self.size, collective, phase, e))
    }
}

fn failure(
    rank: usize,
    size: usize,
    collective: &'static str,
    phase: &str,
    error: torch::Error,
) -> Error {
    Error::Collective {
        rank,
        size,
        collective,
        phase: phase.to_owned(),
        reason: error.to_string(),
    }
}

impl Collective for Gloo {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn all_reduce_sum(&self, tensor: &mut Tensor, phase: &str) -> Result<(), Error> {
        self.named("all_reduce_sum", phase, self.group.all_reduce_sum(tensor))
    }
    fn broadcast(&self, tensor: &mut Tensor, root: usize, phase: &str) -> Result<(), Error> {
        self.named("broadcast", phase, self.group.broadcast(tensor, root))
    }
    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        let want = (input.numel() * self.size) as i64;
        expect(out, want, self.rank, self.size, "all_gather", phase)?;
        self.named("all_gather", phase, self.group.all_gather(out, input))
    }
    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        let want = (input.numel() / self.size) as i64;
        expect(out, want, self.rank, self.size, "reduce_scatter", phase)?;
        self.named(
            "reduce_scatter",
            phase,
            self.group.reduce_scatter(out, input),
        )
    }
    fn all_to_all(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        out_rows: &[i64],
        in_rows: &[i64],
        phase: &str,
    ) -> Result<(), Error> {
        self.named(
            "all_to_all",
            phase,
            self.group.all_to_all(out, input, out_rows, in_rows),
        )
    }
    fn barrier(&self, phase: &str) -> Result<(), Error> {
        self.named("barrier", phase, self.group.barrier())
    }
}
