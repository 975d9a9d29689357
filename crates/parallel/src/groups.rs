//! A rank's groups along the axes of the mesh.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use arch::mesh::{Axis, DATA, DENSE_SHARD, EXPERT_SHARD, Mesh};

use crate::Error;
use crate::collective::{Collective, Counts, Net, Solo, Transport, Wanted};

/// The groups that one rank belongs to. A group of one is [`Solo`].
pub struct Groups {
    /// How the ranks are arranged.
    pub mesh: Mesh,
    /// This rank of the world.
    pub rank: usize,
    /// All ranks.
    pub world: Rc<dyn Collective>,
    /// Ranks that take different data: replicate, shard and ep.
    pub data: Rc<dyn Collective>,
    /// Over which dense parameters are sharded: shard, ep and cp.
    pub shard: Rc<dyn Collective>,
    /// Over which experts' parameters are sharded: shard and cp.
    pub expert_shard: Rc<dyn Collective>,
    /// Ranks that hold the same shards.
    pub replicate: Rc<dyn Collective>,
    /// Ranks with different experts.
    pub ep: Rc<dyn Collective>,
    /// Ranks with different parts of the same sequences.
    pub cp: Rc<dyn Collective>,
    /// Ranks with different parts of the same matrices.
    pub tp: Rc<dyn Collective>,
    /// Ranks with different segments.
    pub pp: Rc<dyn Collective>,
    transport: Transport,
    others: RefCell<HashMap<Vec<usize>, Rc<dyn Collective>>>,
    counts: Counts,
}

impl Groups {
    /// One rank alone.
    pub fn solo() -> Rc<Groups> {
        let solo = || Rc::new(Solo) as Rc<dyn Collective>;
        Rc::new(Groups {
            mesh: Mesh::solo(),
            rank: 0,
            world: solo(),
            data: solo(),
            shard: solo(),
            expert_shard: solo(),
            replicate: solo(),
            ep: solo(),
            cp: solo(),
            tp: solo(),
            pp: solo(),
            transport: Transport::Solo,
            others: RefCell::default(),
            counts: Counts::default(),
        })
    }

    /// Joins all groups of `rank` through the store that rank 0 serves at `addr:port`; every rank
    /// of the mesh calls this, each with the device that its tensors lie on and, if that was told,
    /// what carries them. `deadline` bounds the meeting and every later wait.
    ///
    /// # Errors
    /// Ranks that did not come by the deadline; a transport that cannot be used.
    pub fn join(
        mesh: Mesh,
        rank: usize,
        addr: &str,
        port: u16,
        deadline: Duration,
        wanted: impl Into<Wanted>,
    ) -> Result<Rc<Groups>, Error> {
        if mesh.size() == 1 {
            return Ok(Groups::solo());
        }
        // before others are met, who would wait for a rank that refuses
        let wanted = wanted.into();
        wanted.check(rank, mesh.size())?;
        let net = Net::join(rank, mesh.size(), addr, port, deadline)?;
        let transport = Transport::choose(&net, wanted)?;
        let group = |name: &str, ranks: Vec<usize>| transport.group(name, &ranks, name == "pp");
        let along = |name: &str, axes: &[Axis]| group(name, mesh.group(rank, axes));
        let shard = along("shard", DENSE_SHARD)?;
        let expert_shard = if mesh.ep == 1 {
            shard.clone()
        } else {
            along("expert_shard", EXPERT_SHARD)?
        };
        Ok(Rc::new(Groups {
            mesh,
            rank,
            world: group("world", (0..mesh.size()).collect())?,
            data: along("data", DATA)?,
            shard,
            expert_shard,
            replicate: along("dp_replicate", &[Axis::Replicate])?,
            ep: along("ep", &[Axis::Ep])?,
            cp: along("cp", &[Axis::Cp])?,
            tp: along("tp", &[Axis::Tp])?,
            pp: along("pp", &[Axis::Pp])?,
            counts: net.counts().clone(),
            transport,
            others: RefCell::default(),
        }))
    }

    /// A group of these ranks of the world, ascending, this one among them. Its members call this
    /// in the same order; the same ranks give the same group again, under its first name.
    ///
    /// # Errors
    /// Members that did not come by the deadline.
    pub fn sub(&self, name: &str, ranks: &[usize]) -> Result<Rc<dyn Collective>, Error> {
        if let Some(group) = self.others.borrow().get(ranks) {
            return Ok(group.clone());
        }
        let group = self.transport.group(name, ranks, false)?;
        self.others
            .borrow_mut()
            .insert(ranks.to_vec(), group.clone());
        Ok(group)
    }

    /// Ranks of the mesh.
    pub fn size(&self) -> usize {
        self.mesh.size()
    }

    /// What carries the groups' tensors: `none` (one rank), `gloo` or `nccl`.
    pub fn transport(&self) -> &'static str {
        self.transport.name()
    }

    /// Calls and bytes of this rank's groups, by group name and collective.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}
