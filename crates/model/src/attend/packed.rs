//! Training attention over packed rows: a few dense calls of libtorch's attention a layer.
//!
//! What depends on the layout alone (row numbers, masks) is made once for each window and kind,
//! not for each layer. Rows are moved with `embedding`, whose gradient sums in a fixed order on
//! CPU and GPU.

use super::plan::{Group, Plan};
use super::{Attend, AttendSpec, Layout, Share};
use crate::Error;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Attention over a [`Layout`], differentiable by plain autograd in any floating kind.
#[derive(Debug)]
pub struct Packed {
    layout: Layout,
    /// Rows of queries; after the layout's comes padding.
    rows: usize,
    /// Whose rows ask, unless all do.
    share: Option<Share>,
    device: Device,
    /// Longest sequence, prefix included: a window that reaches so far cuts nothing.
    longest: usize,
    plans: RefCell<HashMap<Option<usize>, Rc<Placed>>>,
}

impl Packed {
    /// For the rows of a layout on a device.
    ///
    /// # Errors
    /// A layout that breaks its rules.
    pub fn new(layout: &Layout, device: Device) -> Result<Self, Error> {
        Self::padded(layout, layout.rows(), device)
    }

    /// For the rows of a layout and rows of padding after them, `rows` in all.
    ///
    /// # Errors
    /// A layout that breaks its rules or has more rows.
    pub fn padded(layout: &Layout, rows: usize, device: Device) -> Result<Self, Error> {
        layout.check()?;
        if rows < layout.rows() {
            return Err(Error::Layout(format!(
                "{rows} rows for a layout of {}",
                layout.rows()
            )));
        }
        Ok(Self::of(layout, rows, None, device))
    }

    /// For the queries of a share, beside keys and values of all.
    ///
    /// # Errors
    /// A layout or a share that breaks its rules.
    pub fn shared(layout: &Layout, share: Share, device: Device) -> Result<Self, Error> {
        layout.check()?;
        share.check(layout)?;
        let rows = share.queries.len();
        Ok(Self::of(layout, rows, Some(share), device))
    }

    fn of(layout: &Layout, rows: usize, share: Option<Share>, device: Device) -> Self {
        let length = |s: &super::Span| s.len + s.prefix.map_or(0, |p| layout.spans[p].len);
        Self {
            layout: layout.clone(),
            rows,
            share,
            device,
            longest: layout.spans.iter().map(length).max().unwrap_or(0),
            plans: RefCell::new(HashMap::new()),
        }
    }

    fn plan(&self, window: Option<usize>) -> Rc<Placed> {
        let window = window.filter(|&w| w < self.longest);
        let mut plans = self.plans.borrow_mut();
        let plan = plans.entry(window).or_insert_with(|| {
            let mut plan = Plan::new(&self.layout, window, self.share.as_ref());
            plan.places.resize(self.rows, plan.computed as i64);
            Rc::new(Placed::new(plan, window, self.device))
        });
        Rc::clone(plan)
    }
}

impl Attend for Packed {
    fn attend(
        &self,
        _layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        let size = q.size();
        let (rows, width) = (size[0], size[1] * size[2]);
        assert_eq!(
            rows as usize, self.rows,
            "queries have as many rows as the layout"
        );
        let plan = self.plan(spec.window);
        let mut parts: Vec<Tensor> = plan
            .calls
            .iter()
            .map(|call| call.run(q, k, v, spec).reshape([-1, width]))
            .collect();
        if plan.uncovered {
            parts.push(Tensor::zeros([1, width], (q.kind(), q.device())));
        }
        let all = match parts.len() {
            // no row at all: keep the graph
            0 => return q * 0.0,
            1 => parts.remove(0),
            _ => Tensor::cat(&parts, 0),
        };
        match &plan.places {
            None => all.view(size.as_slice()),
            Some(places) => pick(&all, places).view(size.as_slice()),
        }
    }
}

