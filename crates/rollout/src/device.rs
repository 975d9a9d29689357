//! Generation by GPU kernels: rows written to the paged cache, attention of single rows over it, tokens chosen where the
//! logits lie. Rows that come several of one sequence (prompts) are attended to by gathering.

use kernels::cuda::paged::{self, Cache, Seen};
use kernels::cuda::sample::{self, Picks};
use kernels::cuda::{Error, Machine};
use model::{Attend, AttendSpec};
use tch::kind::Element;
use tch::{Device, Kind, Tensor};
use torch::stream::{Event, Stream};

use crate::batch::Batch;
use crate::blocks::BLOCK;
use crate::paged::{Gathered, Tensors};
use crate::sampler::{Choice, Pick};

/// Attention of one forward.
pub struct OnDevice<'a> {
    machine: &'static dyn Machine,
    tensors: &'a Tensors,
    /// Where each row's keys and values go.
    slots: Tensor,
    single: Option<Single>,
    several: Option<Gathered<'a>>,
}

/// Rows that are alone of their sequence.
struct Single {
    /// Which they are, unless all.
    rows: Option<Tensor>,
    tables: Tensor,
    lengths: Tensor,
    longest: i64,
}

impl<'a> OnDevice<'a> {
    /// For the rows of `batch`; `None` where heads have no kernel.
    pub fn new(machine: &'static dyn Machine, tensors: &'a Tensors, batch: &Batch) -> Option<Self> {
        let (keys, _) = tensors.layer(0)?;
        if !paged::fits(keys.kind(), keys.size()[2]) {
            return None;
        }
        let device = machine.device();
        let slots: Vec<i64> = (0..batch.rows.len())
            .map(|row| {
                let (block, slot) = batch.place(row);
                (block * BLOCK + slot) as i64
            })
            .collect();
        let single: Vec<usize> = batch
            .runs
            .iter()
            .filter(|run| run.len() == 1)
            .map(|run| run.start)
            .collect();
        let all = single.len() == batch.rows.len();
        Some(Self {
            machine,
            tensors,
            slots: upload(&slots, device),
            several: (!all).then(|| Gathered::of(tensors, batch, device, 2)),
            single: (!single.is_empty()).then(|| Single::new(machine, batch, &single, all)),
        })
    }
}

impl Single {
    fn new(machine: &dyn Machine, batch: &Batch, rows: &[usize], all: bool) -> Self {
        let device = machine.device();
        let lengths: Vec<i32> = rows
            .iter()
            .map(|&row| batch.rows[row].position as i32 + 1)
            .collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let width = (longest as usize).div_ceil(BLOCK).max(1);
        let mut tables = vec![0i32; rows.len() * width];
        for (line, &row) in tables.chunks_mut(width).zip(rows) {
            for (to, &block) in line.iter_mut().zip(batch.table(row)) {
                *to = block as i32;
            }
        }
        let rows = (!all).then(|| {
            let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
            upload(&rows, device)
        });
        Self {
            rows,
            tables: upload(&tables, device).view([lengths.len() as i64, width as i64]),
            lengths: upload(&lengths, device),
            longest: i64::from(longest),
        }
    }
}

impl Attend for OnDevice<'_> {
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        let (q, k, v) = (q.contiguous(), k.contiguous(), v.contiguous());
        let (keys, values) = self.tensors.layer(layer).expect("a cache of all layers");
        let cache = Cache { keys, values };
        done(paged::write(self.machine, &k, &v, &self.slots, cache));
        let single = self.single.as_ref().map(|single| {
            let seen = Seen {
                tables: &single.tables,
                lengths: &single.lengths,
                longest: single.longest,
                window: spec.window.map(|w| w as i64),
            };
            let q = match &single.rows {
                Some(rows) => q.index_select(0, rows),
                None => q.shallow_clone(),
            };
            let out = done(paged::attend(self.machine, &q, cache, &seen, spec.scale));
            (single.rows.as_ref(), out)
        });
        match (single, &self.several) {
            (Some((None, out)), _) => out,
            (single, several) => {
                let mut all = q.empty_like();
                if let Some((Some(rows), out)) = single {
                    let _ = all.index_copy_(0, rows, &out);
                }
                if let Some(several) = several {
                    several.fill(layer, &q, spec, &mut all);
                }
                all
            }
        }
    }
}

