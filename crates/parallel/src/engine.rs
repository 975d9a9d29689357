//! The segment engine: forward over segments, backward as vector-Jacobian products.
//!
//! A boundary between segments is a detached leaf. With [`Checkpointing::None`] each segment's
//! graph is kept from forward to backward; with [`Checkpointing::Full`] only the boundaries are,
//! and backward runs each segment again before walking it. The arithmetic is the same either way,
//! so the gradients are equal bit for bit.

use model::{Context, Decoder, Layout, Ops, Packed, Segment, SegmentKind, Weights};
use tch::{Kind, Tensor};

use crate::{Error, Gradients};

/// What is kept between forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpointing {
    /// Every segment's graph.
    #[default]
    None,
    /// Segment boundaries only; segments run twice.
    Full,
}

/// The door through which a segment gets its parameters.
pub trait Parameters {
    /// The compute kind.
    fn kind(&self) -> Kind;
    /// The segment's whole parameters in compute kind, in the order `Decoder::run` takes them.
    fn gather(&self, segment: &Segment) -> Result<Vec<Tensor>, Error>;
    /// The engine no longer needs what [`gather`](Parameters::gather) gave for this segment,
    /// until it gathers again.
    fn release(&self, segment: &Segment);
}

/// Parameters that lie whole in this process.
pub struct Whole<'a>(pub &'a Weights);

impl Parameters for Whole<'_> {
    fn kind(&self) -> Kind {
        self.0.kind()
    }
    fn gather(&self, segment: &Segment) -> Result<Vec<Tensor>, Error> {
        segment
            .params
            .iter()
            .map(|name| Ok(self.0.get(name).shallow_clone()))
            .collect()
    }
    fn release(&self, _: &Segment) {}
}

/// Rows that go through the decoder together.
pub struct Microbatch {
    /// Token ids, i64 `[rows]`. With zero rows the engine gathers parameters and computes nothing.
    pub tokens: Tensor,
    /// Which rows attend to which; also gives each row's position.
    pub layout: Layout,
    /// Rows whose hidden state is wanted, i64 `[kept]`, repeats allowed; `None` is all rows. After
    /// the last attention only these go on.
    pub keep: Option<Tensor>,
}

/// Runs a decoder over microbatches.
#[derive(Clone, Copy)]
pub struct Engine<'a> {
    /// The decoder.
    pub decoder: &'a Decoder,
    /// Where parameters come from.
    pub parameters: &'a dyn Parameters,
    /// Operators of the device.
    pub ops: &'a dyn Ops,
    /// What forward keeps for backward.
    pub checkpointing: Checkpointing,
}

/// A forward that can be walked back once.
pub struct Walk<'a> {
    engine: Engine<'a>,
    batch: &'a Microbatch,
    scene: Scene,
    /// One per segment.
    steps: Vec<Step>,
    hidden: Tensor,
}

/// A segment as forward left it.
struct Step {
    /// Its input; token ids for the embedding, else a leaf.
    input: Tensor,
    /// Output and parameters with their graph, unless dropped.
    graph: Option<Graph>,
}

struct Graph {
    output: Tensor,
    parameters: Vec<Tensor>,
}

/// What all segments of one microbatch share.
struct Scene {
    cos: Tensor,
    sin: Tensor,
    attend: Packed,
}

