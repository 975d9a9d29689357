//! One forward of a batch's rows, the choice of tokens at its ends, and the experts that its rows
//! went to.

use crate::Error;
use crate::batch::Batch;
use crate::cpu::Number;
use crate::cpu::attention;
use crate::cpu::gemm::Shared;
use crate::cpu::memory::Memory;
use crate::cpu::ops::{RowOps, elements, elements_mut};
use crate::device::{self, OnDevice, upload};
use crate::paged::Gathered;
use crate::peers::Peers;
use crate::routes::Record;
use crate::sampler::{Choice, Chosen, Pick, Scratch, choose};
use crate::store::Store;
use half::bf16;
use kernels::CudaOps;
use kernels::cuda::Machine;
use kernels::elem::Elem;
use model::{Attend, AttendSpec, Context, Decoder, Libtorch, Ops, Stream, Weights};
use std::collections::HashSet;
use tch::{Kind, Tensor};

/// Positions whose rotary angles are computed at a time. libtorch computes so few elements on one
/// thread, so an angle has the same bits whatever else is asked for.
const POSITIONS: i64 = 256;

/// A decoder ready to run: its parameters by segment, shared with the weights.
pub struct Engine {
    /// With the experts that lie here.
    decoder: Decoder,
    segments: Vec<Vec<Tensor>>,
    head: Tensor,
    rows: RowOps,
    /// The GPU whose kernels compute, if any.
    pub(crate) machine: Option<&'static dyn Machine>,
    peers: Peers,
    /// Cosines and sines `[positions, head_dim / 2]` of the first positions.
    angles: (Tensor, Tensor),
}

impl Engine {
    /// Runs `decoder` on `weights`, of which every peer has a part, with this many threads.
    pub fn new(decoder: &Decoder, weights: &Weights, threads: usize, peers: Peers) -> Self {
        let here: HashSet<&str> = weights.names().iter().map(String::as_str).collect();
        let decoder = decoder.holding(|name| here.contains(name));
        let segments = (0..decoder.segments.len())
            .map(|s| decoder.segment_params(s, weights))
            .collect();
        let head = weights.get(decoder.lm_head_name()).shallow_clone();
        let angles = decoder.rope(
            &Tensor::arange(POSITIONS, (Kind::Int64, head.device())),
            head.kind(),
        );
        Self {
            decoder,
            segments,
            head,
            rows: RowOps::new(threads),
            machine: kernels::cuda::machine(weights.device()),
            peers,
            angles,
        }
    }

    /// Whether a GPU's kernels compute.
    pub fn is_gpu(&self) -> bool {
        self.machine.is_some()
    }

    /// Computes the rows of `batch`, leaves their keys and values in `store`, and returns the
    /// logits `[ends.len(), vocab]` of the rows `ends`. Tokens that are not known yet are among those chosen `before`.
    /// `record` sees where rows go.
    ///
    /// # Errors
    /// A peer that is gone.
    pub fn forward(
        &mut self,
        store: &Store,
        (batch, before): (&Batch, Option<&Chosen>),
        ends: &[usize],
        record: &Record,
    ) -> Result<Tensor, Error> {
        let tokens = self.tokens(batch, before);
        let longest = batch.rows.iter().map(|r| r.position).max().unwrap_or(0);
        self.extend_angles(i64::from(longest) + 1);
        match store {
            Store::F32(memory) => self.run(
                &Rowwise {
                    rows: &self.rows,
                    memory,
                    batch,
                },
                &self.rows,
                (tokens, batch, ends),
                record,
            ),
            Store::Bf16(memory) => self.run(
                &Rowwise {
                    rows: &self.rows,
                    memory,
                    batch,
                },
                &self.rows,
                (tokens, batch, ends),
                record,
            ),
            Store::Libtorch(tensors) => {
                let machine = self.machine;
                let attend = machine.and_then(|m| Some((m, OnDevice::new(m, tensors, batch)?)));
                if let Some((machine, attend)) = attend {
                    return self.run(
                        &attend,
                        &CudaOps::new(machine),
                        (tokens, batch, ends),
                        record,
                    );
                }
                let attend = Gathered::new(tensors, batch, self.head.device());
                self.run(&attend, &Libtorch, (tokens, batch, ends), record)
            }
        }
    }

