//! Checkpoints: slices of masters and moments by Hugging Face name, and where training stands.
//!
//! A directory of, for each rank r, `weights-r.safetensors` (the slices of masters that it owns,
//! under their names) and `optimizer-r.safetensors` (`first.NAME`, `second.NAME`), and of
//! `state.json`, which says which slices these are and is written last. What is loaded equals what
//! was saved bit for bit, on whatever mesh: loading reads slices of slices. The directory's
//! atomicity is its committer's business.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use arch::{Held, Slice};
use model::files::TensorFile;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Tensor};

use crate::optimizer::{Optimizer, OptimizerConfig};
use crate::policy::{Policy, Skips};
use crate::{Error, tensors};

const FORMAT: u32 = 2;
const STATE: &str = "state.json";

/// Where training stands; what the stage wants back beside weights and optimizer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Steps done.
    pub step: u64,
    /// Where the data stream stands.
    pub cursor: u64,
    /// Whatever else the stage needs, such as kept groups.
    pub extra: Value,
}

#[derive(Serialize, Deserialize)]
struct State {
    format: u32,
    /// The model's `config.json`: a checkpoint belongs to this model.
    model: Map<String, Value>,
    dtype: String,
    optimizer: OptimizerConfig,
    updates: u64,
    skips: Skips,
    /// The mesh that saved; for people, as loading asks the slices alone.
    mesh: String,
    /// By rank: the slices in its files, by parameter.
    slices: Vec<BTreeMap<String, Part>>,
    /// Which moments there are: `first`, `second`.
    moments: Vec<String>,
    state: CheckpointState,
}

/// A slice as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    start: Vec<usize>,
    size: Vec<usize>,
}

impl From<&Slice> for Part {
    fn from(slice: &Slice) -> Part {
        Part {
            start: slice.start.clone(),
            size: slice.size.clone(),
        }
    }
}

fn weights(rank: usize) -> String {
    format!("weights-{rank}.safetensors")
}

fn moments(rank: usize) -> String {
    format!("optimizer-{rank}.safetensors")
}

/// The slices that a rank writes.
fn owned(table: &[Held]) -> BTreeMap<String, Part> {
    let owned = table.iter().filter(|h| h.owner && !h.shard.is_empty());
    owned
        .map(|h| (h.def.name.clone(), Part::from(&h.shard)))
        .collect()
}

impl Policy {
    /// Writes a checkpoint into `dir`, which exists and is the same for all ranks. Every rank calls
    /// this and writes its slices; when all have, rank 0 writes the table of them.
    ///
    /// # Errors
    /// What the file system says, such as a full disk; on the other ranks that one failed.
    pub fn save_checkpoint(
        &self,
        dir: &Path,
        optimizer: &Optimizer,
        state: &CheckpointState,
    ) -> Result<(), Error> {
        self.together("checkpoint", self.save_slices(dir, optimizer))?;
        let saved = if self.groups().rank == 0 {
            self.save_state(dir, optimizer, state)
        } else {
            Ok(())
        };
        self.together("checkpoint", saved)
    }

    fn save_slices(&self, dir: &Path, optimizer: &Optimizer) -> Result<(), Error> {
        let mine = owned(self.table());
        let about = || {
            let slices = serde_json::to_string(&mine).expect("plain data serialises");
            // one entry: the header's bytes must not depend on an order of entries
            HashMap::from([("slices".into(), slices)])
        };
        let masters = self.masters();
        let shards: Vec<(String, Tensor)> = mine
            .keys()
            .map(|name| (name.clone(), masters.get(name).shallow_clone()))
            .collect();
        let rank = self.groups().rank;
        tensors::write(&dir.join(weights(rank)), &shards, about())?;
        let mut named = Vec::new();
        for (part, map) in [("first", &optimizer.first), ("second", &optimizer.second)] {
            let mine = mine.keys().filter_map(|name| Some((name, map.get(name)?)));
            named.extend(mine.map(|(name, t)| (format!("{part}.{name}"), t.shallow_clone())));
        }
        tensors::write(&dir.join(moments(rank)), &named, about())
    }

