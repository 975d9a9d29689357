//! Mixture of experts: a router scores every expert for every row, and the row's result is the
//! weighted sum of the MLPs of the best few.
//!
//! What may differ by place is injected through [`Context`]: [`Dispatch`] brings rows to their
//! experts and back (across ranks, where experts lie apart), [`Routing`] looks at the router's
//! choices or takes their place.

use crate::{Context, Ops};
use arch::ModelConfig;
use tch::{Kind, Tensor};
use torch::autograd::record;

/// Brings rows to their experts and back.
pub trait Dispatch {
    /// `[rows, hidden]`, in the kind of `x`: for each row of `x` `[rows, hidden]` the sum over its
    /// choices of weight times the expert's MLP of the row, summed in the order of the choices.
    /// Differentiable in `x`, the weights and the experts.
    fn dispatch(&self, x: &Tensor, choice: &Choice, experts: &[Expert], ops: &dyn Ops) -> Tensor;

    /// Whether ranks wait for one another here, so that one without rows must come too.
    fn is_collective(&self) -> bool {
        false
    }
}

/// Where rows go.
pub struct Choice {
    /// Experts of each row, `[rows, per_token]`, int64.
    pub ids: Tensor,
    /// Their weights `[rows, per_token]`, single precision (double in double).
    pub weights: Tensor,
    /// Experts of the layer, wherever they lie.
    pub experts: usize,
}

/// The matrices of an expert that lies here.
pub struct Expert<'a> {
    /// `[intermediate, hidden]`
    pub gate: &'a Tensor,
    /// `[intermediate, hidden]`
    pub up: &'a Tensor,
    /// `[hidden, intermediate]`
    pub down: &'a Tensor,
}

/// What looks at the choices of routers, or takes their place.
pub trait Routing {
    /// Ids `[rows, per_token]` (int64) that the rows at hand go to in this layer, whatever the
    /// router would choose; its probabilities at these ids are their weights.
    fn replay(&self, layer: usize) -> Option<Tensor>;

    /// Sees the router's probabilities `[rows, experts]` and the ids in use. The probabilities it
    /// returns are those that go on, so that a loss on them can add its gradient.
    fn routed(&self, layer: usize, probabilities: Tensor, ids: &Tensor) -> Tensor;
}

/// The routers choose, and nobody looks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Free;

impl Routing for Free {
    fn replay(&self, _: usize) -> Option<Tensor> {
        None
    }
    fn routed(&self, _: usize, probabilities: Tensor, _: &Tensor) -> Tensor {
        probabilities
    }
}

/// All experts lie here.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Dispatch for Local {
    fn dispatch(&self, x: &Tensor, choice: &Choice, experts: &[Expert], ops: &dyn Ops) -> Tensor {
        let places = Places::new(&choice.ids, choice.experts);
        let rows = run_experts(&places.spread(x), &places.counts, experts, ops);
        places.combine(&rows, &choice.weights)
    }
}

/// Router, choice and experts of `x` `[rows, hidden]`, the normed rows of a layer. `params`: the
/// router, then gate, up and down of each expert that lies here.
pub(crate) fn mix(
    config: &ModelConfig,
    layer: usize,
    params: &[Tensor],
    x: &Tensor,
    ctx: &Context,
) -> Tensor {
    let experts = config
        .experts_of(layer)
        .expect("a segment of experts is of a layer that has them");
    let (router, rest) = params
        .split_first()
        .expect("a segment is run with as many parameters as its table lists");
    let probabilities = ctx.ops.softmax(&ctx.ops.linear(x, router, None));
    let ids = ctx.routing.replay(layer).unwrap_or_else(|| {
        let best = probabilities
            .detach()
            .topk(experts.per_token as i64, 1, true, true);
        best.1
    });
    let probabilities = ctx.routing.routed(layer, probabilities, &ids);
    let mut weights = probabilities.gather(1, &ids, false);
    if experts.normalize {
        weights = &weights / column_sum(&weights);
    }
    let matrices: Vec<Expert> = rest
        .chunks_exact(3)
        .map(|m| Expert {
            gate: &m[0],
            up: &m[1],
            down: &m[2],
        })
        .collect();
    let choice = Choice {
        ids,
        weights,
        experts: experts.count,
    };
    ctx.dispatch.dispatch(x, &choice, &matrices, ctx.ops)
}

/// `[rows, 1]`: columns added one after another, so that a row's sum does not depend on how many
/// rows there are.
fn column_sum(x: &Tensor) -> Tensor {
    let mut columns = (0..x.size()[1]).map(|j| x.narrow(1, j, 1));
    let first = columns
        .next()
        .unwrap_or_else(|| x.sum_dim_intlist(1, true, None));
    columns.fold(first, |sum, column| sum + column)
}

