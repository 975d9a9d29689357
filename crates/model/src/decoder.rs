//! A decoder as a list of segments: embed, (attention, mlp or experts) x layers, norm.
//!
//! The families share these segments; what differs is in their tables. Boundaries are
//! the residual stream, `[rows, hidden]`, so an engine can cut, recompute or send at any of them.

use crate::moe::{self, Dispatch, Routing};
use crate::{Attend, AttendSpec, Ops, Split, Unsplit, Weights, ops::table_kind};
use arch::ModelConfig;
use tch::{Device, Kind, Tensor};

/// A decoder: its configuration and its segments. Holds no weights.
#[derive(Debug, Clone)]
pub struct Decoder {
    /// What it computes.
    pub config: ModelConfig,
    /// In the order they run.
    pub segments: Vec<Segment>,
}

/// A piece of the decoder between two boundaries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// What it computes.
    pub kind: SegmentKind,
    /// Names of its parameters, in the order that [`Decoder::run`] takes them.
    pub params: Vec<String>,
}

/// The sorts of segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// Token ids to rows.
    Embed,
    /// Norm, attention and residual of a layer.
    Attention(usize),
    /// Norm, MLP and residual of a layer.
    Mlp(usize),
    /// Norm, router, experts and residual of a layer.
    Moe(usize),
    /// The final norm; the LM matrix belongs to the head.
    Norm,
}

/// What a segment needs beside its parameters and its input.
pub struct Context<'a> {
    /// Cosines of every row's angles, `[rows, head_dim / 2]`.
    pub cos: Tensor,
    /// Sines of every row's angles, `[rows, head_dim / 2]`.
    pub sin: Tensor,
    /// Attention over the rows.
    pub attend: &'a dyn Attend,
    /// Norm, rotation, SwiGLU, linear and softmax.
    pub ops: &'a dyn Ops,
    /// How ranks share the segment's matrices.
    pub split: &'a dyn Split,
    /// Rows to their experts and back.
    pub dispatch: &'a dyn Dispatch,
    /// What looks at the routers' choices, or takes their place.
    pub routing: &'a dyn Routing,
}

impl<'a> Context<'a> {
    /// For rows at `positions` (`[rows]`, int64, on the device of the weights), computed in `kind`
    /// by one rank; all experts lie here, and the routers choose.
    pub fn new(
        decoder: &Decoder,
        positions: &Tensor,
        kind: Kind,
        attend: &'a dyn Attend,
        ops: &'a dyn Ops,
    ) -> Self {
        let (cos, sin) = decoder.rope(positions, kind);
        Self {
            cos,
            sin,
            attend,
            ops,
            split: &Unsplit,
            dispatch: &moe::Local,
            routing: &moe::Free,
        }
    }
}

impl Context<'_> {
    /// A linear map of which every rank has some columns; the bias is added once, to the sum.
    fn row_cut(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let sum = self.split.leave(self.ops.linear(x, weight, None));
        match bias {
            Some(bias) => sum + bias,
            None => sum,
        }
    }
}

impl Decoder {
    /// The decoder of a configuration.
    pub fn new(config: ModelConfig) -> Self {
        let kind = |i: usize, last: usize| match i {
            0 => SegmentKind::Embed,
            i if i == last => SegmentKind::Norm,
            i if i % 2 == 1 => SegmentKind::Attention((i - 1) / 2),
            i if config.experts_of((i - 2) / 2).is_some() => SegmentKind::Moe((i - 2) / 2),
            i => SegmentKind::Mlp((i - 2) / 2),
        };
        let last = config.segment_count() - 1;
        let mut segments: Vec<_> = (0..=last)
            .map(|i| Segment {
                kind: kind(i, last),
                params: Vec::new(),
            })
            .collect();
        for p in config.params() {
            if let Some(segment) = segments.get_mut(p.segment) {
                segment.params.push(p.name);
            }
        }
        Self { config, segments }
    }

