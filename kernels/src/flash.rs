//! [`Flash`]: attention over a packed batch by libtorch's flash attention of sequences laid end to end. No mask exists,
//! and rows are moved only where sequences share a prefix or rows lie between them.

use std::rc::Rc;

use model::{Attend, AttendSpec, Error, Layout, Packed};
use tch::{Device, Kind, Tensor};
use torch::attention::Sequences;
use torch::autograd::record;

/// Attention over a [`Layout`] in half precision on a GPU; [`Packed`] for all else. Differentiable.
#[derive(Debug)]
pub struct Flash {
    rows: Rows,
    sequences: Rc<Sequences>,
    other: Packed,
}

impl Flash {
    /// For a layout's rows on a device and the padding after them, `rows` in all.
    ///
    /// # Errors
    /// A layout that breaks its rules or has more rows.
    pub fn new(layout: &Layout, rows: usize, device: Device) -> Result<Self, Error> {
        // also checks the layout
        let other = Packed::padded(layout, rows, device)?;
        let plan = Plan::new(layout);
        let ends = |ends: &[i32]| Tensor::from_slice(ends).to_device(device);
        Ok(Self {
            sequences: Rc::new(Sequences {
                ends_q: ends(&plan.ends_q),
                ends_k: ends(&plan.ends_k),
                max_q: longest(&plan.ends_q),
                max_k: longest(&plan.ends_k),
            }),
            rows: Rows::new(&plan, rows, device),
            other,
        })
    }
}

impl Attend for Flash {
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        let half = matches!(q.kind(), Kind::BFloat16 | Kind::Half);
        let d = q.size()[2];
        if !half || d % 8 != 0 || d > 256 || self.sequences.max_q == 0 {
            return self.other.attend(layer, q, k, v, spec);
        }
        let (q, k, v) = self.rows.take(q, k, v);
        let (qs, ks, vs) = (detached(&q), detached(&k), detached(&v));
        let (sequences, scale, window) = (Rc::clone(&self.sequences), spec.scale, spec.window);
        let kept = sequences
            .forward([&qs, &ks, &vs], scale, window)
            .unwrap_or_else(|e| panic!("flash attention: {e}"));
        let out = kept.out().shallow_clone();
        let out = record(&[&q, &k, &v], out, move |dy| {
            let [dq, dk, dv] = sequences
                .backward(&dy.contiguous(), [&qs, &ks, &vs], &kept, scale, window)
                .unwrap_or_else(|e| panic!("flash attention: {e}"));
            vec![Some(dq), Some(dk), Some(dv)]
        });
        self.rows.put(&out)
    }
}

fn detached(x: &Tensor) -> Tensor {
    x.detach().contiguous()
}

/// Which rows the sequences are of, and where they end.
#[derive(Debug, Default)]
struct Plan {
    queries: Vec<i64>,
    keys: Vec<i64>,
    ends_q: Vec<i32>,
    ends_k: Vec<i32>,
}

impl Plan {
    /// A sequence for every span that has rows: its queries, and as keys its prefix and itself.
    fn new(layout: &Layout) -> Self {
        let mut plan = Plan {
            ends_q: vec![0],
            ends_k: vec![0],
            ..Plan::default()
        };
        let rows = |i: usize| {
            let span = layout.spans[i];
            span.start as i64..(span.start + span.len) as i64
        };
        for (i, span) in layout.spans.iter().enumerate().filter(|(_, s)| s.len > 0) {
            plan.queries.extend(rows(i));
            plan.keys.extend(span.prefix.into_iter().flat_map(rows));
            plan.keys.extend(rows(i));
            plan.ends_q.push(plan.queries.len() as i32);
            plan.ends_k.push(plan.keys.len() as i32);
        }
        plan
    }
}

fn longest(ends: &[i32]) -> i64 {
    let lengths = ends.windows(2).map(|w| i64::from(w[1] - w[0]));
    lengths.max().unwrap_or(0)
}

/// How rows of the batch become those of the sequences, and back.
#[derive(Debug)]
struct Rows {
    queries: Take,
    keys: Take,
    /// Where each row's result lies among the queries, one more for zeros; `None` where they are in order.
    places: Option<Tensor>,
    /// Rows of padding after the queries, where these are in order.
    padding: i64,
}

/// Rows to take.
#[derive(Debug)]
enum Take {
    /// The first so many.
    First(i64),
    /// These.
    Some(Tensor),
}

impl Take {
    fn new(rows: &[i64], device: Device) -> Self {
        match rows.iter().enumerate().all(|(i, &row)| row == i as i64) {
            true => Take::First(rows.len() as i64),
            false => Take::Some(Tensor::from_slice(rows).to_device(device)),
        }
    }

    fn of(&self, x: &Tensor) -> Tensor {
        match self {
            Take::First(n) if *n == x.size()[0] => x.shallow_clone(),
            Take::First(n) => x.narrow(0, 0, *n),
            Take::Some(rows) => pick(x, rows),
        }
    }
}

/// Rows by number; the gradient is summed in a fixed order.
fn pick(x: &Tensor, rows: &Tensor) -> Tensor {
    let size = x.size();
    let flat = x.reshape([size[0], -1]);
    Tensor::embedding(&flat, rows, -1, false, false).view([-1, size[1], size[2]])
}

impl Rows {
    fn new(plan: &Plan, rows: usize, device: Device) -> Self {
        let queries = Take::new(&plan.queries, device);
        let mut places = vec![plan.queries.len() as i64; rows];
        for (i, &row) in plan.queries.iter().enumerate() {
            places[row as usize] = i as i64;
        }
        let in_order = matches!(queries, Take::First(_));
        Self {
            keys: Take::new(&plan.keys, device),
            padding: (rows - plan.queries.len()) as i64,
            places: (!in_order).then(|| Tensor::from_slice(&places).to_device(device)),
            queries,
        }
    }