/// Chooses a token for each pick from its row of the logits; nothing waits for the device.
///
/// # Errors
/// A vocabulary that the kernel has no room for, or the machine's.
pub fn choose(
    machine: &dyn Machine,
    logits: &Tensor,
    picks: &[(usize, Pick)],
) -> Result<Arriving, Error> {
    let (mut rows, mut by, mut top_k, mut top_p, mut draws) = (
        Vec::with_capacity(picks.len()),
        Vec::with_capacity(picks.len()),
        Vec::with_capacity(picks.len()),
        Vec::with_capacity(picks.len()),
        Vec::with_capacity(picks.len()),
    );
    for (row, pick) in picks {
        let s = pick.sampling;
        rows.push(*row as i32);
        by.push(match s.temperature {
            0.0 => 0.0,
            t => (1.0 / t) as f32,
        });
        top_k.push(s.top_k.min(i32::MAX as usize) as i32);
        top_p.push(s.top_p as f32);
        draws.push(pick.draw().u64() as i64);
    }
    let device = machine.device();
    let chosen = sample::choose(
        machine,
        &logits.contiguous(),
        &Picks {
            rows: &upload(&rows, device),
            by: &upload(&by, device),
            top_k: &upload(&top_k, device),
            top_p: &upload(&top_p, device),
            draws: &upload(&draws, device),
        },
    )?;
    Ok(Arriving::new(chosen.tokens, &chosen.logprobs))
}

/// Choices on their way to the host.
pub struct Arriving {
    tokens: Tensor,
    /// Tokens, then log-probabilities as the bits of floats, in host memory.
    words: Tensor,
    /// Where the stream has written them.
    end: Option<Event>,
}

impl Arriving {
    fn new(tokens: Tensor, logprobs: &Tensor) -> Self {
        let both = Tensor::stack(&[&tokens, &logprobs.view_dtype(Kind::Int)], 0);
        // from a GPU, memory that it writes by itself
        let words = both.to_device_(Device::Cpu, Kind::Int, true, false);
        let end = match tokens.device() {
            Device::Cuda(_) => {
                let end = Stream::current(tokens.device()).and_then(Stream::record);
                Some(end.unwrap_or_else(|e| panic!("{e}")))
            }
            _ => None,
        };
        Self { tokens, words, end }
    }

    /// Token ids, int64, where they were chosen; 0 where there is none.
    pub fn tokens(&self) -> Tensor {
        self.tokens.to_kind(Kind::Int64).clamp_min(0)
    }

    /// The choices, when they are there.
    pub fn read(self) -> Vec<Option<Choice>> {
        if let Some(end) = &self.end {
            end.synchronize().unwrap_or_else(|e| panic!("{e}"));
        }
        let mut words = vec![0i32; self.words.numel()];
        self.words.copy_data(&mut words, self.words.numel());
        let (tokens, logprobs) = words.split_at(words.len() / 2);
        let choice = |(&token, &logprob): (&i32, &i32)| {
            let token = u32::try_from(token).ok()?;
            let logprob = f32::from_bits(logprob as u32);
            Some(Choice { token, logprob })
        };
        tokens.iter().zip(logprobs).map(choice).collect()
    }
}

/// Values on a device. The host does not wait for what the device was given before.
pub fn upload<T: Element>(values: &[T], device: Device) -> Tensor {
    let here = Tensor::from_slice(values);
    here.to_device_(device, here.kind(), true, false)
}

fn done<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

#[cfg(test)]
mod tests;
