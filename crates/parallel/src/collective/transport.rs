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

/// What a rank wants carried, and by what.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Where its tensors lie.
    pub device: Device,
    /// What it was told to use; the same on all ranks.
    pub told: Option<Carrier>,
}

/// What there is to choose between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// Host memory over TCP.
    Gloo,
    /// GPUs.
    Nccl,
}

impl Wanted {
    /// Refuses what cannot be had, whatever the other ranks want.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub fn check(self, rank: usize, size: usize) -> Result<(), Error> {
        let checked = alone(self).map(|_| ());
        checked.map_err(|why| Error::Transport { rank, size, why })
    }
}

impl From<Device> for Wanted {
    fn from(device: Device) -> Wanted {
        Wanted { device, told: None }
    }
}

impl Transport {
    /// What was told; else NCCL where every rank has a GPU of its own, and Gloo where not. All ranks of
    /// `net` call this.
    ///
    /// # Errors
    /// Where NCCL is chosen and cannot be loaded, or is asked for and cannot work.
    pub fn choose(net: &Rc<Net>, wanted: Wanted) -> Result<Transport, Error> {
        let device = wanted.device;
        let refuse = |why: String| Error::Transport {
            rank: net.rank(),
            size: net.size(),
            why,
        };
        let places = || -> Result<Vec<i64>, Error> {
            let world = Gloo::new(net, "places", &(0..net.size()).collect::<Vec<_>>())?;
            let mine = place(device).map_err(refuse)?;
            let mut all = Tensor::zeros([net.size() as i64], (Kind::Int64, Device::Cpu));
            world.all_gather(&mut all, &Tensor::from_slice(&[mine]), "start")?;
            Ok((0..net.size())
                .map(|r| all.int64_value(&[r as i64]))
                .collect())
        };
        let choice = match alone(wanted).map_err(refuse)? {
            Some(Carrier::Gloo) => Carrier::Gloo,
            told => match shared(&places()?) {
                None => Carrier::Nccl,
                Some((a, b)) if told == Some(Carrier::Nccl) => {
                    return Err(refuse(format!(
                        "NCCL is asked for, but ranks {a} and {b} share a GPU, and it needs one for each: \
                         start fewer ranks, or use Gloo: `collectives = \"gloo\"`"
                    )));
                }
                Some(_) => Carrier::Gloo,
            },
        };
        Ok(match choice {
            Carrier::Gloo => Transport::Gloo(net.clone()),
            Carrier::Nccl => {
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
fn alone(wanted: Wanted) -> Result<Option<Carrier>, String> {
    match (wanted.told, wanted.device) {
        (Some(Carrier::Nccl), Device::Cuda(_)) => Ok(Some(Carrier::Nccl)),
        (Some(Carrier::Nccl), _) => Err(
            "NCCL is asked for, which carries tensors of GPUs, and this rank computes on the CPU: \
             use --device cuda, or leave `collectives` out"
                .into(),
        ),
        (Some(Carrier::Gloo), _) => Ok(Some(Carrier::Gloo)),
        (None, Device::Cuda(_)) => Ok(None),
        (None, _) => Ok(Some(Carrier::Gloo)),
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
        let of = |told, device| alone(Wanted { device, told });
        assert_eq!(of(None, gpu), Ok(None), "the others are asked");
        assert_eq!(of(None, Device::Cpu), Ok(Some(Carrier::Gloo)));
        assert_eq!(of(Some(Carrier::Gloo), gpu), Ok(Some(Carrier::Gloo)));
        assert_eq!(of(Some(Carrier::Nccl), gpu), Ok(Some(Carrier::Nccl)));
        let error = of(Some(Carrier::Nccl), Device::Cpu).expect_err("no GPU");
        assert!(error.contains("on the CPU"), "{error}");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_named() {
        let error = place(Device::Cuda(3)).expect_err("no such GPU");
        assert!(error.contains("CUDA"), "{error}");
    }
}