    fn run(
        &self,
        attend: &dyn Attend,
        ops: &dyn Ops,
        (tokens, batch, ends): (Tensor, &Batch, &[usize]),
        record: &Record,
    ) -> Result<Tensor, Error> {
        let index = |v: Vec<i64>| upload(&v, self.head.device());
        let positions = index(batch.rows.iter().map(|r| i64::from(r.position)).collect());
        let context = Context {
            cos: self.angles.0.index_select(0, &positions),
            sin: self.angles.1.index_select(0, &positions),
            attend,
            ops,
            split: self.peers.split(),
            dispatch: self.peers.dispatch(),
            routing: record,
        };
        let last = self.segments.len() - 1;
        let mut stream = Stream::from(tokens);
        for (i, params) in self.segments.iter().enumerate() {
            if i == last && ends.len() < batch.rows.len() {
                stream = stream.select(&index(ends.iter().map(|&r| r as i64).collect()));
            }
            stream = self.decoder.run_on(i, params, stream, &context);
        }
        let x = stream.sum();
        self.peers.check()?;
        self.peers.logits(ops.linear(&x, &self.head, None))
    }

    /// The tokens of a batch's rows, where the model lies.
    fn tokens(&self, batch: &Batch, before: Option<&Chosen>) -> Tensor {
        let device = self.head.device();
        let known: Vec<i64> = batch.rows.iter().map(|r| i64::from(r.token)).collect();
        let mut tokens = upload(&known, device);
        if !batch.unread.is_empty() {
            let (rows, places): (Vec<i64>, Vec<i64>) = batch
                .unread
                .iter()
                .map(|&(row, place)| (row as i64, place as i64))
                .unzip();
            let chosen = before.expect("what is not read was chosen").tokens(device);
            let chosen = chosen.index_select(0, &upload(&places, device));
            let _ = tokens.index_copy_(0, &upload(&rows, device), &chosen);
        }
        tokens
    }

    /// Chooses a token for each pick from its row of the logits.
    pub fn choose(&self, logits: &Tensor, picks: &[(usize, Pick)]) -> Chosen {
        match self.machine.map(|m| device::choose(m, logits, picks)) {
            Some(Ok(chosen)) => return Chosen::There(chosen),
            // more tokens than the kernel has room for
            None | Some(Err(kernels::cuda::Error::Unsupported { .. })) => {}
            Some(Err(e)) => panic!("{e}"),
        }
        Chosen::Here(self.choose_here(logits, picks))
    }

    fn choose_here(&self, logits: &Tensor, picks: &[(usize, Pick)]) -> Vec<Option<Choice>> {
        match RowOps::takes(logits.kind(), logits.device()) {
            true if logits.kind() == Kind::BFloat16 => self.choose_of::<bf16>(logits, picks),
            true => self.choose_of::<f32>(logits, picks),
            false => {
                let logits = logits
                    .to_device(tch::Device::Cpu)
                    .to_kind(Kind::Float)
                    .contiguous();
                self.choose_of::<f32>(&logits, picks)
            }
        }
    }

    fn choose_of<E: Elem>(&self, logits: &Tensor, picks: &[(usize, Pick)]) -> Vec<Option<Choice>> {
        let (vocab, logits) = (logits.size()[1] as usize, elements::<E>(logits));
        let mut out = vec![None; picks.len()];
        let mut pool = self.rows.pool();
        let each = picks.len().div_ceil(4 * pool.threads()).max(1);
        let chosen = Shared(out.as_mut_ptr());
        pool.run(picks.len().div_ceil(each), |piece| {
            let mut scratch = Scratch::default();
            for (i, (row, pick)) in picks.iter().enumerate().skip(piece * each).take(each) {
                let choice = choose(&logits[row * vocab..(row + 1) * vocab], pick, &mut scratch);
                // SAFETY: one thread has a piece's own picks.
                unsafe { *chosen.get().add(i) = choice };
            }
        });
        out
    }

    fn extend_angles(&mut self, positions: i64) {
        while self.angles.0.size()[0] < positions {
            let from = self.angles.0.size()[0];
            let next =
                Tensor::arange_start(from, from + POSITIONS, (Kind::Int64, self.head.device()));
            let (cos, sin) = self.decoder.rope(&next, self.head.kind());
            self.angles = (
                Tensor::cat(&[&self.angles.0, &cos], 0),
                Tensor::cat(&[&self.angles.1, &sin], 0),
            );
        }
    }
}

/// Attention of a batch's rows over paged keys and values on the CPU.
struct Rowwise<'a, E> {
    rows: &'a RowOps,
    memory: &'a Memory<E>,
    batch: &'a Batch,
}

impl<E: Number> Attend for Rowwise<'_, E> {
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        let _kernel = trace::kernel("paged_attention").with("rows", q.size()[0]);
        let (q, k, v) = (q.contiguous(), k.contiguous(), v.contiguous());
        let mut out = q.empty_like();
        let mut pool = self.rows.pool();
        let of = attention::Layer {
            memory: self.memory,
            layer,
            batch: self.batch,
        };
        attention::store(&mut pool, &of, elements::<E>(&k), elements::<E>(&v));
        attention::attend(
            &mut pool,
            &of,
            spec,
            elements::<E>(&q),
            elements_mut::<E>(&mut out),
        );
        out
    }
}