    fn take(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> (Tensor, Tensor, Tensor) {
        (self.queries.of(q), self.keys.of(k), self.keys.of(v))
    }

    /// The batch's rows from the queries' results; zeros for those of no sequence.
    fn put(&self, out: &Tensor) -> Tensor {
        let zeros = |rows: i64| {
            let size = out.size();
            Tensor::zeros([rows, size[1], size[2]], (out.kind(), out.device()))
        };
        match &self.places {
            None if self.padding == 0 => out.shallow_clone(),
            None => Tensor::cat(&[out, &zeros(self.padding)], 0),
            Some(places) => pick(&Tensor::cat(&[out, &zeros(1)], 0), places),
        }
    }
}

#[cfg(test)]
mod tests {
    use model::Span;
    use torch::autograd::vjp;

    use super::*;

    fn wave(size: &[i64], step: f64) -> Tensor {
        let n: i64 = size.iter().product();
        ((Tensor::arange(n, (Kind::Double, Device::Cpu)) * step).sin() * 2.0).reshape(size)
    }

    /// What libtorch's call is said to do, one sequence after the other.
    fn end_to_end(plan: &Plan, q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttendSpec) -> Tensor {
        let times = q.size()[1] / k.size()[1];
        let parts: Vec<Tensor> = (1..plan.ends_q.len())
            .map(|i| {
                let part = |x: &Tensor, ends: &[i32]| {
                    let (from, to) = (i64::from(ends[i - 1]), i64::from(ends[i]));
                    x.narrow(0, from, to - from).transpose(0, 1)
                };
                let wide =
                    |x: &Tensor| part(x, &plan.ends_k).repeat_interleave_self_int(times, 0, None);
                let (q, k, v) = (part(q, &plan.ends_q), wide(k), wide(v));
                let (lq, lk) = (q.size()[1], k.size()[1]);
                let ones = Tensor::ones([lq, lk], (Kind::Bool, Device::Cpu));
                // the last query stands beside the last key
                let mut seen = ones.tril(lk - lq);
                if let Some(w) = spec.window {
                    seen = seen.logical_and(&ones.triu(lk - lq - w as i64 + 1));
                }
                let scores = q.matmul(&k.transpose(1, 2)) * spec.scale;
                let scores = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
                scores.softmax(-1, None).matmul(&v).transpose(0, 1)
            })
            .collect();
        Tensor::cat(&parts, 0)
    }

    #[test]
    fn sequences_end_to_end_are_the_layouts() {
        let span = |start, len, prefix| Span { start, len, prefix };
        let layouts = [
            (Layout::sequences(&[5, 1, 7]), 13),
            (Layout::sequences(&[4, 0, 3]), 10),
            (
                Layout {
                    spans: vec![
                        span(0, 4, None),
                        span(4, 3, Some(0)),
                        span(7, 2, Some(0)),
                        span(9, 5, None),
                    ],
                },
                16,
            ),
            (
                Layout {
                    spans: vec![span(2, 3, None), span(6, 2, Some(0)), span(9, 1, None)],
                },
                11,
            ),
        ];
        for (layout, rows) in layouts {
            for window in [None, Some(1), Some(3)] {
                let spec = AttendSpec { scale: 0.4, window };
                let [q, k, v] = [(6, 0.37), (2, 0.21), (2, 0.53)]
                    .map(|(heads, step)| wave(&[rows, heads, 8], step).set_requires_grad(true));
                let dy = wave(&[rows, 6, 8], 0.11);
                let exact = Packed::padded(&layout, rows as usize, Device::Cpu).unwrap();
                let exact = exact.attend(0, &q, &k, &v, &spec);
                let plan = Plan::new(&layout);
                let moved = Rows::new(&plan, rows as usize, Device::Cpu);
                let (sq, sk, sv) = moved.take(&q, &k, &v);
                let ours = moved.put(&end_to_end(&plan, &sq, &sk, &sv, &spec));
                let near = |a: &Tensor, b: &Tensor| {
                    let apart = (a - b).abs().max().double_value(&[]);
                    assert!(apart < 1e-12, "{apart} for {layout:?}, window {window:?}");
                };
                near(&ours, &exact);
                let grads = |y: &Tensor| vjp(&[y], &[&dy], &[&q, &k, &v], false).unwrap();
                for (a, b) in grads(&ours).iter().zip(&grads(&exact)) {
                    near(a.as_ref().unwrap(), b.as_ref().unwrap());
                }
            }
        }
    }

    #[test]
    fn what_flash_attention_does_not_take_is_packed() {
        let layout = Layout::sequences(&[3, 2]);
        let flash = Flash::new(&layout, 6, Device::Cpu).unwrap();
        let spec = AttendSpec {
            scale: 0.5,
            window: None,
        };
        let [q, k, v] = [0.1, 0.2, 0.3].map(|step| wave(&[6, 2, 8], step));
        let packed = Packed::padded(&layout, 6, Device::Cpu).unwrap();
        let (ours, theirs) = (
            flash.attend(0, &q, &k, &v, &spec),
            packed.attend(0, &q, &k, &v, &spec),
        );
        assert!(ours.equal(&theirs));
        assert_eq!(flash.sequences.max_q, 3);
        assert!(Flash::new(&Layout::sequences(&[7]), 6, Device::Cpu).is_err());
    }
}
