//! How ranks are arranged: the sizes of six axes, and where each rank stands on them.

use std::fmt;

use crate::{Error, ModelConfig, Shard};

/// Sizes of the axes; the number of ranks is their product. A rank is a mixed-radix number with
/// the axes in the order of [`Axis`], the last one counting fastest, so that ranks which talk most
/// are neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mesh {
    /// Different data, the same shards.
    pub dp_replicate: usize,
    /// Different data, parameters sharded (FSDP).
    pub dp_shard: usize,
    /// Different data, different experts.
    pub ep: usize,
    /// Parts of the same sequences.
    pub cp: usize,
    /// Parts of the same matrices.
    pub tp: usize,
    /// Parts of the list of segments.
    pub pp: usize,
    /// Pieces of that list on each pipeline rank: above 1 the pipeline is interleaved.
    pub pp_chunks: usize,
    /// Split the rows between matrices over `tp` (sequence parallelism); acts when `tp > 1`.
    pub sp: bool,
}

/// The axes, outermost first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Axis {
    /// Pipeline stages.
    Pp,
    /// Replicas of all shards.
    Replicate,
    /// Shards of parameters.
    Shard,
    /// Experts.
    Ep,
    /// Context.
    Cp,
    /// Matrices.
    Tp,
}

/// All axes, outermost first.
pub const AXES: [Axis; 6] = [
    Axis::Pp,
    Axis::Replicate,
    Axis::Shard,
    Axis::Ep,
    Axis::Cp,
    Axis::Tp,
];

/// The axes over which dense parameters are sharded.
pub const DENSE_SHARD: &[Axis] = &[Axis::Shard, Axis::Ep, Axis::Cp];
/// The axes over which experts' parameters are sharded; `ep` cuts them already.
pub const EXPERT_SHARD: &[Axis] = &[Axis::Shard, Axis::Cp];
/// The axes whose ranks take different data.
pub const DATA: &[Axis] = &[Axis::Replicate, Axis::Shard, Axis::Ep];

impl Axis {
    /// The axis as a recipe writes it.
    pub fn name(self) -> &'static str {
        match self {
            Axis::Pp => "pp",
            Axis::Replicate => "dp_replicate",
            Axis::Shard => "dp_shard",
            Axis::Ep => "ep",
            Axis::Cp => "cp",
            Axis::Tp => "tp",
        }
    }
}

/// Where a rank stands on each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Coord {
    pub pp: usize,
    pub replicate: usize,
    pub shard: usize,
    pub ep: usize,
    pub cp: usize,
    pub tp: usize,
}

impl Coord {
    /// The place on one axis.
    pub fn get(&self, axis: Axis) -> usize {
        match axis {
            Axis::Pp => self.pp,
            Axis::Replicate => self.replicate,
            Axis::Shard => self.shard,
            Axis::Ep => self.ep,
            Axis::Cp => self.cp,
            Axis::Tp => self.tp,
        }
    }

    fn place(&mut self, axis: Axis) -> &mut usize {
        match axis {
            Axis::Pp => &mut self.pp,
            Axis::Replicate => &mut self.replicate,
            Axis::Shard => &mut self.shard,
            Axis::Ep => &mut self.ep,
            Axis::Cp => &mut self.cp,
            Axis::Tp => &mut self.tp,
        }
    }

    /// The same place but for one axis.
    pub fn with(mut self, axis: Axis, place: usize) -> Coord {
        *self.place(axis) = place;
        self
    }
}

impl Default for Mesh {
    fn default() -> Mesh {
        Mesh::solo()
    }
}

impl Mesh {
    /// One rank.
    pub const fn solo() -> Mesh {
        Mesh {
            dp_replicate: 1,
            dp_shard: 1,
            ep: 1,
            cp: 1,
            tp: 1,
            pp: 1,
            pp_chunks: 1,
            sp: true,
        }
    }

    /// `ranks` that replicate the model.
    pub const fn replicated(ranks: usize) -> Mesh {
        Mesh {
            dp_replicate: ranks,
            ..Mesh::solo()
        }
    }

    /// Ranks along one axis.
    pub fn along(&self, axis: Axis) -> usize {
        match axis {
            Axis::Pp => self.pp,
            Axis::Replicate => self.dp_replicate,
            Axis::Shard => self.dp_shard,
            Axis::Ep => self.ep,
            Axis::Cp => self.cp,
            Axis::Tp => self.tp,
        }
    }

    /// Ranks in all.
    pub fn size(&self) -> usize {
        AXES.iter().map(|&axis| self.along(axis)).product()
    }

    /// Where `rank` stands.
    pub fn coord(&self, rank: usize) -> Coord {
        let mut coord = Coord::default();
        let mut rest = rank;
        for &axis in AXES.iter().rev() {
            *coord.place(axis) = rest % self.along(axis);
            rest /= self.along(axis);
        }
        coord
    }

    /// Who stands there.
    pub fn rank_of(&self, coord: &Coord) -> usize {
        AXES.iter()
            .fold(0, |rank, &axis| rank * self.along(axis) + coord.get(axis))
    }

    /// The ranks that differ from `rank` only along these axes, itself among them, ascending.
    pub fn group(&self, rank: usize, axes: &[Axis]) -> Vec<usize> {
        let mut coords = vec![self.coord(rank)];
        for &axis in AXES.iter().filter(|axis| axes.contains(axis)) {
            coords = coords
                .into_iter()
                .flat_map(|c| (0..self.along(axis)).map(move |place| c.with(axis, place)))
                .collect();
        }
        // the axes came outermost first, so the ranks ascend
        coords.iter().map(|c| self.rank_of(c)).collect()
    }

