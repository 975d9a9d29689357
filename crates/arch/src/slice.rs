//! Who holds what: the part of every parameter that a rank computes with and the part that it
//! stores, on any mesh. Sharding is this table; model files know nothing of it.

use std::ops::Range;

use crate::mesh::{Axis, DENSE_SHARD, EXPERT_SHARD, Mesh};
use crate::params::EMBED;
use crate::stages::stages_of;
use crate::{Cut, ModelConfig, ParamDef, Shard};

/// A rectangular part of a whole parameter, by Hugging Face name; one entry per dimension.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Slice {
    /// First index.
    pub start: Vec<usize>,
    /// Sizes; an empty part has a size of 0.
    pub size: Vec<usize>,
}

impl Slice {
    /// All of a tensor.
    pub fn whole(shape: &[usize]) -> Slice {
        Slice {
            start: vec![0; shape.len()],
            size: shape.to_vec(),
        }
    }

    /// Elements.
    pub fn numel(&self) -> usize {
        self.size.iter().product()
    }

    /// Whether it holds no element.
    pub fn is_empty(&self) -> bool {
        self.size.contains(&0)
    }

    /// Narrows one dimension to `range`, counted from this slice's own start.
    pub fn narrow(mut self, dim: usize, range: Range<usize>) -> Slice {
        self.start[dim] += range.start;
        self.size[dim] = range.len();
        self
    }

    /// What two slices of one tensor have in common, if anything.
    pub fn overlap(&self, other: &Slice) -> Option<Slice> {
        let mut out = self.clone();
        for dim in 0..self.start.len() {
            let start = self.start[dim].max(other.start[dim]);
            let end = (self.start[dim] + self.size[dim]).min(other.start[dim] + other.size[dim]);
            if end <= start {
                return None;
            }
            (out.start[dim], out.size[dim]) = (start, end - start);
        }
        Some(out)
    }

    /// This slice seen from the start of one that holds it.
    pub fn within(&self, outer: &Slice) -> Slice {
        let start = self.start.iter().zip(&outer.start);
        Slice {
            start: start.map(|(inner, outer)| inner - outer).collect(),
            size: self.size.clone(),
        }
    }
}

/// A parameter as one rank has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// The whole parameter.
    pub def: ParamDef,
    /// What this rank computes with: cut by `tp` (and whole experts by `ep`, whole segments by
    /// `pp`).
    pub local: Slice,
    /// What this rank stores of it between steps: its FSDP part; may be empty.
    pub shard: Slice,
    /// Who holds the same part.
    pub copies: Copies,
    /// First of the copies: counted in norms, written to checkpoints.
    pub owner: bool,
}

/// The ranks that hold the same part of a parameter, and whose gradients are parts of one sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copies {
    /// All ranks that store the same shard, ascending, this one among them.
    pub ranks: Vec<usize>,
    /// Those along `tp` (ascending, this one among them) over which the gradient must be summed;
    /// alone where there is nothing to sum.
    pub tensor: Vec<usize>,
    /// The first and the last pipeline stage's rank where both hold a tied embedding, over which
    /// the gradient must be summed; alone elsewhere.
    pub ends: Vec<usize>,
}

/// The part of `n` things that place `index` of `parts` gets, sizes as even as possible, larger
/// ones first.
pub fn even(n: usize, parts: usize, index: usize) -> Range<usize> {
    let (least, more) = (n / parts, n % parts);
    let start = index * least + index.min(more);
    start..start + least + usize::from(index < more)
}

/// The part of `n` rows that place `index` of `parts` gets by the rule of `torch.chunk`: all of
/// one size, rounded up, but for the last ones.
pub fn chunk(n: usize, parts: usize, index: usize) -> Range<usize> {
    let size = n.div_ceil(parts);
    (index * size).min(n)..((index + 1) * size).min(n)
}

/// The heads of one tensor-parallel rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub q: Range<usize>,
    /// The key and value heads that they attend with.
    pub kv: Range<usize>,
    /// Places on `tp` that hold the same key and value heads, ascending.
    pub sharers: Range<usize>,
}

/// Query heads follow their key and value head. Where there are fewer of those than ranks, each
/// is held by `tp / kv_heads` ranks, which split its query heads.
pub fn heads(config: &ModelConfig, tp: usize, index: usize) -> Heads {
    let (kv, group) = (config.kv_heads, config.heads / config.kv_heads);
    if tp <= kv {
        let kv = even(kv, tp, index);
        return Heads {
            q: kv.start * group..kv.end * group,
            kv,
            sharers: index..index + 1,
        };
    }
    let sharers = tp / kv;
    let head = index / sharers;
    let q = even(group, sharers, index % sharers);
    Heads {
        q: head * group + q.start..head * group + q.end,
        kv: head..head + 1,
        sharers: head * sharers..(head + 1) * sharers,
    }
}