    fn save_state(
        &self,
        dir: &Path,
        optimizer: &Optimizer,
        state: &CheckpointState,
    ) -> Result<(), Error> {
        let (mesh, config) = (&self.groups().mesh, &self.decoder.config);
        let slices = (0..mesh.size()).map(|rank| owned(&arch::held(config, mesh, rank)));
        let state = State {
            format: FORMAT,
            model: config.raw.clone(),
            dtype: format!("{:?}", self.config().kind),
            optimizer: optimizer.config,
            updates: optimizer.updates,
            skips: self.skips,
            mesh: mesh.to_string(),
            slices: slices.collect(),
            moments: optimizer.config.moments(optimizer.updates),
            state: state.clone(),
        };
        let path = dir.join(STATE);
        let text = serde_json::to_vec(&state).expect("plain data serialises");
        std::fs::write(&path, text).map_err(Error::io(&path))
    }

    /// Restores what [`Policy::save_checkpoint`] wrote, bit for bit, whatever mesh wrote it. Every
    /// rank calls this and reads its own slices.
    ///
    /// # Errors
    /// A checkpoint of another model, dtype or optimizer; a file that is not what it claims to be.
    /// The policy and optimizer are then as before.
    pub fn load_checkpoint(
        &mut self,
        dir: &Path,
        optimizer: &mut Optimizer,
    ) -> Result<CheckpointState, Error> {
        let saved = self.read_state(dir, optimizer)?;
        let mut files = Files {
            dir: dir.to_owned(),
            slices: &saved.slices,
            open: HashMap::new(),
        };
        let device = self.masters().device();
        let masters = self.read_slices(&mut files, "", weights, Device::Cpu)?;
        let mut of = |part: &str| -> Result<BTreeMap<String, Tensor>, Error> {
            if !saved.moments.iter().any(|m| m == part) {
                return Ok(BTreeMap::new());
            }
            self.read_slices(&mut files, &format!("{part}."), moments, device)
        };
        let (first, second) = (of("first")?, of("second")?);
        tch::no_grad(|| {
            for (name, tensor) in &masters {
                self.masters().get(name).shallow_clone().copy_(tensor);
            }
        });
        self.publish()?;
        self.skips = saved.skips;
        optimizer.updates = saved.updates;
        optimizer.first = first;
        optimizer.second = second;
        Ok(saved.state)
    }

    fn read_state(&self, dir: &Path, optimizer: &Optimizer) -> Result<State, Error> {
        let path = dir.join(STATE);
        let refuse = |what: String| Error::Checkpoint {
            path: path.clone(),
            what,
        };
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let format = serde_json::from_slice::<Value>(&text)
            .map_err(|e| refuse(format!("{e}; it is damaged")))?["format"]
            .as_u64();
        if format != Some(FORMAT.into()) {
            let format = format.map_or("no".into(), |n| n.to_string());
            return Err(refuse(format!("format {format} where {FORMAT} is known")));
        }
        let saved: State = serde_json::from_slice(&text)
            .map_err(|e| refuse(format!("{e}; it is damaged or of another version")))?;
        if let Some(key) = first_difference(&saved.model, &self.decoder.config.raw) {
            return Err(refuse(format!(
                "it belongs to another model: '{key}' of its config.json differs; start without resuming"
            )));
        }
        let dtype = format!("{:?}", self.config().kind);
        if saved.dtype != dtype {
            return Err(refuse(format!(
                "dtype {} where training is in {dtype}",
                saved.dtype
            )));
        }
        if saved.optimizer != optimizer.config {
            return Err(refuse(format!(
                "optimizer {:?} where {:?} is asked for",
                saved.optimizer, optimizer.config
            )));
        }
        Ok(saved)
    }

