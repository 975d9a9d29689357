//! Weights from one mesh to another by slice tables: what a rank stores under the first becomes what
//! a rank computes with under the second. No rank ever holds more than its own part of both, and a
//! bucket on its way.

use std::collections::HashMap;

use arch::{Held, Mesh, ModelConfig, Slice, held};
use tch::{Device, Kind, Tensor};

use crate::{Collective, Error};

/// Elements of whole parameters that travel together: bounds what is in flight.
const BUCKET: usize = 8 << 20;

/// Who sends what to whom. Every rank works out the same plan from the two meshes alone.
pub struct Reshard {
    rank: usize,
    ranks: usize,
    parameters: Vec<Parameter>,
    /// Every rank computes with exactly what it stores.
    still: bool,
}

/// One parameter's way.
struct Parameter {
    name: String,
    numel: usize,
    /// What each rank wants of it, by rank.
    wanted: Vec<Option<Slice>>,
    /// The different parts that are stored, and who stores each.
    stored: Vec<(Slice, Vec<usize>)>,
}

impl Parameter {
    /// Which of its holders sends a part to `to`: itself if it can, else they take turns.
    fn sender(holders: &[usize], to: usize) -> usize {
        match holders.contains(&to) {
            true => to,
            false => holders[to % holders.len()],
        }
    }

    /// What goes from one rank to another, in order.
    fn moves(&self, from: usize, to: usize) -> impl Iterator<Item = (&Slice, Slice)> {
        let wanted = self.wanted[to].as_ref();
        self.stored.iter().filter_map(move |(part, holders)| {
            let common = part.overlap(wanted?)?;
            (Parameter::sender(holders, to) == from).then_some((part, common))
        })
    }
}

impl Reshard {
    /// From what the ranks of `from` store to what those of `to` compute with; the meshes have as
    /// many ranks.
    pub fn plan(config: &ModelConfig, from: &Mesh, to: &Mesh, rank: usize) -> Reshard {
        let ranks = from.size();
        assert_eq!(ranks, to.size(), "the same ranks under both meshes");
        let before: Vec<Vec<Held>> = (0..ranks).map(|r| held(config, from, r)).collect();
        let after: Vec<Vec<Held>> = (0..ranks).map(|r| held(config, to, r)).collect();
        let mut at = HashMap::new();
        let mut parameters: Vec<Parameter> = Vec::new();
        for def in config.params() {
            at.insert(def.name.clone(), parameters.len());
            parameters.push(Parameter {
                numel: def.numel(),
                name: def.name,
                wanted: vec![None; ranks],
                stored: Vec::new(),
            });
        }
        for (rank, held) in after.iter().enumerate() {
            for h in held {
                parameters[at[&h.def.name]].wanted[rank] = Some(h.local.clone());
            }
        }
        let mut still = true;
        for (rank, held) in before.iter().enumerate() {
            still &= held.len() == after[rank].len();
            for h in held {
                let parameter = &mut parameters[at[&h.def.name]];
                still &= parameter.wanted[rank].as_ref() == Some(&h.shard);
                if h.owner && !h.shard.is_empty() {
                    let part = (h.shard.clone(), h.copies.ranks.clone());
                    parameter.stored.push(part);
                }
            }
        }
        Reshard {
            rank,
            ranks,
            parameters,
            still,
        }
    }

    /// Whether nothing needs to move on any rank: what is stored serves as it is.
    pub fn is_still(&self) -> bool {
        self.still
    }

    /// Moves the weights over `world`: `stored` gives this rank's part of a parameter, contiguous.
    /// Returns what this rank computes with, in `kind` on `device`.
    pub fn run(
        &self,
        stored: &dyn Fn(&str) -> Result<Tensor, Error>,
        kind: Kind,
        device: Device,
        world: &dyn Collective,
    ) -> Result<HashMap<String, Tensor>, Error> {
        let _no_grad = tch::no_grad_guard();
        let mut out = HashMap::new();
        for parameter in &self.parameters {
            if let Some(wanted) = &parameter.wanted[self.rank] {
                let tensor = Tensor::zeros(sizes(wanted), (kind, device));
                out.insert(parameter.name.clone(), tensor);
            }
        }
        let mut rest = &self.parameters[..];
        while !rest.is_empty() {
            let mut elements = 0;
            let full = |p: &Parameter| {
                elements += p.numel;
                elements > BUCKET
            };
            let n = rest.iter().position(full).unwrap_or(rest.len()).max(1);
            let (bucket, after) = rest.split_at(n);
            self.bucket(bucket, stored, &mut out, (kind, device), world)?;
            rest = after;
        }
        Ok(out)
    }

    fn bucket(
        &self,
        bucket: &[Parameter],
        stored: &dyn Fn(&str) -> Result<Tensor, Error>,
        out: &mut HashMap<String, Tensor>,
        options: (Kind, Device),
        world: &dyn Collective,
    ) -> Result<(), Error> {
        let (mut pieces, mut sent, mut received) = (Vec::new(), Vec::new(), Vec::new());
        for other in 0..self.ranks {
            let mut elements = 0;
            for parameter in bucket {
                for (part, common) in parameter.moves(self.rank, other) {
                    let piece = narrow(&stored(&parameter.name)?, &common.within(part));
                    pieces.push(piece.to_kind(options.0).reshape([-1]));
                    elements += common.numel() as i64;
                }
            }
            sent.push(elements);
            let to_me = |p: &Parameter| -> usize {
                p.moves(other, self.rank)
                    .map(|(_, common)| common.numel())
                    .sum()
            };
            received.push(bucket.iter().map(to_me).sum::<usize>() as i64);
        }
        let input = match pieces.is_empty() {
            true => Tensor::zeros([0], options),
            false => Tensor::cat(&pieces, 0),
        };
        drop(pieces);
        let mut arrived = Tensor::zeros([received.iter().sum::<i64>()], options);
        world.all_to_all(&mut arrived, &input, &received, &sent, "reshard")?;
        let mut at = 0;
        for other in 0..self.ranks {
            for parameter in bucket {
                for (_, common) in parameter.moves(other, self.rank) {
                    let wanted = parameter.wanted[self.rank].as_ref();
                    let whole = wanted.zip(out.get(&parameter.name));
                    let (wanted, tensor) = whole.expect("only what is wanted comes");
                    let n = common.numel() as i64;
                    let values = arrived.narrow(0, at, n).view(sizes(&common).as_slice());
                    narrow(tensor, &common.within(wanted)).copy_(&values);
                    at += n;
                }
            }
        }
        Ok(())
    }
}

fn sizes(slice: &Slice) -> Vec<i64> {
    slice.size.iter().map(|&n| n as i64).collect()
}

fn narrow(tensor: &Tensor, part: &Slice) -> Tensor {
    let dims = part.start.iter().zip(&part.size).enumerate();
    dims.fold(tensor.shallow_clone(), |t, (dim, (&start, &size))| {
        t.narrow(dim as i64, start as i64, size as i64)
    })
}
