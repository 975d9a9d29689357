//! Which parameters travel together: the dense ones of a segment as one unit, its experts as
//! another, the LM matrix as one of its own.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use arch::Held;
use tch::{Kind, Tensor};

use crate::{Collective, Error, Groups, Solo};

/// A parameter's place in its unit. Sizes are of elements.
pub struct Part {
    /// Hugging Face name.
    pub name: String,
    /// Shape of what the rank computes with.
    pub local: Vec<i64>,
    /// Shape of what it stores.
    pub shard: Vec<i64>,
    /// Elements of one row of dimension 0.
    row: i64,
    /// Rows of the largest shard: every rank's block in a flat buffer has room for so many.
    chunk: i64,
    /// Start of the block in the flat buffer of one rank.
    offset: i64,
    /// Start in the flat buffer of whole parameters.
    whole: i64,
    /// Whether this rank's copy is the one that counts in norms.
    pub owner: bool,
    /// Groups over which the gradient is summed beside the unit's own; none of one rank.
    pub sums: Vec<Rc<dyn Collective>>,
}

/// Parameters that are gathered and reduced together.
pub struct Unit {
    pub parts: Vec<Part>,
    /// The ranks that hold the shards.
    pub group: Rc<dyn Collective>,
    /// Elements of one rank's flat buffer, padding included.
    pub flat: i64,
    /// Elements of the whole parameters.
    pub whole: i64,
}

/// A rank's units and where each parameter is.
pub struct Units {
    pub units: Vec<Unit>,
    places: HashMap<String, (usize, usize)>,
    /// Ranks that hold the same shards.
    pub replicate: Rc<dyn Collective>,
    /// All ranks.
    pub world: Rc<dyn Collective>,
}

impl Part {
    fn numel(&self) -> i64 {
        self.local.iter().product()
    }

    /// This parameter's shard inside a rank's flat buffer.
    pub fn shard_of(&self, flat: &Tensor) -> Tensor {
        let n = self.shard.iter().product();
        flat.narrow(0, self.offset, n).view(self.shard.as_slice())
    }

    /// The whole parameter inside a buffer of whole ones.
    pub fn whole_of(&self, whole: &Tensor) -> Tensor {
        let whole = whole.narrow(0, self.whole, self.numel());
        whole.view(self.local.as_slice())
    }

    /// Copies between the whole parameter and all ranks' blocks of `flats` (`[ranks, flat]`).
    fn exchange(&self, flats: &Tensor, whole: &Tensor, pack: bool) {
        let block = self.chunk * self.row;
        if block == 0 {
            return;
        }
        let whole = whole.view([-1]);
        let rows = self.local[0];
        let (full, rest) = (rows / self.chunk, rows % self.chunk * self.row);
        let copy = |mut flat: Tensor, mut whole: Tensor| {
            if pack {
                flat.copy_(&whole);
            } else {
                whole.copy_(&flat);
            }
        };
        if full > 0 {
            copy(
                flats.narrow(0, 0, full).narrow(1, self.offset, block),
                whole.narrow(0, 0, full * block).view([full, block]),
            );
        }
        if rest > 0 {
            copy(
                flats.get(full).narrow(0, self.offset, rest),
                whole.narrow(0, full * block, rest),
            );
        }
    }
}

impl Unit {
    fn new(held: &[&Held], group: Rc<dyn Collective>, groups: &Groups) -> Result<Unit, Error> {
        let size = |n: &[usize]| n.iter().map(|&n| n as i64).collect::<Vec<i64>>();
        let mut parts = Vec::with_capacity(held.len());
        let (mut offset, mut whole) = (0, 0);
        for h in held {
            let local = size(&h.local.size);
            let row = local[1..].iter().product::<i64>();
            let chunk = local[0].max(0).unsigned_abs().div_ceil(group.size() as u64) as i64;
            let mut sums = Vec::new();
            for (name, ranks) in [
                ("tp_copies", &h.copies.tensor),
                ("tied_ends", &h.copies.ends),
            ] {
                if ranks.len() == groups.mesh.tp && name == "tp_copies" && ranks.len() > 1 {
                    sums.push(groups.tp.clone());
                } else if ranks.len() > 1 {
                    sums.push(groups.sub(name, ranks)?);
                }
            }
            parts.push(Part {
                name: h.def.name.clone(),
                shard: size(&h.shard.size),
                row,
                chunk,
                offset,
                whole,
                owner: h.owner,
                sums,
                local,
            });
            offset += chunk * row;
            whole += h.local.numel() as i64;
        }
        Ok(Unit {
            parts,
            group,
            flat: offset,
            whole,
        })
    }