    /// The part of it that a rank runs which holds the parameters that `held` names, such as some
    /// of a layer's experts: its segments list only these.
    pub fn holding(&self, held: impl Fn(&str) -> bool) -> Self {
        let mut part = self.clone();
        for segment in &mut part.segments {
            segment.params.retain(|name| held(name));
        }
        part
    }

    /// Runs one segment. `params` are its parameters in the order of [`Segment::params`]; `x` is
    /// `[rows]` token ids (int64) for the embedding, `[rows, hidden]` for the others. The result
    /// is `[rows, hidden]`. Differentiable in `params` and `x` by plain autograd. The parameters
    /// may be a rank's part, whole heads and columns: their own shapes say how many.
    ///
    /// # Panics
    /// If shapes do not fit, as libtorch does; [`Weights`] of the same configuration fit.
    pub fn run(&self, segment: usize, params: &[Tensor], x: &Tensor, ctx: &Context) -> Tensor {
        let stream = Stream::from(x.shallow_clone());
        self.run_on(segment, params, stream, ctx).sum()
    }

    /// As [`Decoder::run`], without the sum at its end: for a forward that goes on to the next segment.
    pub fn run_on(
        &self,
        segment: usize,
        params: &[Tensor],
        stream: Stream,
        ctx: &Context,
    ) -> Stream {
        match self.segments[segment].kind {
            SegmentKind::Embed => ctx.split.look_up(&params[0], &stream.sum()).into(),
            SegmentKind::Attention(layer) => self.attention(layer, params, stream, ctx),
            SegmentKind::Mlp(_) => self.mlp(params, stream, ctx),
            SegmentKind::Moe(layer) => self.moe(layer, params, stream, ctx),
            SegmentKind::Norm => stream
                .normed(&params[0], self.config.norm_eps, ctx)
                .1
                .into(),
        }
    }

    /// Runs all segments: `[rows]` token ids to the normed `[rows, hidden]` that the LM matrix
    /// ([`Decoder::lm_head_name`]) multiplies.
    pub fn forward(&self, weights: &Weights, tokens: &Tensor, ctx: &Context) -> Tensor {
        let mut x = tokens.shallow_clone();
        for i in 0..self.segments.len() {
            x = self.run(i, &self.segment_params(i, weights), &x, ctx);
        }
        x
    }

    /// The parameters of a segment, in the order of [`Segment::params`]; shares storage.
    pub fn segment_params(&self, segment: usize, weights: &Weights) -> Vec<Tensor> {
        self.segments[segment]
            .params
            .iter()
            .map(|name| weights.get(name).shallow_clone())
            .collect()
    }

