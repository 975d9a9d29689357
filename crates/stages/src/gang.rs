//! The ranks of one attempt: who this process is, and what the ranks agree on.

use std::rc::Rc;
use std::time::Duration;

use arch::Mesh;
use parallel::{Carrier, Collective, Groups, Wanted};
use serde::Serialize;
use serde::de::DeserializeOwned;
use spec::placement::Collectives;
use tch::{Device, Kind, Tensor};

use crate::failure::{Failure, Result};

/// All ranks of one attempt, as one of them sees it.
pub struct Gang {
    pub rank: usize,
    pub size: usize,
    /// All ranks.
    pub collective: Rc<dyn Collective>,
    /// The ranks as the mesh arranges them.
    pub groups: Rc<Groups>,
}

impl Gang {
    /// Joins by torchrun's variables: `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR`,
    /// `MASTER_PORT`. Without `WORLD_SIZE`, or with 1, this process is alone.
    /// Every wait for the others ends after `deadline` seconds. `wanted` is what this rank
    /// wants carried.
    pub fn join(mesh: Mesh, deadline: u64, wanted: Wanted) -> Result<Gang> {
        let size = number("WORLD_SIZE")?.unwrap_or(1);
        if size != mesh.size() {
            return Err(Failure::config(
                format!("{size} ranks were started for a mesh of {}", mesh.size()),
                "start as many ranks as `resources.ranks` says",
            ));
        }
        if size == 1 {
            return Ok(Gang::of(Groups::solo()));
        }
        let rank = number("RANK")?.ok_or_else(|| missing("RANK"))?;
        let port = number("MASTER_PORT")?.ok_or_else(|| missing("MASTER_PORT"))?;
        let port = u16::try_from(port).map_err(|_| {
            Failure::config(format!("MASTER_PORT is {port}"), "give a port below 65536")
        })?;
        let addr = std::env::var("MASTER_ADDR").map_err(|_| missing("MASTER_ADDR"))?;
        if rank >= size {
            return Err(Failure::config(
                format!("RANK is {rank} of {size}"),
                "ranks count from 0",
            ));
        }
        let deadline = Duration::from_secs(deadline);
        Ok(Gang::of(Groups::join(
            mesh, rank, &addr, port, deadline, wanted,
        )?))
    }

    fn of(groups: Rc<Groups>) -> Gang {
        Gang {
            rank: groups.rank,
            size: groups.size(),
            collective: groups.world.clone(),
            groups,
        }
    }

    /// Whether this rank writes what all share.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// Whether any rank says yes.
    pub fn any(&self, flag: bool, phase: &str) -> Result<bool> {
        if self.size == 1 {
            return Ok(flag);
        }
        let mut votes = Tensor::from_slice(&[i64::from(flag)]);
        self.collective.all_reduce_sum(&mut votes, phase)?;
        Ok(votes.int64_value(&[0]) > 0)
    }

    /// The most of what the ranks say.
    pub fn most(&self, count: u64, phase: &str) -> Result<u64> {
        if self.size == 1 {
            return Ok(count);
        }
        let mut most = Tensor::from_slice(&[count as i64]);
        self.collective.all_reduce_max(&mut most, phase)?;
        Ok(most.int64_value(&[0]) as u64)
    }

    /// The items of all ranks, in rank order, on every rank.
    pub fn gather<T: Serialize + DeserializeOwned>(
        &self,
        items: Vec<T>,
        phase: &str,
    ) -> Result<Vec<T>> {
        if self.size == 1 {
            return Ok(items);
        }
        let broken = |e| Failure::failed("W0902", format!("{phase}: {e}"), "");
        let mut bytes = serde_json::to_vec(&items).map_err(broken)?;
        let own = bytes.len();
        let mut lengths = Tensor::zeros([self.size as i64], (Kind::Int64, Device::Cpu));
        let mine = Tensor::from_slice(&[own as i64]);
        self.collective.all_gather(&mut lengths, &mine, phase)?;
        let lengths: Vec<usize> = (0..self.size)
            .map(|rank| lengths.int64_value(&[rank as i64]) as usize)
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        bytes.resize(longest, b' ');
        let mut all = Tensor::zeros([(self.size * longest) as i64], (Kind::Uint8, Device::Cpu));
        self.collective
            .all_gather(&mut all, &Tensor::from_slice(&bytes), phase)?;
        let mut text = vec![0u8; self.size * longest];
        all.copy_data(&mut text, self.size * longest);
        let mut gathered = Vec::new();
        for (rank, length) in lengths.into_iter().enumerate() {
            let part = &text[rank * longest..][..length];
            gathered.extend(serde_json::from_slice::<Vec<T>>(part).map_err(broken)?);
        }
        Ok(gathered)
    }
}

/// The mesh that a recipe asks for.
pub fn mesh(asked: &spec::placement::Mesh) -> Mesh {
    Mesh {
        dp_replicate: asked.dp_replicate as usize,
        dp_shard: asked.dp_shard as usize,
        ep: asked.ep as usize,
        cp: asked.cp as usize,
        tp: asked.tp as usize,
        pp: asked.pp as usize,
        pp_chunks: asked.pp_chunks as usize,
        sp: asked.sp,
    }
}

/// What a recipe says of a rank's collectives.
pub fn wanted(asked: Collectives, device: Device) -> Wanted {
    let told = match asked {
        Collectives::Auto => None,
        Collectives::Gloo => Some(Carrier::Gloo),
        Collectives::Nccl => Some(Carrier::Nccl),
    };
    Wanted { device, told }
}

/// This rank's index on its machine.
pub fn local_rank() -> Result<usize> {
    let rank = number("RANK")?.unwrap_or(0);
    Ok(number("LOCAL_RANK")?.unwrap_or(rank))
}

fn number(variable: &str) -> Result<Option<usize>> {
    match std::env::var(variable) {
        Err(_) => Ok(None),
        Ok(text) => text.parse().map(Some).map_err(|_| {
            Failure::config(
                format!("{variable} is '{text}'"),
                "start ranks as torchrun does",
            )
        }),
    }
}

fn missing(variable: &str) -> Failure {
    Failure::config(
        format!("WORLD_SIZE is set but not {variable}"),
        "start ranks as torchrun does",
    )
}
