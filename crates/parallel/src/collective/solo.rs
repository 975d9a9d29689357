//! A group of one rank.

use tch::Tensor;

use super::{Collective, Pending};
use crate::Error;

/// A group of one rank: nothing to wait for.
#[derive(Debug, Default, Clone, Copy)]
pub struct Solo;

impl Collective for Solo {
    fn name(&self) -> &str {
        "solo"
    }
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn all_reduce_sum(&self, _: &mut Tensor, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn all_reduce_max(&self, _: &mut Tensor, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn broadcast(&self, _: &mut Tensor, _: usize, _: &str) -> Result<(), Error> {
        Ok(())
    }
    fn all_gather(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        copy_whole(out, input, "all_gather", phase)
    }
    fn all_gather_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error> {
        self.all_gather(out, input, phase)?;
        Ok(Pending::done())
    }
    fn reduce_scatter(&self, out: &mut Tensor, input: &Tensor, phase: &str) -> Result<(), Error> {
        copy_whole(out, input, "reduce_scatter", phase)
    }
    fn reduce_scatter_start(
        &self,
        out: &mut Tensor,
        input: &Tensor,
        phase: &str,
    ) -> Result<Pending, Error> {
        self.reduce_scatter(out, input, phase)?;
        Ok(Pending::done())
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
    fn send(&self, _: &Tensor, to: usize, phase: &str) -> Result<(), Error> {
        Err(nobody("send", to, phase))
    }
    fn send_start(&self, _: &Tensor, to: usize, phase: &str) -> Result<Pending, Error> {
        Err(nobody("send", to, phase))
    }
    fn recv(&self, _: &mut Tensor, from: usize, phase: &str) -> Result<(), Error> {
        Err(nobody("recv", from, phase))
    }
    fn barrier(&self, _: &str) -> Result<(), Error> {
        Ok(())
    }
}

fn nobody(collective: &'static str, other: usize, phase: &str) -> Error {
    Error::Collective {
        rank: 0,
        size: 1,
        collective: collective.to_owned(),
        phase: phase.to_owned(),
        reason: format!("there is no rank {other} in a group of one"),
    }
}

fn copy_whole(
    out: &mut Tensor,
    input: &Tensor,
    collective: &'static str,
    phase: &str,
) -> Result<(), Error> {
    if out.numel() != input.numel() {
        return Err(Error::Sizes {
            rank: 0,
            size: 1,
            collective,
            phase: phase.to_owned(),
            got: out.numel() as i64,
            want: input.numel() as i64,
        });
    }
    tch::no_grad(|| out.view_as(input).copy_(input));
    Ok(())
}