impl<'a> Engine<'a> {
    /// Hidden states `[kept, hidden]` after the final norm, with what is needed to walk back.
    pub fn forward(&self, batch: &'a Microbatch) -> Result<Walk<'a>, Error> {
        let scene = self.scene(batch)?;
        let mut steps = Vec::with_capacity(self.decoder.segments.len());
        let mut x = batch.tokens.shallow_clone();
        for index in 0..self.decoder.segments.len() {
            let input = leaf(&self.enter(index, x, batch));
            let graph = match self.checkpointing {
                // the embedding is walked back without a graph
                Checkpointing::None if index > 0 => Some(self.run_graph(index, &input, &scene)?),
                _ => None,
            };
            x = match &graph {
                Some(graph) => graph.output.detach(),
                None => self.run_plain(index, &input, &scene)?,
            };
            steps.push(Step { input, graph });
        }
        Ok(Walk {
            engine: *self,
            batch,
            scene,
            steps,
            hidden: x,
        })
    }

    /// Hidden states `[kept, hidden]` after the final norm; nothing is kept. The same arithmetic
    /// as [`Engine::forward`].
    pub fn infer(&self, batch: &Microbatch) -> Result<Tensor, Error> {
        let scene = self.scene(batch)?;
        let mut x = batch.tokens.shallow_clone();
        for index in 0..self.decoder.segments.len() {
            x = self.run_plain(index, &self.enter(index, x, batch), &scene)?;
        }
        Ok(x)
    }

    fn scene(&self, batch: &Microbatch) -> Result<Scene, Error> {
        let device = batch.tokens.device();
        let positions = Tensor::from_slice(&batch.layout.positions()).to_device(device);
        let (cos, sin) = self.decoder.rope(&positions, self.parameters.kind());
        Ok(Scene {
            cos,
            sin,
            attend: Packed::new(&batch.layout, device)?,
        })
    }

    /// The input of a segment: what follows the last attention is by row, so only kept rows go on.
    fn enter(&self, index: usize, x: Tensor, batch: &Microbatch) -> Tensor {
        match &batch.keep {
            Some(keep) if index == self.first_after_attention() => x.index_select(0, keep),
            _ => x,
        }
    }

    fn first_after_attention(&self) -> usize {
        let attention = |s: &Segment| matches!(s.kind, SegmentKind::Attention(_));
        self.decoder
            .segments
            .iter()
            .rposition(attention)
            .map_or(1, |i| i + 1)
    }

    fn run_plain(&self, index: usize, input: &Tensor, scene: &Scene) -> Result<Tensor, Error> {
        let segment = &self.decoder.segments[index];
        let parameters = self.parameters.gather(segment)?;
        let output = tch::no_grad(|| self.run(index, &parameters, input, scene));
        drop(parameters);
        self.parameters.release(segment);
        Ok(output)
    }

    fn run_graph(&self, index: usize, input: &Tensor, scene: &Scene) -> Result<Graph, Error> {
        let segment = &self.decoder.segments[index];
        let parameters: Vec<Tensor> = self.parameters.gather(segment)?.iter().map(leaf).collect();
        let output = tch::with_grad(|| self.run(index, &parameters, input, scene));
        Ok(Graph { output, parameters })
    }

    fn run(&self, index: usize, parameters: &[Tensor], x: &Tensor, scene: &Scene) -> Tensor {
        let rows = x.size()[0];
        if rows == 0 {
            let hidden = self.decoder.config.hidden_size as i64;
            return Tensor::zeros([0, hidden], (self.parameters.kind(), x.device()));
        }
        let context = Context {
            cos: scene.cos.shallow_clone(),
            sin: scene.sin.shallow_clone(),
            attend: &scene.attend,
            ops: self.ops,
        };
        self.decoder.run(index, parameters, x, &context)
    }
}

impl Walk<'_> {
    /// Hidden states after the final norm, `[kept, hidden]`, without a graph.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Walks back from the gradient of [`Walk::hidden`]; every parameter's gradient goes to
    /// `grads`. Segments' graphs are freed as they are passed.
    pub fn backward(mut self, d_hidden: Tensor, grads: &mut dyn Gradients) -> Result<(), Error> {
        let mut d_output = d_hidden;
        while let Some(step) = self.steps.pop() {
            let index = self.steps.len();
            d_output = if index == 0 {
                self.embedding(&step.input, d_output, grads)?
            } else {
                self.segment(index, step, d_output, grads)?
            };
            if index == self.engine.first_after_attention()
                && let Some(keep) = &self.batch.keep
            {
                d_output = self.scatter(keep, &d_output);
            }
        }
        Ok(())
    }

    /// One vector-Jacobian product; returns the gradient of the segment's input.
    fn segment(
        &self,
        index: usize,
        step: Step,
        d_output: Tensor,
        grads: &mut dyn Gradients,
    ) -> Result<Tensor, Error> {
        let engine = &self.engine;
        let segment = &engine.decoder.segments[index];
        let Step { input, graph } = step;
        let Graph { output, parameters } = match graph {
            Some(graph) => graph,
            None => engine.run_graph(index, &input, &self.scene)?,
        };
        let mut sources: Vec<&Tensor> = vec![&input];
        sources.extend(&parameters);
        let pulled = if output.requires_grad() {
            torch::autograd::vjp(&[&output], &[&d_output], &sources, false)?
        } else {
            // no rows: nothing was computed
            sources.iter().map(|_| None).collect()
        };
        drop((output, parameters));
        engine.parameters.release(segment);
        let mut pulled = pulled.into_iter();
        let d_input = pulled.next().flatten();
        for (name, grad) in segment.params.iter().zip(pulled) {
            if let Some(grad) = grad {
                grads.add(name, grad)?;
            }
        }
        Ok(d_input.unwrap_or_else(|| input.zeros_like()))
    }

    /// The embedding is a look-up: its gradient is taken in accumulation kind, as a frequent token
    /// would lose its small terms in bf16.
    fn embedding(
        &self,
        tokens: &Tensor,
        d_output: Tensor,
        grads: &mut dyn Gradients,
    ) -> Result<Tensor, Error> {
        let decoder = self.engine.decoder;
        if tokens.size()[0] > 0 {
            let vocabulary = decoder.config.vocab_size as i64;
            grads.add(
                &decoder.segments[0].params[0],
                sum_rows(&d_output, tokens, vocabulary),
            )?;
        }
        Ok(d_output)
    }

    /// Gradient of the rows before the choice of kept ones: several may come from one row.
    fn scatter(&self, keep: &Tensor, d_kept: &Tensor) -> Tensor {
        sum_rows(d_kept, keep, self.batch.tokens.size()[0]).to_kind(d_kept.kind())
    }
}

/// `[n, d] -> [rows, d]`: sums the rows of `x` that go to the same place. Unlike `index_add`, this
/// adds in a fixed order on every device.
fn sum_rows(x: &Tensor, places: &Tensor, rows: i64) -> Tensor {
    tch::no_grad(|| Tensor::embedding_dense_backward(&widen(x), places, rows, -1, false))
}

/// fp32, or fp64 if it is.
fn widen(x: &Tensor) -> Tensor {
    if x.kind() == Kind::Double {
        x.shallow_clone()
    } else {
        x.to_kind(Kind::Float)
    }
}

/// The same values as the start of a graph (token ids stay as they are).
fn leaf(x: &Tensor) -> Tensor {
    let leaf = x.detach();
    if leaf.is_floating_point() {
        leaf.set_requires_grad(true)
    } else {
        leaf
    }
}