    /// The place of `rank` in its [`Mesh::group`] along these axes, and the group's size.
    pub fn place(&self, rank: usize, axes: &[Axis]) -> (usize, usize) {
        let coord = self.coord(rank);
        let along = AXES.iter().filter(|axis| axes.contains(axis));
        along.fold((0, 1), |(place, size), &axis| {
            let n = self.along(axis);
            (place * n + coord.get(axis), size * n)
        })
    }

    /// Ranks that take different data.
    pub fn data_size(&self) -> usize {
        self.dp_replicate * self.dp_shard * self.ep
    }

    /// Which data `rank` takes, `0..data_size()`.
    pub fn data_index(&self, rank: usize) -> usize {
        self.place(rank, DATA).0
    }

    /// Whether rows are split over `tp` between matrices.
    pub fn splits_rows(&self) -> bool {
        self.sp && self.tp > 1
    }

    /// How these ranks hold a model while they generate: groups of `tp` x `ep` ranks with parts of
    /// the same matrices and different experts, which sample the same sequences. `told` are these two;
    /// left out, no rank holds more than it has to: as many parts as in training, where the heads
    /// allow it, and experts as they lie.
    ///
    /// # Errors
    /// As [`Mesh::check`], for sizes that were told.
    pub fn generating(
        &self,
        told: Option<(usize, usize)>,
        config: &ModelConfig,
    ) -> Result<Mesh, Error> {
        let ranks = self.size();
        let of = |tp: usize, ep: usize| Mesh {
            dp_replicate: ranks / (tp * ep),
            tp,
            ep,
            sp: false,
            ..Mesh::solo()
        };
        if let Some((tp, ep)) = told {
            let mesh = of(tp, ep);
            mesh.check(config)?;
            return Ok(mesh);
        }
        let ep = self.ep;
        let parts = ranks / self.dp_replicate / ep;
        let fits = |tp: &usize| parts.is_multiple_of(*tp) && of(*tp, ep).check(config).is_ok();
        Ok(of((1..=parts).rev().find(fits).unwrap_or(1), ep))
    }

    /// Refuses a mesh that cannot carry this model.
    ///
    /// # Errors
    /// The axis and the size at fault, and the sizes that would do.
    pub fn check(&self, config: &ModelConfig) -> Result<(), Error> {
        let refuse = |axis: &str, size: usize, why: String, help: String| {
            Err(Error::Mesh {
                axis: axis.to_owned(),
                size,
                why,
                help,
            })
        };
        for axis in AXES {
            if self.along(axis) == 0 {
                return refuse(
                    axis.name(),
                    0,
                    "an axis has at least one rank".into(),
                    "use 1 or more".into(),
                );
            }
        }
        let (heads, kv, tp) = (config.heads, config.kv_heads, self.tp);
        if tp > heads {
            return refuse(
                "tp",
                tp,
                format!("the model has {heads} query heads and a head is not cut"),
                format!("use {heads} or fewer"),
            );
        }
        if tp > kv && tp % kv != 0 {
            return refuse(
                "tp",
                tp,
                format!("{kv} key and value heads cannot be shared evenly by more ranks than that"),
                format!("use {kv} or fewer, or a multiple of {kv}"),
            );
        }
        let params = config.params();
        let cut = params
            .iter()
            .filter(|p| matches!(p.shard, Shard::Column | Shard::Vocab));
        let narrowest = cut.map(|p| p.shape[0]).min().unwrap_or(tp);
        if tp > narrowest {
            return refuse(
                "tp",
                tp,
                format!("the narrowest matrix that it cuts has {narrowest} rows"),
                format!("use {narrowest} or fewer"),
            );
        }
        let experts = params.iter().filter_map(|p| p.expert).max();
        let experts = experts.map_or(0, |last| last + 1);
        if self.ep > 1 && self.ep > experts {
            let (why, help) = match experts {
                0 => ("the model has no experts".to_owned(), "use 1".to_owned()),
                n => (
                    format!("the model has {n} experts"),
                    format!("use {n} or fewer"),
                ),
            };
            return refuse("ep", self.ep, why, help);
        }
        let (segments, pieces) = (config.segment_count(), self.pp * self.pp_chunks);
        if self.pp_chunks == 0 || (self.pp == 1 && self.pp_chunks > 1) {
            return refuse(
                "pp_chunks",
                self.pp_chunks,
                "only pipeline ranks can have several pieces of the model".into(),
                "use 1, or raise pp".into(),
            );
        }
        if pieces > segments {
            return refuse(
                "pp",
                self.pp,
                format!(
                    "{} pieces on each rank make {pieces}, and the model has {segments} segments",
                    self.pp_chunks
                ),
                format!("use {} or fewer", segments / self.pp_chunks),
            );
        }
        Ok(())
    }
}

/// The axes above 1, as in `dp_shard2 x tp2`; `solo` for one rank.
impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut some = false;
        for axis in AXES.into_iter().filter(|&axis| self.along(axis) > 1) {
            let before = if some { " x " } else { "" };
            write!(f, "{before}{}{}", axis.name(), self.along(axis))?;
            some = true;
            if axis == Axis::Pp && self.pp_chunks > 1 {
                write!(f, " ({} chunks)", self.pp_chunks)?;
            }
            if axis == Axis::Tp && !self.sp {
                write!(f, " (no sp)")?;
            }
        }
        if some { Ok(()) } else { f.write_str("solo") }
    }
}
