//! The segment engine: forward over segments, backward as vector-Jacobian products.
//!
//! A boundary between segments is a detached leaf. [`Checkpointing`] says which segments' graphs
//! are kept from forward to backward; of the others only the boundary is, and backward runs them
//! again before walking them. The arithmetic is the same either way, so the gradients are equal bit
//! for bit.
//!
//! A pipeline stage runs a range of the segments: a boundary goes in and one comes out, on the way
//! back a gradient of each.

use std::ops::Range;

use model::{Context, Decoder, Layout, Ops, Segment, SegmentKind, Weights};
use tch::{Kind, Tensor};

use crate::inside::{Inside, Scene};
use crate::routes::Told;
use crate::{Error, Gradients, Moe, Routes};

/// What is kept between forward and backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpointing {
    /// Every segment's graph.
    #[default]
    None,
    /// The graphs of attention segments. MLPs, whose inner rows are the widest, and norms run twice.
    Selective,
    /// Segment boundaries only; segments run twice.
    Full,
}

impl Checkpointing {
    /// Whether the graph of such a segment is kept.
    fn keeps(self, kind: SegmentKind) -> bool {
        match self {
            // the embedding is walked back without a graph
            _ if kind == SegmentKind::Embed => false,
            Checkpointing::None => true,
            Checkpointing::Selective => matches!(kind, SegmentKind::Attention(_)),
            Checkpointing::Full => false,
        }
    }
}

/// The door through which a segment gets its parameters.
pub trait Parameters {
    /// The compute kind.
    fn kind(&self) -> Kind;
    /// The segment's parameters, this rank's parts of the matrices, in compute kind, in the order `Decoder::run` takes them.
    fn gather(&self, segment: &Segment) -> Result<Vec<Tensor>, Error>;
    /// The engine does not read what [`gather`](Parameters::gather) gave for this segment until it
    /// gathers again. Graphs may still refer to it: the next gather brings the same values to the
    /// same storage.
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
    /// For a model with experts, what is known of the rows; `None` has the routers choose, and
    /// counts nothing.
    pub routes: Option<Routes>,
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
    /// The ranks that share a microbatch. Each runs its own rows, in parts of the matrices.
    pub inside: &'a Inside,
    /// What forward keeps for backward.
    pub checkpointing: Checkpointing,
    /// Where experts lie, and how rows go to them.
    pub moe: &'a Moe,
}

/// A forward over a range of segments that can be walked back once.
pub struct Walk<'a> {
    engine: Engine<'a>,
    scene: Scene<'a>,
    /// Index of the first segment.
    first: usize,
    /// One per segment.
    steps: Vec<Step>,
    output: Tensor,
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

