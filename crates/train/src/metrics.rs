//! Sums over microbatches and ranks, and what a step achieved.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Instant;

use arch::ModelConfig;
use parallel::Collective;
use tch::{Device, Kind, Tensor};

use crate::Error;

/// Named numbers that add up over microbatches and ranks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sums(pub BTreeMap<String, f64>);

impl Sums {
    /// Adds to one number.
    pub fn add(&mut self, name: &str, value: f64) {
        *self.0.entry(name.to_owned()).or_insert(0.0) += value;
    }

    /// The sum under this name, 0 if there is none.
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// Sums over ranks, in rank order, so that all ranks hold the same bits. A rank need not know
    /// the names that another has.
    pub fn reduce(&mut self, collective: &dyn Collective) -> Result<(), Error> {
        if collective.size() == 1 {
            return Ok(());
        }
        let phase = "metrics";
        let mine = self.encode();
        let size = collective.size();
        let options = (Kind::Int64, Device::Cpu);
        let mut lengths = Tensor::zeros([size as i64], options);
        collective.all_gather(
            &mut lengths,
            &Tensor::from_slice(&[mine.len() as i64]),
            phase,
        )?;
        let longest = lengths.max().int64_value(&[]) as usize;
        let mut padded = mine;
        padded.resize(longest, 0);
        let mut all = Tensor::zeros([(size * longest) as i64], (Kind::Uint8, Device::Cpu));
        collective.all_gather(&mut all, &Tensor::from_slice(&padded), phase)?;
        let mut bytes = vec![0u8; size * longest];
        all.copy_data(&mut bytes, size * longest);
        let mut sum = Sums::default();
        for rank in 0..size {
            let length = lengths.int64_value(&[rank as i64]) as usize;
            sum.decode_add(&bytes[rank * longest..][..length]);
        }
        *self = sum;
        Ok(())
    }

    /// For each entry: name length (u32), name, value (f64), little endian.
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in &self.0 {
            out.extend((name.len() as u32).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(value.to_le_bytes());
        }
        out
    }

    fn decode_add(&mut self, mut bytes: &[u8]) {
        while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
            let (name, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
            let Some((value, rest)) = rest.split_first_chunk::<8>() else {
                return;
            };
            self.add(&String::from_utf8_lossy(name), f64::from_le_bytes(*value));
            bytes = rest;
        }
    }
}

/// Work of one step over all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Work {
    /// Tokens, a shared prefix counted once.
    pub tokens: u64,
    /// Model FLOPs of forward and backward over them: 3 x `ModelConfig::flops_per_token` at each
    /// sequence's length. Recomputation is not counted.
    pub flops: f64,
}

/// Turns work and time into rates.
#[derive(Debug, Clone)]
pub struct Meter {
    /// FLOP/s of one rank: the best that was seen, of a product when it was measured or of a step since.
    pub peak: Cell<f64>,
    /// Ranks.
    pub ranks: usize,
}

impl Meter {
    /// Measures the peak: the best of a few square matrix products in compute kind.
    pub fn measure(kind: Kind, device: Device, ranks: usize) -> Meter {
        let n: i64 = if device.is_cuda() { 8192 } else { 1024 };
        let a = Tensor::ones([n, n], (kind, device));
        let b = Tensor::ones([n, n], (kind, device));
        let mut best = f64::INFINITY;
        for _ in 0..4 {
            let start = Instant::now();
            // reading an element waits for the device
            let _ = a.matmul(&b).double_value(&[0, 0]);
            best = best.min(start.elapsed().as_secs_f64());
        }
        Meter {
            peak: Cell::new(2.0 * (n as f64).powi(3) / best),
            ranks,
        }
    }

    /// `performance/tokens_per_sec`, `performance/flops` and `performance/mfu` of work that took
    /// `seconds`. MFU = model FLOPs / (seconds x ranks x peak), after PaLM (arXiv:2204.02311,
    /// appendix B) with the peak measured on this machine. A step that is faster raises the peak: something else had
    /// the machine while it was measured.
    pub fn rates(&self, work: Work, seconds: f64) -> [(&'static str, f64); 3] {
        let flops = work.flops / seconds;
        let of_a_rank = flops / self.ranks as f64;
        self.peak.set(self.peak.get().max(of_a_rank));
        [
            ("performance/tokens_per_sec", work.tokens as f64 / seconds),
            ("performance/flops", flops),
            ("performance/mfu", of_a_rank / self.peak.get()),
        ]
    }
}

/// FLOPs per token by sequence length, remembered, as the table behind it is long.
pub(crate) struct Flops<'a> {
    config: &'a ModelConfig,
    by_length: BTreeMap<usize, f64>,
}

impl<'a> Flops<'a> {
    pub fn new(config: &'a ModelConfig) -> Self {
        Flops {
            config,
            by_length: BTreeMap::new(),
        }
    }

    /// Work of training on these units.
    pub fn work(&mut self, units: &[crate::Unit]) -> Work {
        let mut work = Work::default();
        for unit in units {
            work.tokens += unit.tokens() as u64;
            work.flops += self.train(unit.prefix.len(), unit.prefix.len());
            for branch in &unit.branches {
                let own = branch.tokens.len();
                work.flops += self.train(own, unit.prefix.len() + own);
            }
        }
        work
    }

    fn train(&mut self, tokens: usize, length: usize) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let config = self.config;
        let each = self
            .by_length
            .entry(length)
            .or_insert_with(|| config.train_flops_per_token(length));
        *each * tokens as f64
    }
}
