//! The attention kernel, forward and backward, against libtorch in f64.

use kernels::Spans;
use model::{Attend, AttendSpec, Layout, Packed, Span};
use tch::{Device, Kind, Tensor};
use torch::autograd::vjp;

fn wave(shape: &[i64], step: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, (Kind::Double, Device::Cpu)) * step).sin() * 2.0).reshape(shape)
}

fn norm(x: &Tensor) -> f64 {
    x.to_kind(Kind::Double).norm().double_value(&[])
}

fn spans(layout: &Layout) -> Spans {
    Spans::new(layout, layout.rows(), Device::Cpu).unwrap()
}

fn layouts() -> Vec<(&'static str, Layout)> {
    let mut group = Layout::sequences(&[3]);
    for (prompt, branches) in [(17, &[4, 1, 66][..]), (5, &[9, 0, 30])] {
        let p = group.push(prompt, None);
        for &n in branches {
            group.push(n, Some(p));
        }
    }
    let span = |start, len, prefix| Span { start, len, prefix };
    let gaps = Layout {
        spans: vec![span(2, 4, None), span(9, 6, Some(0)), span(20, 0, None)],
    };
    vec![
        ("none", Layout::default()),
        ("one", Layout::sequences(&[1])),
        ("mixed", Layout::sequences(&[1, 8, 0, 33, 9, 2, 20])),
        ("long", Layout::sequences(&[201, 3, 64])),
        ("group", group),
        ("gaps", gaps),
    ]
}

/// Output and gradients, the inputs rounded to `kind` and computed in `compute`.
fn run(
    attend: &dyn Attend,
    [heads, kv_heads, d]: [i64; 3],
    rows: i64,
    spec: &AttendSpec,
    [kind, compute]: [Kind; 2],
) -> Vec<Tensor> {
    let make = |heads, step| {
        let x = wave(&[rows, heads, d], step).to_kind(kind).to_kind(compute);
        x.set_requires_grad(true)
    };
    let inputs = [
        make(heads, 0.37),
        make(kv_heads, 0.73),
        make(kv_heads, 0.19),
    ];
    let out = attend.attend(0, &inputs[0], &inputs[1], &inputs[2], spec);
    let d_out = wave(&out.size(), 0.7).to_kind(kind).to_kind(compute);
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let grads = vjp(&[&out], &[&d_out], &refs, false).unwrap();
    // where there is no row there is no graph
    let grads = grads.into_iter().zip(&inputs);
    let grads = grads.map(|(g, x)| g.unwrap_or_else(|| x.zeros_like()));
    std::iter::once(out.detach()).chain(grads).collect()
}

#[test]
fn values_and_gradients_are_those_of_libtorch_in_f64() {
    for (name, layout) in layouts() {
        for shape in [[4, 2, 32], [3, 1, 18], [2, 2, 7], [7, 1, 16], [8, 2, 80]] {
            for window in [None, Some(1), Some(5), Some(70)] {
                // backward reads the output as it was rounded, as libtorch's does
                for (kind, limit) in [(Kind::Float, 4e-6), (Kind::BFloat16, 3e-2)] {
                    let spec = AttendSpec {
                        scale: 0.37,
                        window,
                    };
                    let rows = layout.rows() as i64;
                    let spans = spans(&layout);
                    let packed = Packed::new(&layout, Device::Cpu).unwrap();
                    let got = run(&spans, shape, rows, &spec, [kind, kind]);
                    let want = run(&packed, shape, rows, &spec, [kind, Kind::Double]);
                    let most = want.iter().map(norm).fold(0.0, f64::max);
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        assert_eq!(got.kind(), kind);
                        let off = norm(&(got.to_kind(Kind::Double) - want));
                        // who sees one key has no gradient but by rounding
                        let limit = match norm(want) {
                            0.0 => 1e-3 * most,
                            size => limit * size,
                        };
                        let case = format!("{name} {shape:?} {window:?} {kind:?} {i}");
                        assert!(off <= limit, "{case}: off by {off} > {limit}");
                    }
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let layout = Layout::sequences(&[70, 130, 64, 1, 90]);
    let spans = spans(&layout);
    let spec = AttendSpec {
        scale: 0.2,
        window: None,
    };
    let rows = layout.rows() as i64;
    let run = |threads| {
        torch::threads::set(threads);
        run(&spans, [8, 4, 32], rows, &spec, [Kind::Float, Kind::Float])
    };
    for (one, two) in run(1).iter().zip(run(2)) {
        assert!(one.equal(&two));
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_any_company() {
    let spec = AttendSpec {
        scale: 0.2,
        window: None,
    };
    let values = |rows, heads| wave(&[rows, heads, 32], 0.37).to_kind(Kind::Float);
    let run = |lengths: &[usize]| {
        let layout = Layout::sequences(lengths);
        let rows = layout.rows() as i64;
        let (q, k) = (values(rows, 4), values(rows, 2));
        let spans = spans(&layout);
        spans.attend(0, &q, &k, &k, &spec).narrow(0, 0, 70)
    };
    assert!(run(&[70]).equal(&run(&[70, 3, 200])));
}

#[test]
fn what_is_no_number_shows() {
    let layout = Layout::sequences(&[9]);
    let spans = spans(&layout);
    let spec = AttendSpec {
        scale: 1.0,
        window: None,
    };
    for part in 0..3 {
        let x = [0.1, 0.2, 0.3].map(|step| wave(&[9, 1, 8], step).to_kind(Kind::Float));
        let _ = x[part].get(4).get(0).get(3).fill_(f64::NAN);
        let out = spans.attend(0, &x[0], &x[1], &x[2], &spec);
        assert!(
            out.get(4).isnan().any().int64_value(&[]) == 1,
            "input {part}"
        );
    }
}

#[test]
fn padding_after_the_rows_gives_zeros() {
    let layout = Layout::sequences(&[5]);
    let spec = AttendSpec {
        scale: 1.0,
        window: None,
    };
    let x = wave(&[8, 1, 4], 0.37).to_kind(Kind::Float);
    let padded = Spans::new(&layout, 8, Device::Cpu).unwrap();
    let out = padded.attend(0, &x, &x, &x, &spec);
    assert_eq!(out.narrow(0, 5, 3).abs().max().double_value(&[]), 0.0);
    let own = x.narrow(0, 0, 5);
    let alone = spans(&layout).attend(0, &own, &own, &own, &spec);
    assert!(out.narrow(0, 0, 5).equal(&alone));
}
