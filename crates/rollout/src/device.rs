//! Generation by GPU kernels: rows written to the paged cache, attention of single rows over it, tokens chosen where the
//! logits lie. Rows that come several of one sequence (prompts) are attended to by gathering.

use kernels::cuda::paged::{self, Cache, Seen};
use kernels::cuda::sample::{self, Picks};
use kernels::cuda::{Error, Machine};
use model::{Attend, AttendSpec};
use tch::{Kind, Tensor};

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
            slots: Tensor::from_slice(&slots).to_device(device),
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
            Tensor::from_slice(&rows).to_device(device)
        });
        Self {
            rows,
            tables: Tensor::from_slice(&tables)
                .view([lengths.len() as i64, width as i64])
                .to_device(device),
            lengths: Tensor::from_slice(&lengths).to_device(device),
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

/// Chooses a token for each pick from its row of the logits; `None` where they are not numbers.
///
/// # Errors
/// A vocabulary that the kernel has no room for, or the machine's.
pub fn choose(
    machine: &dyn Machine,
    logits: &Tensor,
    picks: &[(usize, Pick)],
) -> Result<Vec<Option<Choice>>, Error> {
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
    let put = |t: Tensor| t.to_device(device);
    let chosen = sample::choose(
        machine,
        &logits.contiguous(),
        &Picks {
            rows: &put(Tensor::from_slice(&rows)),
            by: &put(Tensor::from_slice(&by)),
            top_k: &put(Tensor::from_slice(&top_k)),
            top_p: &put(Tensor::from_slice(&top_p)),
            draws: &put(Tensor::from_slice(&draws)),
        },
    )?;
    // one copy for both: tokens as the bits of floats
    let both = Tensor::stack(&[chosen.tokens, chosen.logprobs.view_dtype(Kind::Int)], 0);
    let mut words = vec![0i32; 2 * picks.len()];
    both.to_device(tch::Device::Cpu)
        .copy_data(&mut words, 2 * picks.len());
    let (tokens, logprobs) = words.split_at(picks.len());
    let choice = |(&token, &logprob): (&i32, &i32)| {
        let token = u32::try_from(token).ok()?;
        let logprob = f32::from_bits(logprob as u32);
        Some(Choice { token, logprob })
    };
    Ok(tokens.iter().zip(logprobs).map(choice).collect())
}

fn done<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|e| panic!("{e}"))
}

#[cfg(test)]
mod tests;