/// The experts that place `index` on `ep` holds.
pub fn experts(config: &ModelConfig, ep: usize, index: usize) -> Range<usize> {
    let last = config.params().iter().filter_map(|p| p.expert).max();
    even(last.map_or(0, |last| last + 1), ep, index)
}

/// The parameters of `rank`'s pipeline pieces, in the table's order. The LM matrix, tied or not,
/// belongs to the last stage.
pub fn held(config: &ModelConfig, mesh: &Mesh, rank: usize) -> Vec<Held> {
    let place = mesh.coord(rank);
    let pieces = stages_of(config, mesh.pp, mesh.pp_chunks, place.pp);
    let last = place.pp + 1 == mesh.pp;
    let experts = experts(config, mesh.ep, place.ep);
    let here = |def: &ParamDef| {
        let segment = pieces.iter().any(|piece| piece.contains(&def.segment));
        // past all segments: the LM matrix
        let head = def.segment == config.segment_count() || is_tied(config, def);
        (segment || (head && last)) && def.expert.is_none_or(|e| experts.contains(&e))
    };
    let defs = config.params().into_iter();
    defs.filter(here)
        .map(|def| Held::new(config, mesh, rank, def))
        .collect()
}

fn is_tied(config: &ModelConfig, def: &ParamDef) -> bool {
    config.tie_embeddings && def.name == EMBED
}

impl Held {
    fn new(config: &ModelConfig, mesh: &Mesh, rank: usize, def: ParamDef) -> Held {
        let place = mesh.coord(rank);
        let local = local(config, mesh.tp, place.tp, &def);
        let axes = if def.expert.is_some() {
            EXPERT_SHARD
        } else {
            DENSE_SHARD
        };
        let (index, parts) = mesh.place(rank, axes);
        let rows = chunk(local.size[0], parts, index);
        let shard = local.clone().narrow(0, rows);

        let tensor = |places: Range<usize>| -> Vec<usize> {
            places
                .map(|p| mesh.rank_of(&place.with(Axis::Tp, p)))
                .collect()
        };
        let same = match def.shard {
            Shard::KvHeads => heads(config, mesh.tp, place.tp).sharers,
            Shard::Replicate | Shard::Inside => 0..mesh.tp,
            _ => place.tp..place.tp + 1,
        };
        let sums = match def.shard {
            // every rank of the group has the gradient of all rows
            Shard::Replicate if !mesh.splits_rows() => place.tp..place.tp + 1,
            _ => same.clone(),
        };
        let ends = if is_tied(config, &def) && mesh.pp > 1 {
            [0, mesh.pp - 1]
                .map(|p| mesh.rank_of(&place.with(Axis::Pp, p)))
                .to_vec()
        } else {
            vec![rank]
        };
        let mut ranks: Vec<usize> = ends
            .iter()
            .flat_map(|&end| {
                let at = mesh.coord(end);
                same.clone().flat_map(move |p| {
                    mesh.group(mesh.rank_of(&at.with(Axis::Tp, p)), &[Axis::Replicate])
                })
            })
            .collect();
        ranks.sort_unstable();
        let owner = ranks[0] == rank;
        Held {
            def,
            local,
            shard,
            copies: Copies {
                ranks,
                tensor: tensor(sums),
                ends,
            },
            owner,
        }
    }
}

/// What place `index` on `tp` computes with.
pub(crate) fn local(config: &ModelConfig, tp: usize, index: usize, def: &ParamDef) -> Slice {
    let whole = Slice::whole(&def.shape);
    let heads = heads(config, tp, index);
    let d = config.head_dim;
    let rows = |heads: Range<usize>| heads.start * d..heads.end * d;
    match def.shard {
        Shard::Heads => whole.narrow(0, rows(heads.q)),
        Shard::KvHeads => whole.narrow(0, rows(heads.kv)),
        Shard::Column | Shard::Vocab => whole.narrow(0, even(def.shape[0], tp, index)),
        Shard::Row(Cut::Heads) => whole.narrow(1, rows(heads.q)),
        Shard::Row(Cut::Column) => whole.narrow(1, even(def.shape[1], tp, index)),
        Shard::Replicate | Shard::Inside => whole,
    }
}
