//! What carries a group's tensors: the one place where implementations of [`Collective`] are listed
//! and chosen.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::net::{Net, hash};
use super::{Collective, Gloo, Nccl, Solo, nccl};
use crate::Error;

/// Chosen once for all groups of a gang, the same on all ranks.
pub enum Transport {
    /// One rank: nothing to carry.
    Solo,
    /// Host memory over TCP; what lies on a GPU is staged there.
    Gloo(Rc<Net>),
    /// GPUs.
    Nccl(Rc<Net>, Rc<nccl::Process>),
}

/// Names another transport than the one we would choose: `gloo` or `nccl`.
const VARIABLE: &str = "RECIPE_COLLECTIVES";

/// What is chosen between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Gloo,
    Nccl,
}

impl Transport {
    /// NCCL where every rank has a GPU of its own, else Gloo. All ranks of `net` call this, each with
    /// the device that its tensors lie on.
    ///
    /// # Errors
    /// Where NCCL is chosen and cannot be loaded, or is asked for and cannot work.
    pub fn choose(net: &Rc<Net>, device: Device) -> Result<Transport, Error> {
        let refuse = |why: String| Error::Transport {
            rank: net.rank(),
            size: net.size(),
            why,
        };
        let asked = std::env::var(VARIABLE).ok();
        let places = || -> Result<Vec<i64>, Error> {
            let world = Gloo::new(net, "places", &(0..net.size()).collect::<Vec<_>>())?;
            let mine = place(device).map_err(refuse)?;
            let mut all = Tensor::zeros([net.size() as i64], (Kind::Int64, Device::Cpu));
            world.all_gather(&mut all, &Tensor::from_slice(&[mine]), "start")?;
            Ok((0..net.size())
                .map(|r| all.int64_value(&[r as i64]))
                .collect())
        };
        let choice = match wanted(asked.as_deref(), device).map_err(refuse)? {
            Some(Choice::Gloo) => Choice::Gloo,
            wish => match shared(&places()?) {
                None => Choice::Nccl,
                Some((a, b)) if wish == Some(Choice::Nccl) => {
                    return Err(refuse(format!(
                        "{VARIABLE}=nccl, but ranks {a} and {b} share a GPU, and NCCL needs one for each: \
                         start fewer ranks, or set {VARIABLE}=gloo"
                    )));
                }
                Some(_) => Choice::Gloo,
            },
        };
        Ok(match choice {
            Choice::Gloo => Transport::Gloo(net.clone()),
            Choice::Nccl => {
                let process = nccl::Process::new(device, net.deadline()).map_err(refuse)?;
                Transport::Nccl(net.clone(), process)
            }
        })
    }

    /// What results depend on: `gloo`, `nccl`, or `none` for one rank.
    pub fn name(&self) -> &'static str {
        match self {
            Transport::Solo => "none",
            Transport::Gloo(_) => "gloo",
            Transport::Nccl(..) => "nccl",
        }
    }

    /// The group of these ranks of the world, ascending, this one among them; every member calls
    /// this. With `neighbours`, many messages will go between ranks that follow one another.
    ///
    /// # Errors
    /// Members that did not come by the deadline.
    pub fn group(
        &self,
        name: &str,
        members: &[usize],
        neighbours: bool,
    ) -> Result<Rc<dyn Collective>, Error> {
        Ok(match self {
            _ if members.len() == 1 => Rc::new(Solo),
            Transport::Solo => Rc::new(Solo),
            Transport::Gloo(net) => Rc::new(Gloo::new(net, name, members)?),
            Transport::Nccl(net, process) => {
                Rc::new(Nccl::new(net, name, members, process, neighbours)?)
            }
        })
    }
}

/// What is decided without the other ranks.
fn wanted(asked: Option<&str>, device: Device) -> Result<Option<Choice>, String> {
    match (asked, device) {
        (Some("nccl"), Device::Cuda(_)) => Ok(Some(Choice::Nccl)),
        (Some("nccl"), _) => Err(format!(
            "{VARIABLE}=nccl, but NCCL carries tensors of GPUs and this rank computes on the CPU: \
             use --device cuda, or unset it"
        )),
        (Some("gloo"), _) => Ok(Some(Choice::Gloo)),
        (Some("") | None, Device::Cuda(_)) => Ok(None),
        (Some("") | None, _) => Ok(Some(Choice::Gloo)),
        (Some(other), _) => Err(format!("{VARIABLE} is '{other}': use gloo or nccl")),
    }
}

/// A number for a GPU of a machine.
fn place(device: Device) -> Result<i64, String> {
    let Device::Cuda(index) = device else {
        return Ok(0);
    };
    let boot = "/proc/sys/kernel/random/boot_id";
    let machine = std::fs::read_to_string(boot).map_err(|e| format!("{boot}: {e}"))?;
    Ok(hash(machine.trim(), &torch::cuda::bus_id(index)?))
}

/// Two ranks at the same place, if there are any.
fn shared(places: &[i64]) -> Option<(usize, usize)> {
    let pairs = (0..places.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
    pairs.into_iter().find(|&(a, b)| places[a] == places[b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_is_for_ranks_with_a_gpu_each() {
        assert_eq!(shared(&[3, 1, 4, 1, 5]), Some((1, 3)));
        assert_eq!(shared(&[3, 1, 4]), None);
        assert_eq!(shared(&[3]), None);
        let gpu = Device::Cuda(0);
        assert_eq!(wanted(None, gpu), Ok(None), "the others are asked");
        assert_eq!(wanted(None, Device::Cpu), Ok(Some(Choice::Gloo)));
        assert_eq!(wanted(Some("gloo"), gpu), Ok(Some(Choice::Gloo)));
        assert_eq!(wanted(Some("nccl"), gpu), Ok(Some(Choice::Nccl)));
        let error = wanted(Some("nccl"), Device::Cpu).expect_err("no GPU");
        assert!(error.contains("on the CPU"), "{error}");
        let error = wanted(Some("mpi"), gpu).expect_err("unknown");
        assert!(error.contains("'mpi'"), "{error}");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        let error = place(Device::Cuda(3)).expect_err("no such GPU");
        assert!(error.contains("CUDA"), "{error}");
    }
}