/// A plan's row numbers as tensors.
#[derive(Debug)]
struct Placed {
    calls: Vec<Call>,
    /// Where every row's result lies; `None` when the results are in order already.
    places: Option<Tensor>,
    /// Some row belongs to no span.
    uncovered: bool,
}

impl Placed {
    fn new(plan: Plan, window: Option<usize>, device: Device) -> Self {
        let computed = plan.computed as i64;
        let first = plan.places.first().is_none_or(|&p| p == 0);
        let in_order = first && plan.places.len() == plan.computed && is_run(&plan.places);
        Self {
            uncovered: plan.places.contains(&computed),
            places: (!in_order).then(|| Tensor::from_slice(&plan.places).to_device(device)),
            calls: plan
                .groups
                .into_iter()
                .map(|g| Call::new(g, window, device))
                .collect(),
        }
    }
}

/// Rows to take from `[rows, ..]`.
#[derive(Debug)]
enum Rows {
    /// As they lie.
    Run { start: i64, len: i64 },
    /// Any.
    Some(Tensor),
}

impl Rows {
    fn new(rows: &[i64], device: Device) -> Self {
        if is_run(rows) {
            Rows::Run {
                start: rows.first().copied().unwrap_or(0),
                len: rows.len() as i64,
            }
        } else {
            Rows::Some(Tensor::from_slice(rows).to_device(device))
        }
    }

    /// `[rows, heads, d]` to `[batch, heads, length, d]`.
    fn take(&self, x: &Tensor, batch: i64) -> Tensor {
        let (heads, d) = (x.size()[1], x.size()[2]);
        let taken = match self {
            Rows::Run { start, len } => x.narrow(0, *start, *len),
            Rows::Some(rows) => pick(&x.reshape([-1, heads * d]), rows),
        };
        taken.reshape([batch, -1, heads, d]).transpose(1, 2)
    }
}

/// One dense call.
#[derive(Debug)]
struct Call {
    group: Group,
    window: Option<usize>,
    q_rows: Rows,
    k_rows: Rows,
    /// Additive mask by kind; made when first asked for.
    masks: RefCell<HashMap<Kind, Tensor>>,
    device: Device,
}

impl Call {
    fn new(mut group: Group, window: Option<usize>, device: Device) -> Self {
        let q_rows = Rows::new(&std::mem::take(&mut group.q_rows), device);
        let k_rows = Rows::new(&std::mem::take(&mut group.k_rows), device);
        Self {
            group,
            window,
            q_rows,
            k_rows,
            masks: RefCell::new(HashMap::new()),
            device,
        }
    }

    /// `[batch, lq, heads, d]`.
    fn run(&self, q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttendSpec) -> Tensor {
        let batch = self.group.batch as i64;
        let q = self.q_rows.take(q, batch);
        if self.is_small(&q) {
            let (k, v) = (self.k_rows.take(k, batch), self.k_rows.take(v, batch));
            return self.explicit(&q, &k, &v, spec);
        }
        let (mut k, mut v) = (self.k_rows.take(k, batch), self.k_rows.take(v, batch));
        let mut grouped = q.size()[1] != k.size()[1];
        // Of CUDA's fast calls only the half-precision one shares keys among heads.
        if grouped && q.device().is_cuda() && !matches!(q.kind(), Kind::BFloat16 | Kind::Half) {
            let times = q.size()[1] / k.size()[1];
            (k, v) = (repeat_heads(&k, times), repeat_heads(&v, times));
            grouped = false;
        }
        let mask = (!self.group.causal).then(|| self.mask(q.kind()));
        let out = Tensor::scaled_dot_product_attention(
            &q,
            &k,
            &v,
            mask.as_ref(),
            0.0,
            mask.is_none(),
            spec.scale,
            grouped,
        );
        out.transpose(1, 2)
    }