    /// Name of the LM matrix `[vocab, hidden]`: the embedding's when tied.
    pub fn lm_head_name(&self) -> &'static str {
        self.config.lm_head_name()
    }

    /// Cosines and sines `[rows, head_dim / 2]` of rows at `positions` (`[rows]`, int64), for
    /// compute in `kind`: single precision, double for double.
    pub fn rope(&self, positions: &Tensor, kind: Kind) -> (Tensor, Tensor) {
        let kind = table_kind(kind);
        let freq = Tensor::from_slice(&self.config.rope.inv_freq())
            .to_device(positions.device())
            .to_kind(kind);
        let angles = positions.to_kind(kind).unsqueeze(1) * freq.unsqueeze(0);
        let factor = self.config.rope.attention_factor();
        if factor == 1.0 {
            (angles.cos(), angles.sin())
        } else {
            (angles.cos() * factor, angles.sin() * factor)
        }
    }

    fn attention(&self, layer: usize, params: &[Tensor], stream: Stream, ctx: &Context) -> Stream {
        let c = &self.config;
        let d = c.head_dim as i64;
        let mut p = Params(params.iter());
        let (x, y) = stream.normed(p.weight(), c.norm_eps, ctx);
        let y = ctx.split.enter(y);
        let maps = [(); 3].map(|()| p.linear(c.qkv_bias));
        let heads = |x: Tensor| x.view([-1, x.size()[1] / d, d]);
        let mut projected = ctx.ops.linears(&y, &maps).into_iter().map(heads);
        let mut next = || projected.next().expect("as many results as maps");
        let (mut q, mut k, v) = (next(), next(), next());
        let (o_weight, o_bias) = p.linear(c.o_bias);
        if c.qk_norm {
            q = ctx.ops.rms_norm(&q, p.weight(), c.norm_eps);
            k = ctx.ops.rms_norm(&k, p.weight(), c.norm_eps);
        }
        let (q, k) = ctx.ops.rope(&q, &k, &ctx.cos, &ctx.sin);
        let spec = AttendSpec {
            scale: 1.0 / (c.head_dim as f64).sqrt(),
            window: c.windows[layer],
        };
        let width = o_weight.size()[1];
        let seen = ctx
            .attend
            .attend(layer, &q, &k, &v, &spec)
            .reshape([-1, width]);
        Stream {
            x,
            added: Some(ctx.row_cut(&seen, o_weight, o_bias)),
        }
    }

    fn mlp(&self, params: &[Tensor], stream: Stream, ctx: &Context) -> Stream {
        let c = &self.config;
        let mut p = Params(params.iter());
        let (x, y) = stream.normed(p.weight(), c.norm_eps, ctx);
        let y = ctx.split.enter(y);
        let maps = [(); 2].map(|()| p.linear(c.mlp_bias));
        let inner = ctx.ops.linears(&y, &maps);
        let (weight, bias) = p.linear(c.mlp_bias);
        let gated = ctx.ops.swiglu(&inner[0], &inner[1]);
        Stream {
            x,
            added: Some(ctx.row_cut(&gated, weight, bias)),
        }
    }

    fn moe(&self, layer: usize, params: &[Tensor], stream: Stream, ctx: &Context) -> Stream {
        let c = &self.config;
        let (x, y) = stream.normed(&params[0], c.norm_eps, ctx);
        let y = ctx.split.enter(y);
        let mixed = moe::mix(c, layer, &params[1..], &y, ctx);
        Stream {
            x,
            added: Some(ctx.split.leave(mixed)),
        }
    }
}

/// The residual stream between two segments. What the last one adds to it waits for the next one's norm, so that a device
/// may do both in one pass over the rows.
pub struct Stream {
    x: Tensor,
    added: Option<Tensor>,
}

impl From<Tensor> for Stream {
    fn from(x: Tensor) -> Stream {
        Stream { x, added: None }
    }
}

impl Stream {
    /// The rows.
    pub fn sum(self) -> Tensor {
        match self.added {
            Some(added) => self.x + added,
            None => self.x,
        }
    }

    /// Some of the rows.
    pub fn select(&self, rows: &Tensor) -> Stream {
        let of = |x: &Tensor| x.index_select(0, rows);
        Stream {
            x: of(&self.x),
            added: self.added.as_ref().map(of),
        }
    }

    /// The rows, and their norm.
    fn normed(self, weight: &Tensor, eps: f64, ctx: &Context) -> (Tensor, Tensor) {
        match self.added {
            Some(added) => ctx.ops.add_rms_norm(&self.x, &added, weight, eps),
            None => {
                let normed = ctx.ops.rms_norm(&self.x, weight, eps);
                (self.x, normed)
            }
        }
    }
}

/// Parameters of a segment, taken in the table's order.
struct Params<'a>(std::slice::Iter<'a, Tensor>);

impl<'a> Params<'a> {
    fn weight(&mut self) -> &'a Tensor {
        self.0
            .next()
            .expect("a segment is run with as many parameters as its table lists")
    }

    fn linear(&mut self, bias: bool) -> (&'a Tensor, Option<&'a Tensor>) {
        (self.weight(), bias.then(|| self.weight()))
    }
}

/// Tokens as a tensor `[rows]`, int64, on `device`.
pub fn tokens(ids: &[u32], device: Device) -> Tensor {
    let wide: Vec<i64> = ids.iter().map(|&t| i64::from(t)).collect();
    Tensor::from_slice(&wide).to_device(device)
}