/// The MLPs of `experts` over `rows`, which lie in their order: `counts[e]` rows for expert `e`.
/// Experts without rows cost nothing.
pub fn run_experts(rows: &Tensor, counts: &[i64], experts: &[Expert], ops: &dyn Ops) -> Tensor {
    assert_eq!(
        counts.len(),
        experts.len(),
        "a count of rows for each expert"
    );
    let mut start = 0;
    let mut out = Vec::with_capacity(experts.len());
    for (expert, &n) in experts.iter().zip(counts) {
        if n > 0 {
            let x = rows.narrow(0, start, n);
            let gate = ops.linear(&x, expert.gate, None);
            let up = ops.linear(&x, expert.up, None);
            out.push(ops.linear(&ops.swiglu(&gate, &up), expert.down, None));
            start += n;
        }
    }
    match out.len() {
        // no rows: of the same width, and a part of the graph
        0 => rows.shallow_clone(),
        1 => out.remove(0),
        _ => Tensor::cat(&out, 0),
    }
}

/// Rows in the order of their experts. Every row occurs once for each of its choices.
pub struct Places {
    /// Rows that go to each expert.
    pub counts: Vec<i64>,
    /// For each place in that order its number among the choices, row by row.
    order: Tensor,
    /// The places of each row's choices, `[rows, per_token]`.
    inverse: Tensor,
}

impl Places {
    /// The order for ids `[rows, per_token]` below `experts`; rows of one expert keep theirs.
    pub fn new(ids: &Tensor, experts: usize) -> Self {
        tch::no_grad(|| {
            let flat = ids.reshape([-1]);
            let (_, order) = flat.sort_stable(true, 0, false);
            let places = Tensor::arange(order.size()[0], (Kind::Int64, order.device()));
            let inverse = order.zeros_like().scatter(0, &order, &places);
            let counts = flat.bincount(None::<Tensor>, experts as i64);
            Self {
                counts: Vec::try_from(counts).expect("bincount gives integers"),
                inverse: inverse.view_as(ids),
                order,
            }
        })
    }

    fn per_token(&self) -> i64 {
        self.inverse.size()[1]
    }

    /// The row that stands at each place.
    fn sources(&self) -> Tensor {
        self.order.divide_scalar_mode(self.per_token(), "floor")
    }

    /// `[rows, n] -> [rows * per_token, n]`: every row at each of its places. Backward adds up a
    /// row's places in the order of its choices.
    pub fn spread(&self, x: &Tensor) -> Tensor {
        let y = tch::no_grad(|| x.detach().index_select(0, &self.sources()));
        let (inverse, shape) = (self.inverse.reshape([-1]), x.size());
        let per_token = self.per_token();
        record(&[x], y, move |dy| {
            let wide = dy.index_select(0, &inverse);
            let parts = wide.view([shape[0], per_token, shape[1]]);
            vec![Some(parts.sum_dim_intlist(1, false, None))]
        })
    }

    /// `[rows * per_token, n] -> [rows, n]`, in the kind of `y`: for each row the sum of its places
    /// times their `weights` `[rows, per_token]`, in the order of its choices and in the kind of
    /// the weights.
    pub fn combine(&self, y: &Tensor, weights: &Tensor) -> Tensor {
        let (kind, wide) = (y.kind(), weights.kind());
        let (ys, ws) = (y.detach(), weights.detach());
        let term = |j: i64| {
            let rows = ys.index_select(0, &self.inverse.select(1, j));
            rows.to_kind(wide) * ws.narrow(1, j, 1)
        };
        // multiplications and additions apart, element by element: a row's bits are its own
        let sum = tch::no_grad(|| {
            let first = term(0);
            (1..self.per_token())
                .fold(first, |sum, j| sum + term(j))
                .to_kind(kind)
        });
        let (sources, order) = (self.sources(), self.order.shallow_clone());
        let inverse = self.inverse.shallow_clone();
        record(&[y, weights], sum, move |dy| {
            let at_places = dy.to_kind(wide).index_select(0, &sources);
            let w = ws.reshape([-1]).index_select(0, &order).unsqueeze(1);
            let d_rows = (&at_places * w).to_kind(kind);
            let d_weights = (at_places * ys.to_kind(wide)).sum_dim_intlist(-1, false, None);
            let d_weights = d_weights.index_select(0, &inverse.reshape([-1]));
            vec![Some(d_rows), Some(d_weights.view_as(&inverse))]
        })
    }
}

/// Row `order[i]` of `x` at place `i`; `inverse` undoes it, and takes the gradients back.
pub fn reorder(x: &Tensor, order: &Tensor, inverse: &Tensor) -> Tensor {
    let y = tch::no_grad(|| x.detach().index_select(0, order));
    let inverse = inverse.shallow_clone();
    record(&[x], y, move |dy| vec![Some(dy.index_select(0, &inverse))])
}
