//! A batch's microbatches through this rank's pieces of the decoder, in the pipeline's order. One
//! rank that has all segments is a pipeline of one stage.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Range;

use parallel::pipeline::{Chunks, Shape, drive};
use parallel::{Engine, Gradients, Walk};
use tch::Tensor;

use crate::head::Pulled;
use crate::lay::Laid;
use crate::{Error, Policy, Unit};

/// Turns the hidden states of a microbatch with rows, and the LM matrix, into their gradients.
pub(crate) type PullHead<'a> = dyn FnMut(&Tensor, &Tensor, &Laid) -> Result<Pulled, Error> + 'a;

/// Looks at the hidden states of a microbatch with rows, and the LM matrix.
pub(crate) type ReadHead<'a> = dyn FnMut(&Tensor, &Tensor, &Laid) -> Result<(), Error> + 'a;

/// This rank's microbatches.
pub(crate) struct Batch<'a> {
    policy: &'a Policy,
    engine: Engine<'a>,
    units: &'a [Unit],
    /// Units by microbatch.
    microbatches: Vec<Vec<usize>>,
    /// Laid out when first met.
    laid: Vec<OnceCell<Laid>>,
    /// Segments by piece, of all stages.
    pieces: Vec<Range<usize>>,
    shape: Shape,
}

impl<'a> Batch<'a> {
    /// The microbatches that the plan gives this rank, over `engine`.
    pub fn new(policy: &'a Policy, engine: Engine<'a>, units: &'a [Unit]) -> Batch<'a> {
        let microbatches = policy.my_microbatches(units);
        let pieces = policy.pieces();
        let stages = policy.groups().mesh.pp;
        Batch {
            policy,
            engine,
            units,
            laid: microbatches.iter().map(|_| OnceCell::new()).collect(),
            shape: Shape {
                stages,
                chunks: pieces.len() / stages,
                microbatches: microbatches.len(),
            },
            microbatches,
            pieces,
        }
    }

    /// Forward and backward of all; gradients go to `grads`. Only the last stage has a head.
    pub fn train(&'a self, grads: &mut dyn Gradients, head: &mut PullHead) -> Result<(), Error> {
        let group = &*self.policy.groups().pp;
        let events = self.shape.train().swap_remove(group.rank());
        let mut training = Training {
            batch: self,
            walks: HashMap::new(),
            pulled: HashMap::new(),
            grads,
            head,
        };
        drive(&events, group, &mut training)
    }

    /// Forward of all, by the arithmetic of [`Batch::train`]; nothing is kept. Without `head` it ends
    /// with the last segment.
    pub fn infer(&self, head: Option<&mut ReadHead>) -> Result<(), Error> {
        let group = &*self.policy.groups().pp;
        let events = self.shape.infer().swap_remove(group.rank());
        // a shorter borrow: the compiler does not find it by itself behind an option
        let head = head.map(|head| head as &mut ReadHead);
        drive(&events, group, &mut Inference { batch: self, head })
    }

    fn laid(&self, microbatch: usize) -> &Laid {
        self.laid[microbatch].get_or_init(|| {
            let indices = &self.microbatches[microbatch];
            self.policy.lay(self.units, indices)
        })
    }

    fn is_last(&self, piece: usize) -> bool {
        piece + 1 == self.pieces.len()
    }

    /// A piece's segments, and what they run on: token ids where no boundary comes in.
    fn enter(
        &self,
        piece: usize,
        microbatch: usize,
        boundary: Option<Tensor>,
    ) -> (Range<usize>, Tensor, &Laid) {
        let laid = self.laid(microbatch);
        let input = boundary.unwrap_or_else(|| laid.batch.tokens.shallow_clone());
        (self.pieces[piece].clone(), input, laid)
    }

    /// Runs `with` on the LM matrix and its name. Ranks that share its shards gather it together,
    /// those without rows too.
    fn with_lm_matrix<T>(
        &self,
        with: impl FnOnce(&str, &Tensor) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let _head = trace::phase("head");
        let sharded = &self.policy.sharded;
        let name = self.engine.decoder.lm_head_name();
        let matrix = sharded.gather_one(name)?;
        let out = with(name, &matrix)?;
        drop(matrix);
        sharded.release_one(name);
        Ok(out)
    }

    /// What is done with a microbatch, for a trace.
    fn seen(&self, what: &'static str, piece: usize, microbatch: usize) -> trace::Span {
        let seen = trace::phase(what).with("microbatch", microbatch);
        let seen = seen.with("tokens", self.laid(microbatch).rows);
        match self.pieces.len() {
            1 => seen,
            _ => seen.with("piece", piece),
        }
    }

    fn boundary(&self, piece: usize, microbatch: usize) -> Tensor {
        let batch = &self.laid(microbatch).batch;
        let rows = self.engine.boundary_rows(self.pieces[piece].start, batch);
        let hidden = self.engine.decoder.config.hidden_size as i64;
        let kind = self.engine.parameters.kind();
        Tensor::zeros([rows, hidden], (kind, batch.tokens.device()))
    }
}

struct Training<'a, 'b> {
    batch: &'a Batch<'a>,
    /// By piece and microbatch.
    walks: HashMap<(usize, usize), Walk<'a>>,
    /// By microbatch, on the last stage.
    pulled: HashMap<usize, Tensor>,
    grads: &'b mut dyn Gradients,
    head: &'b mut PullHead<'b>,
}

impl Training<'_, '_> {
    /// The gradient of the last hidden states.
    fn head(&mut self, hidden: &Tensor, laid: &Laid) -> Result<Tensor, Error> {
        let batch = self.batch;
        let d_hidden = batch.with_lm_matrix(|name, matrix| {
            if laid.rows == 0 {
                return Ok(hidden.zeros_like());
            }
            let pulled = (self.head)(hidden, matrix, laid)?;
            self.grads.add(name, pulled.weight)?;
            Ok(pulled.hidden)
        })?;
        let name = batch.engine.decoder.lm_head_name();
        self.grads.done(&[name.to_owned()])?;
        Ok(d_hidden)
    }
}

impl Chunks for Training<'_, '_> {
    type Error = Error;