    /// Whether this rank stores its parameters whole.
    pub fn is_whole(&self) -> bool {
        self.group.size() == 1
    }

    /// Elements of a buffer that can hold the whole parameters and, for a unit of one parameter,
    /// what a gather brings, padding included.
    pub fn buffer(&self) -> i64 {
        if self.parts.len() == 1 {
            self.flat * self.group.size() as i64
        } else {
            self.whole
        }
    }

    /// Copies what a gather brought (`[ranks * flat]`) to the whole parameters in `whole`.
    pub fn unpack(&self, gathered: &Tensor, whole: &Tensor) {
        let flats = gathered.view([self.group.size() as i64, self.flat]);
        for part in &self.parts {
            part.exchange(&flats, &part.whole_of(whole), false);
        }
    }

    /// Lays whole tensors (by part, `None` is zeros) out for a reduce-scatter, `[ranks * flat]`.
    pub fn pack(&self, whole: &[Option<Tensor>], kind: Kind, device: tch::Device) -> Tensor {
        let ranks = self.group.size() as i64;
        let out = Tensor::zeros([ranks * self.flat], (kind, device));
        let flats = out.view([ranks, self.flat]);
        for (part, tensor) in self.parts.iter().zip(whole) {
            if let Some(tensor) = tensor {
                part.exchange(&flats, tensor, true);
            }
        }
        out
    }
}

impl Units {
    /// The units of a rank's table.
    ///
    /// # Errors
    /// Groups that could not be joined.
    pub fn new(held: &[Held], groups: &Groups) -> Result<Units, Error> {
        let mut by_unit: BTreeMap<(usize, bool), Vec<&Held>> = BTreeMap::new();
        for h in held {
            let key = (h.def.segment, h.def.expert.is_some());
            by_unit.entry(key).or_default().push(h);
        }
        let mut units = Vec::with_capacity(by_unit.len());
        for ((_, expert), held) in by_unit {
            let group = if expert {
                &groups.expert_shard
            } else {
                &groups.shard
            };
            units.push(Unit::new(&held, group.clone(), groups)?);
        }
        Ok(Units::of(
            units,
            groups.replicate.clone(),
            groups.world.clone(),
        ))
    }

    /// Parameters of these names and shapes, whole in one process.
    pub fn whole(parameters: impl IntoIterator<Item = (String, Vec<i64>)>) -> Units {
        let unit = |(name, shape): (String, Vec<i64>)| {
            let numel = shape.iter().product();
            Unit {
                parts: vec![Part {
                    name,
                    row: shape.get(1..).map_or(1, |rest| rest.iter().product()),
                    chunk: shape.first().copied().unwrap_or(1),
                    offset: 0,
                    whole: 0,
                    owner: true,
                    sums: Vec::new(),
                    shard: shape.clone(),
                    local: shape,
                }],
                group: Rc::new(Solo),
                flat: numel,
                whole: numel,
            }
        };
        let units = parameters.into_iter().map(unit).collect();
        Units::of(units, Rc::new(Solo), Rc::new(Solo))
    }

    fn of(units: Vec<Unit>, replicate: Rc<dyn Collective>, world: Rc<dyn Collective>) -> Units {
        let mut places = HashMap::new();
        for (u, unit) in units.iter().enumerate() {
            for (p, part) in unit.parts.iter().enumerate() {
                places.insert(part.name.clone(), (u, p));
            }
        }
        Units {
            units,
            places,
            replicate,
            world,
        }
    }

    /// Unit and part of a parameter.
    pub fn find(&self, name: &str) -> Option<(usize, usize)> {
        self.places.get(name).copied()
    }

    /// All parts.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.units.iter().flat_map(|unit| &unit.parts)
    }

    /// The units of these parameters, each once.
    pub fn of_names<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<usize> {
        let mut out = Vec::new();
        for name in names {
            if let Some((unit, _)) = self.find(name)
                && !out.contains(&unit)
            {
                out.push(unit);
            }
        }
        out
    }
}
