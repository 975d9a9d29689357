//! The policy as a Hugging Face directory.

use std::collections::HashMap;
use std::path::Path;

use arch::Slice;
use model::files::Dtype;
use model::save::{SaveOptions, copy_companions, save_tensors};
use tch::{Device, Kind, Tensor};

use crate::{Error, Policy};

impl Policy {
    /// Writes `config.json`, the weights (masters, as `dtype` or as they are) and the tokenizer's
    /// and generation files of the source into `dir`, which exists. Every rank calls this; rank 0
    /// writes, one whole tensor in memory at a time, and the others send it their slices.
    ///
    /// # Errors
    /// The file that cannot be read or written; a rank that is gone.
    pub fn export(&self, dir: &Path, dtype: Option<Dtype>) -> Result<(), Error> {
        let kind = dtype.map_or(self.masters().kind(), Dtype::kind);
        let done = if self.groups().rank == 0 {
            self.write_model(dir, kind)
        } else {
            self.send_slices(kind)
        };
        self.together("export", done)
    }

    /// The part of rank 0.
    fn write_model(&self, dir: &Path, kind: Kind) -> Result<(), Error> {
        let config = &self.decoder.config;
        let owners = self.owners();
        let shapes: HashMap<String, Vec<i64>> = config
            .params()
            .into_iter()
            .map(|p| (p.name, p.shape.iter().map(|&n| n as i64).collect()))
            .collect();
        let names: Vec<String> = config.params().into_iter().map(|p| p.name).collect();
        let mut taken = 0;
        let mut lost = None;
        let mut take = |name: &str| {
            taken += 1;
            self.whole(&owners[name], name, &shapes[name], kind)
                .map_err(|e| {
                    let told = model::Error::Tensors(e.to_string());
                    lost = Some(e);
                    told
                })
        };
        let options = SaveOptions {
            dtype: Dtype::of(kind),
            ..SaveOptions::default()
        };
        let written = save_tensors(config, dir, kind, options, &mut take);
        if let Some(lost) = lost {
            return Err(lost);
        }
        if written.is_err() {
            // the others send on: take what they have, so that all hear of the failure at once
            for name in &names[taken..] {
                drop(self.whole(&owners[name], name, &shapes[name], kind)?);
            }
        }
        written?;
        if !self.source.as_os_str().is_empty() {
            copy_companions(&self.source, dir)?;
        }
        Ok(())
    }

    /// The part of all others.
    fn send_slices(&self, kind: Kind) -> Result<(), Error> {
        for def in self.decoder.config.params() {
            let held = self.table().iter().find(|h| h.def.name == def.name);
            if held.is_some_and(|h| h.owner && !h.shard.is_empty()) {
                let slice = self.masters().get(&def.name).to_kind(kind).contiguous();
                self.collective().send(&slice, 0, "export")?;
            }
        }
        Ok(())
    }

    /// Who has which part of each parameter, by rank.
    fn owners(&self) -> HashMap<String, Vec<(usize, Slice)>> {
        let mesh = &self.groups().mesh;
        let mut out: HashMap<String, Vec<(usize, Slice)>> = HashMap::new();
        for rank in 0..mesh.size() {
            for h in arch::held(&self.decoder.config, mesh, rank) {
                if h.owner && !h.shard.is_empty() {
                    out.entry(h.def.name).or_default().push((rank, h.shard));
                }
            }
        }
        out
    }

    /// A whole parameter on rank 0, on the CPU unless it was whole there before.
    fn whole(
        &self,
        owners: &[(usize, Slice)],
        name: &str,
        shape: &[i64],
        kind: Kind,
    ) -> Result<Tensor, Error> {
        let _no_grad = tch::no_grad_guard();
        if let [(0, part)] = owners
            && part.size.iter().zip(shape).all(|(&n, &s)| n as i64 == s)
        {
            return Ok(self.masters().get(name).shallow_clone());
        }
        let options = (kind, Device::Cpu);
        let whole = Tensor::f_empty(shape, options).map_err(torch::Error::from)?;
        for (rank, part) in owners {
            let mut place = model::weights::narrow(&whole, part);
            if *rank == 0 {
                place.copy_(self.masters().get(name));
            } else {
                let size: Vec<i64> = part.size.iter().map(|&n| n as i64).collect();
                let mut slice = Tensor::f_empty(&size, options).map_err(torch::Error::from)?;
                self.collective().recv(&mut slice, *rank, "export")?;
                place.copy_(&slice);
            }
        }
        Ok(whole)
    }
}