    fn boundary(&self, piece: usize, microbatch: usize) -> Tensor {
        self.batch.boundary(piece, microbatch)
    }

    fn forward(
        &mut self,
        piece: usize,
        microbatch: usize,
        input: Option<Tensor>,
    ) -> Result<Option<Tensor>, Error> {
        let batch = self.batch;
        let (range, input, laid) = batch.enter(piece, microbatch, input);
        let forward = batch.seen("forward", piece, microbatch);
        if range.start == 0 {
            // the embedding comes now, and its gradient of the microbatch before is as large
            self.grads.settle()?;
        }
        let walk = batch.engine.forward_range(range, input, &laid.batch)?;
        drop(forward);
        let output = if batch.is_last(piece) {
            let d_hidden = self.head(walk.output(), laid)?;
            self.pulled.insert(microbatch, d_hidden);
            None
        } else {
            Some(walk.output().shallow_clone())
        };
        self.walks.insert((piece, microbatch), walk);
        Ok(output)
    }

    fn backward(
        &mut self,
        piece: usize,
        microbatch: usize,
        d_output: Option<Tensor>,
    ) -> Result<Option<Tensor>, Error> {
        let walk = self.walks.remove(&(piece, microbatch));
        let d_output = d_output.or_else(|| self.pulled.remove(&microbatch));
        let _backward = self.batch.seen("backward", piece, microbatch);
        let walked = walk
            .zip(d_output)
            .expect("the schedule goes forward before it goes back");
        let (walk, d_output) = walked;
        Ok(walk.backward(d_output, self.grads)?)
    }
}

struct Inference<'a, 'b> {
    batch: &'a Batch<'a>,
    head: Option<&'b mut ReadHead<'b>>,
}

impl Chunks for Inference<'_, '_> {
    type Error = Error;

    fn boundary(&self, piece: usize, microbatch: usize) -> Tensor {
        self.batch.boundary(piece, microbatch)
    }

    fn forward(
        &mut self,
        piece: usize,
        microbatch: usize,
        input: Option<Tensor>,
    ) -> Result<Option<Tensor>, Error> {
        let batch = self.batch;
        let (range, input, laid) = batch.enter(piece, microbatch, input);
        let forward = batch.seen("score", piece, microbatch);
        let output = batch.engine.infer_range(range, input, &laid.batch)?;
        drop(forward);
        if !batch.is_last(piece) {
            return Ok(Some(output));
        }
        let Some(head) = &mut self.head else {
            return Ok(None);
        };
        batch.with_lm_matrix(|_, matrix| match laid.rows {
            0 => Ok(()),
            _ => head(&output, matrix, laid),
        })?;
        Ok(None)
    }

    fn backward(&mut self, _: usize, _: usize, _: Option<Tensor>) -> Result<Option<Tensor>, Error> {
        unreachable!("a schedule of forwards goes forward")
    }
}