    /// This rank's shards of all parameters from the files that `file` names by rank, in which they
    /// are called `prefix` and their name.
    fn read_slices(
        &self,
        files: &mut Files,
        prefix: &str,
        file: fn(usize) -> String,
        device: Device,
    ) -> Result<BTreeMap<String, Tensor>, Error> {
        let _no_grad = tch::no_grad_guard();
        let kind = self.masters().kind();
        let mut out = BTreeMap::new();
        for h in self.table().iter().filter(|h| !h.shard.is_empty()) {
            let shape: Vec<i64> = h.shard.size.iter().map(|&n| n as i64).collect();
            let shard = Tensor::f_zeros(&shape, (kind, device)).map_err(torch::Error::from)?;
            files.fill(&shard, h, prefix, file)?;
            out.insert(h.def.name.clone(), shard);
        }
        Ok(out)
    }

    /// Turns one rank's failure into all ranks': a rank that went well says which did not.
    pub(crate) fn together<T>(&self, phase: &str, mine: Result<T, Error>) -> Result<T, Error> {
        let world = self.collective();
        if world.size() == 1 {
            return mine;
        }
        let mut failed = vec![0i64; world.size()];
        failed[world.rank()] = i64::from(mine.is_err());
        let mut votes = Tensor::from_slice(&failed);
        let voted = world.all_reduce_sum(&mut votes, phase);
        let mine = mine?;
        voted?;
        let bad = (0..world.size()).find(|&rank| votes.int64_value(&[rank as i64]) > 0);
        match bad {
            None => Ok(mine),
            Some(rank) => Err(Error::Peer {
                rank,
                phase: phase.to_owned(),
            }),
        }
    }
}

/// A checkpoint's files, opened when first read.
struct Files<'a> {
    dir: PathBuf,
    slices: &'a [BTreeMap<String, Part>],
    open: HashMap<String, TensorFile>,
}

impl Files<'_> {
    /// Fills a shard from every saved slice that it overlaps.
    fn fill(
        &mut self,
        shard: &Tensor,
        held: &Held,
        prefix: &str,
        file: fn(usize) -> String,
    ) -> Result<(), Error> {
        let name = format!("{prefix}{}", held.def.name);
        let mut filled = 0;
        for (rank, slices) in self.slices.iter().enumerate() {
            let Some(part) = slices.get(&held.def.name) else {
                continue;
            };
            let refuse = |what: String| Error::Checkpoint {
                path: self.dir.join(file(rank)),
                what,
            };
            if part.start.len() != held.def.shape.len() || part.size.len() != part.start.len() {
                return Err(refuse(format!(
                    "its slice of '{name}' has {} dimensions, the parameter has {:?}",
                    part.start.len(),
                    held.def.shape
                )));
            }
            let saved = Slice {
                start: part.start.clone(),
                size: part.size.clone(),
            };
            let Some(common) = saved.overlap(&held.shard) else {
                continue;
            };
            let file = match self.open.entry(file(rank)) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let path = self.dir.join(entry.key());
                    entry.insert(TensorFile::open(&path).map_err(|e| refuse(e.to_string()))?)
                }
            };
            let values = tensors::read(file, &name, &common.within(&saved))?;
            if values.kind() != shard.kind() {
                return Err(refuse(format!(
                    "tensor '{name}' is {:?} where {:?} is trained",
                    values.kind(),
                    shard.kind()
                )));
            }
            model::weights::narrow(shard, &common.within(&held.shard)).copy_(&values);
            filled += common.numel();
        }
        if filled == held.shard.numel() {
            return Ok(());
        }
        Err(Error::Checkpoint {
            path: self.dir.join(STATE),
            what: format!(
                "its slices of '{name}' hold {filled} of the {} elements that this rank needs",
                held.shard.numel()
            ),
        })
    }
}

fn first_difference(a: &Map<String, Value>, b: &Map<String, Value>) -> Option<String> {
    let keys = a.keys().chain(b.keys());
    keys.into_iter()
        .find(|key| a.get(*key) != b.get(*key))
        .cloned()
}