impl<'a> Engine<'a> {
    /// All segments: token ids to hidden states `[kept, hidden]` after the final norm, with what is
    /// needed to walk back. Where ranks share the rows, these are the kept rows of
    /// [`Inside::own`].
    pub fn forward(&self, batch: &Microbatch) -> Result<Walk<'a>, Error> {
        let tokens = batch.tokens.shallow_clone();
        self.forward_range(self.all(), tokens, batch)
    }

    /// The segments of `range`, from the boundary before its first: the microbatch's token ids when
    /// that is the embedding, else `[rows, hidden]`, and `[kept, hidden]` once the segment after
    /// the last attention has run; rows are this rank's ([`Engine::boundary_rows`]). That segment
    /// chooses the kept rows, so whoever runs it gets all rows.
    pub fn forward_range(
        &self,
        range: Range<usize>,
        input: Tensor,
        batch: &Microbatch,
    ) -> Result<Walk<'a>, Error> {
        let (scene, mut x) = self.start(&range, input, batch)?;
        let (first, end) = (range.start, range.end);
        let mut steps = Vec::with_capacity(range.len());
        for index in range {
            let input = leaf(&self.enter(index, x, &scene)?);
            let keeps = self.checkpointing.keeps(self.decoder.segments[index].kind);
            let graph = match keeps {
                true => Some(self.run_graph(index, &input, &scene, true)?),
                false => None,
            };
            x = match &graph {
                Some(graph) => {
                    // gathered again before the graph is walked back
                    self.parameters.release(&self.decoder.segments[index]);
                    graph.output.detach()
                }
                None => self.run_plain(index, &input, &scene)?,
            };
            steps.push(Step { input, graph });
        }
        Ok(Walk {
            engine: *self,
            output: self.finish(end, x, &scene)?,
            scene,
            first,
            steps,
        })
    }

    /// Hidden states `[kept, hidden]` after the final norm; nothing is kept. The same arithmetic
    /// as [`Engine::forward`].
    pub fn infer(&self, batch: &Microbatch) -> Result<Tensor, Error> {
        self.infer_range(self.all(), batch.tokens.shallow_clone(), batch)
    }

    /// As [`Engine::forward_range`]; nothing is kept.
    pub fn infer_range(
        &self,
        range: Range<usize>,
        input: Tensor,
        batch: &Microbatch,
    ) -> Result<Tensor, Error> {
        let (scene, mut x) = self.start(&range, input, batch)?;
        let end = range.end;
        for index in range {
            x = self.run_plain(index, &self.enter(index, x, &scene)?, &scene)?;
        }
        self.finish(end, x, &scene)
    }

    /// This rank's rows of the boundary before segment `index` (the output of all, at their count).
    pub fn boundary_rows(&self, index: usize, batch: &Microbatch) -> i64 {
        let rows = self.inside.boundary(batch);
        match index {
            i if i == self.decoder.segments.len() => rows.finished,
            i if i > self.first_kept() => rows.kept,
            _ => rows.all,
        }
    }

    fn all(&self) -> Range<usize> {
        0..self.decoder.segments.len()
    }

    fn start(
        &self,
        range: &Range<usize>,
        input: Tensor,
        batch: &Microbatch,
    ) -> Result<(Scene<'a>, Tensor), Error> {
        let kind = self.parameters.kind();
        let scene = self.inside.scene(self.decoder, self.ops, batch, kind)?;
        let x = match range.start {
            0 => scene.ids.shallow_clone(),
            _ => input,
        };
        Ok((scene, x))
    }

    /// The input of a segment: what follows the last attention is by row, so only kept rows go on.
    fn enter(&self, index: usize, x: Tensor, scene: &Scene) -> Result<Tensor, Error> {
        if index != self.first_kept() {
            return Ok(x);
        }
        let x = scene.choose(x);
        self.inside.check()?;
        Ok(x)
    }

    /// The output of a range that ends at `end`.
    fn finish(&self, end: usize, x: Tensor, scene: &Scene) -> Result<Tensor, Error> {
        if end != self.decoder.segments.len() {
            return Ok(x);
        }
        let x = scene.finish(x);
        self.inside.check()?;
        Ok(x)
    }

    /// The segment that only kept rows enter: the one after the last attention, or after the last
    /// experts where a loss needs all rows' choices.
    fn first_kept(&self) -> usize {
        let every_row = self.moe.every_row();
        let mixes = |s: &Segment| match s.kind {
            SegmentKind::Attention(_) => true,
            SegmentKind::Moe(_) => every_row,
            _ => false,
        };
        let segments = &self.decoder.segments;
        segments.iter().rposition(mixes).map_or(1, |i| i + 1)
    }

    fn run_plain(&self, index: usize, input: &Tensor, scene: &Scene) -> Result<Tensor, Error> {
        let segment = &self.decoder.segments[index];
        let parameters = self.parameters.gather(segment)?;
        let output = tch::no_grad(|| self.run(index, &parameters, input, scene, true));
        drop(parameters);
        self.parameters.release(segment);
        self.moe.check()?;
        self.inside.check()?;
        Ok(output)
    }

    /// `first`: not again, for the way back.
    fn run_graph(
        &self,
        index: usize,
        input: &Tensor,
        scene: &Scene,
        first: bool,
    ) -> Result<Graph, Error> {
        let segment = &self.decoder.segments[index];
        let parameters: Vec<Tensor> = self.parameters.gather(segment)?.iter().map(leaf).collect();
        let output = tch::with_grad(|| self.run(index, &parameters, input, scene, first));
        self.moe.check()?;
        self.inside.check()?;
        Ok(Graph { output, parameters })
    }

    fn run(
        &self,
        index: usize,
        parameters: &[Tensor],
        x: &Tensor,
        scene: &Scene,
        first: bool,
    ) -> Tensor {
        let _forward = seen(&self.decoder.segments[index], Way::Forth, x, first);
        let dispatch = self.moe.dispatch();
        let experts = matches!(self.decoder.segments[index].kind, SegmentKind::Moe(_));
        // other ranks' rows may be waiting for experts that lie here
        if x.size()[0] == 0 && !(experts && dispatch.is_collective()) {
            let hidden = self.decoder.config.hidden_size as i64;
            return Tensor::zeros([0, hidden], (self.parameters.kind(), x.device()));
        }
        let kept = index >= self.first_kept();
        let told = Told {
            config: &self.decoder.config,
            moe: self.moe,
            routes: if kept { &scene.kept } else { &scene.routes }.as_ref(),
            first,
        };
        let context = Context {
            cos: scene.cos.shallow_clone(),
            sin: scene.sin.shallow_clone(),
            attend: &*scene.attend,
            ops: self.ops,
            split: scene.split(),
            dispatch,
            routing: &told,
        };
        self.decoder.run(index, parameters, x, &context)
    }
}