    /// Whether scores written out and multiplied whole beat libtorch's blocked attention: on CPU,
    /// where its backward is slow on short keys, in half precision above all. Measured on two
    /// AVX-512 cores with heads of 32, forward and backward: 32 keys, fp32 0.67 and bf16 0.12 of
    /// the blocked time; 84 keys 1.1 and 0.14; 256 keys 1.2 and 0.42; 1024 keys 3.0 and 1.6.
    fn is_small(&self, q: &Tensor) -> bool {
        let most = match q.kind() {
            Kind::BFloat16 | Kind::Half => 384,
            _ => 64,
        };
        q.device() == Device::Cpu && self.group.lk <= most && self.one_offset()
    }

    /// Attention as two matrix products, the queries that share a key head in one. Takes
    /// `[batch, heads, length, d]`.
    fn explicit(&self, q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttendSpec) -> Tensor {
        let [batch, heads, lq, d] = q.size()[..] else {
            unreachable!("four sizes")
        };
        let (kv_heads, lk) = (k.size()[1], k.size()[2]);
        let sharing = heads / kv_heads;
        let q = q.reshape([batch * kv_heads, sharing * lq, d]);
        let (k, v) = (
            k.reshape([batch * kv_heads, lk, d]),
            v.reshape([batch * kv_heads, lk, d]),
        );
        let mask = self
            .mask(q.kind())
            .view([1, 1, lq, lk])
            .expand([1, sharing, lq, lk], false)
            .reshape([1, sharing * lq, lk]);
        // beta 1, alpha scale: mask + scale * q k^T
        let scores = mask.baddbmm(&q, &k.transpose(1, 2), 1.0, spec.scale);
        scores
            .softmax(-1, None)
            .bmm(&v)
            .view([batch, heads, lq, d])
            .transpose(1, 2)
    }

    /// Whether one mask serves all pieces.
    fn one_offset(&self) -> bool {
        self.group.offsets.windows(2).all(|w| w[0] == w[1])
    }

    /// `[batch or 1, 1, lq, lk]`: zero where a query sees a key, else minus infinity. Padded
    /// keys come after a piece's own and are never seen by its queries; padded queries see what
    /// they like.
    fn mask(&self, kind: Kind) -> Tensor {
        let mut masks = self.masks.borrow_mut();
        let mask = masks.entry(kind).or_insert_with(|| {
            let g = &self.group;
            let offsets: Vec<i64> = g.offsets.iter().map(|&o| o as i64).collect();
            let offsets = &offsets[..if self.one_offset() { 1 } else { g.batch }];
            let options = (Kind::Int64, self.device);
            let at = Tensor::from_slice(offsets)
                .to_device(self.device)
                .view([-1, 1, 1, 1])
                + Tensor::arange(g.lq as i64, options).view([1, 1, -1, 1]);
            let key = Tensor::arange(g.lk as i64, options).view([1, 1, 1, -1]);
            let mut hidden = key.greater_tensor(&at);
            if let Some(w) = self.window {
                let past = key.less_equal_tensor(&(&at - w as i64));
                // a padded query may be past every key: it keeps the last, so that it stays finite
                let last = key.eq(g.lk as i64 - 1);
                hidden = hidden.logical_or(&past.logical_and(&last.logical_not()));
            }
            Tensor::zeros(hidden.size(), (kind, self.device))
                .masked_fill(&hidden, f64::NEG_INFINITY)
        });
        mask.shallow_clone()
    }
}

fn is_run(rows: &[i64]) -> bool {
    rows.windows(2).all(|w| w[1] == w[0] + 1)
}

/// Rows of a matrix, by number.
fn pick(x: &Tensor, rows: &Tensor) -> Tensor {
    Tensor::embedding(x, rows, -1, false, false)
}

/// `[b, kv_heads, l, d]` to `[b, kv_heads * times, l, d]`, each head `times` in a row.
fn repeat_heads(x: &Tensor, times: i64) -> Tensor {
    let [b, h, l, d] = x.size()[..] else {
        unreachable!("four sizes")
    };
    x.unsqueeze(2)
        .expand([b, h, times, l, d], false)
        .reshape([b, h * times, l, d])
}