impl Walk<'_> {
    /// What the last segment gave, without a graph: after the final norm, `[kept, hidden]`.
    pub fn output(&self) -> &Tensor {
        &self.output
    }

    /// Walks back from the gradient of [`Walk::output`]; every parameter's gradient goes to
    /// `grads`. Segments' graphs are freed as they are passed. Returns the gradient of the boundary
    /// before the first segment; token ids have none.
    pub fn backward(
        mut self,
        d_output: Tensor,
        grads: &mut dyn Gradients,
    ) -> Result<Option<Tensor>, Error> {
        let (engine, scene) = (self.engine, &self.scene);
        let mut d_output = match self.first + self.steps.len() == engine.decoder.segments.len() {
            true => scene.finish_back(d_output),
            false => d_output,
        };
        engine.inside.check()?;
        while let Some(step) = self.steps.pop() {
            let index = self.first + self.steps.len();
            if index == 0 {
                self.embedding(d_output, grads)?;
                return Ok(None);
            }
            d_output = self.segment(index, step, d_output, grads)?;
            if index == engine.first_kept() {
                d_output = self.scene.choose_back(d_output);
                engine.inside.check()?;
            }
        }
        Ok(Some(d_output))
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
        let _backward = seen(segment, Way::Back, &d_output, true);
        let Graph { output, parameters } = match graph {
            Some(graph) => {
                // fills the storage that the graph's parameters share
                drop(engine.parameters.gather(segment)?);
                graph
            }
            None => engine.run_graph(index, &input, &self.scene, false)?,
        };
        let mut sources: Vec<&Tensor> = vec![&input];
        sources.extend(&parameters);
        let pulled = if output.requires_grad() {
            torch::autograd::vjp(&[&output], &[&d_output], &sources, false)?
        } else {
            // no rows: nothing was computed
            sources.iter().map(|_| None).collect()
        };
        engine.inside.check()?;
        drop((output, parameters));
        engine.parameters.release(segment);
        engine.moe.check()?;
        let mut pulled = pulled.into_iter();
        let d_input = pulled.next().flatten();
        for (name, grad) in segment.params.iter().zip(pulled) {
            if let Some(grad) = grad {
                grads.add(name, grad)?;
            }
        }
        grads.done(&segment.params)?;
        Ok(d_input.unwrap_or_else(|| input.zeros_like()))
    }

    fn embedding(&self, d_output: Tensor, grads: &mut dyn Gradients) -> Result<(), Error> {
        let decoder = self.engine.decoder;
        let _backward = seen(&decoder.segments[0], Way::Back, &d_output, true);
        if d_output.size()[0] > 0 {
            let grad = self
                .scene
                .embedding_back(d_output, decoder.config.vocab_size);
            self.engine.inside.check()?;
            grads.add(&decoder.segments[0].params[0], grad)?;
        }
        grads.done(&decoder.segments[0].params)
    }
}

enum Way {
    Forth,
    Back,
}

/// A segment's run, for a trace. `first`: not again, for the way back.
fn seen(segment: &Segment, way: Way, x: &Tensor, first: bool) -> trace::Span {
    let (forth, back, layer) = match segment.kind {
        SegmentKind::Embed => ("embedding", "embedding backward", None),
        SegmentKind::Attention(layer) => {
            ("attention layer", "attention layer backward", Some(layer))
        }
        SegmentKind::Mlp(layer) => ("mlp layer", "mlp layer backward", Some(layer)),
        SegmentKind::Moe(layer) => ("expert layer", "expert layer backward", Some(layer)),
        SegmentKind::Norm => ("final norm", "final norm backward", None),
    };
    let mut seen = trace::phase(match way {
        Way::Forth => forth,
        Way::Back => back,
    });
    if trace::on() {
        layer
            .into_iter()
            .for_each(|layer| seen.note("layer", layer));
        seen.note("rows", x.size()[0]);
        if !first {
            seen.note("again", "activations were not kept");
        }
    }
    seen
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
