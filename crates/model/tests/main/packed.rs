//! Packed attention beside a plain loop over queries.

use model::{Attend, AttendSpec, Layout, Packed, Share, Span};
use tch::{Device, Kind, Tensor};

/// Deterministic values that look random.
fn values(size: &[i64], salt: f64) -> Tensor {
    let n: i64 = size.iter().product();
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + salt)
        .sin()
        .view(size)
}

/// Attention by its definition, one query and head at a time.
fn plain(layout: &Layout, q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttendSpec) -> Tensor {
    let (heads, kv_heads) = (q.size()[1], k.size()[1]);
    let mut out: Vec<Tensor> = (0..q.size()[0]).map(|_| q.get(0).zeros_like()).collect();
    for span in &layout.spans {
        let mut rows: Vec<i64> = Vec::new();
        if let Some(p) = span.prefix.map(|p| layout.spans[p]) {
            rows.extend((p.start..p.start + p.len).map(|r| r as i64));
        }
        for own in 0..span.len {
            rows.push((span.start + own) as i64);
            let first = rows.len().saturating_sub(spec.window.unwrap_or(usize::MAX));
            let seen = Tensor::from_slice(&rows[first..]);
            let heads: Vec<Tensor> = (0..heads)
                .map(|h| {
                    let kv = h / (heads / kv_heads);
                    let keys = k.select(1, kv).index_select(0, &seen);
                    let vals = v.select(1, kv).index_select(0, &seen);
                    let query = q.get((span.start + own) as i64).get(h);
                    let p = (keys.matmul(&query) * spec.scale).softmax(0, None);
                    vals.tr().matmul(&p)
                })
                .collect();
            out[span.start + own] = Tensor::stack(&heads, 0);
        }
    }
    Tensor::stack(&out, 0)
}

fn layouts() -> Vec<(&'static str, Layout)> {
    let mut short_prefix = Layout::default();
    let p = short_prefix.push(5, None);
    for n in [9, 6, 0, 7] {
        short_prefix.push(n, Some(p));
    }
    let mut long_prefix = Layout::sequences(&[3]);
    let p = long_prefix.push(17, None);
    for n in [4, 1, 6] {
        long_prefix.push(n, Some(p));
    }
    let q = long_prefix.push(11, None);
    long_prefix.push(8, Some(q));
    let gaps = Layout {
        spans: vec![
            Span {
                start: 2,
                len: 4,
                prefix: None,
            },
            Span {
                start: 9,
                len: 6,
                prefix: Some(0),
            },
        ],
    };
    vec![
        ("one", Layout::sequences(&[13])),
        ("equal", Layout::sequences(&[6, 6, 6])),
        ("mixed", Layout::sequences(&[1, 8, 0, 3, 9, 2, 20])),
        ("long", Layout::sequences(&[150, 3])),
        ("short prefix", short_prefix),
        ("long prefix", long_prefix),
        ("gaps", gaps),
    ]
}

#[test]
fn values_and_gradients_are_those_of_the_definition() {
    for (name, layout) in layouts() {
        for window in [None, Some(1), Some(4), Some(70)] {
            let rows = layout.rows() as i64;
            let spec = AttendSpec {
                scale: 0.37,
                window,
            };
            let make = || {
                [(4, 0.1), (2, 0.2), (2, 0.3)]
                    .map(|(heads, salt)| values(&[rows, heads, 6], salt).set_requires_grad(true))
            };
            let ([q, k, v], [q2, k2, v2]) = (make(), make());
            let packed = Packed::new(&layout, Device::Cpu).unwrap();
            let got = packed.attend(0, &q, &k, &v, &spec);
            let want = plain(&layout, &q2, &k2, &v2, &spec);
            let off = (&got - &want).abs().max().double_value(&[]);
            assert!(off < 1e-12, "{name} {window:?}: off by {off}");

            let weight = values(&got.size(), 0.7);
            (&got * &weight).sum(Kind::Double).backward();
            (&want * &weight).sum(Kind::Double).backward();
            for (part, a, b) in [("q", &q, &q2), ("k", &k, &k2), ("v", &v, &v2)] {
                let off = (a.grad() - b.grad()).abs().max().double_value(&[]);
                assert!(off < 1e-11, "{name} {window:?} d{part}: off by {off}");
            }
        }
    }
}

#[test]
fn kinds_agree() {
    for (name, layout) in layouts() {
        let rows = layout.rows() as i64;
        let x = |heads, salt, kind| values(&[rows, heads, 8], salt).to_kind(kind);
        let run = |kind, window| {
            let spec = AttendSpec { scale: 0.3, window };
            let packed = Packed::new(&layout, Device::Cpu).unwrap();
            packed
                .attend(
                    0,
                    &x(4, 0.1, kind),
                    &x(2, 0.2, kind),
                    &x(2, 0.3, kind),
                    &spec,
                )
                .to_kind(Kind::Double)
        };
        for window in [None, Some(5)] {
            let want = run(Kind::Double, window);
            for (kind, most) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2)] {
                let off = (run(kind, window) - &want).abs().max().double_value(&[]);
                assert!(off < most, "{name} {kind:?} {window:?}: off by {off}");
            }
        }
    }
}

#[test]
fn a_bad_row_stays_in_its_own_span() {
    let layout = Layout::sequences(&[5, 9, 3]);
    let packed = Packed::new(&layout, Device::Cpu).unwrap();
    let x = || values(&[17, 2, 4], 0.5);
    let v = x();
    let _ = v.get(0).fill_(f64::NAN);
    for window in [None, Some(2)] {
        let spec = AttendSpec { scale: 1.0, window };
        let out = packed.attend(0, &x(), &x(), &v, &spec);
        let rest = out.narrow(0, 5, 12).isnan().any().int64_value(&[]);
        assert_eq!(rest, 0, "{window:?}");
    }
}

#[test]
fn bad_layouts_are_refused() {
    let span = |start, len, prefix| Span { start, len, prefix };
    for (spans, want) in [
        (
            vec![span(0, 4, None), span(3, 2, None)],
            "span 1 starts at row 3",
        ),
        (vec![span(0, 4, Some(0))], "span 0 has prefix 0"),
        (
            vec![span(0, 4, None), span(4, 2, Some(0)), span(6, 1, Some(1))],
            "has a prefix itself",
        ),
    ] {
        let error = Packed::new(&Layout { spans }, Device::Cpu).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

/// Rows dealt out one by one to `ranks` by a rule without pattern, each part padded by a row.
fn deal(rows: usize, ranks: usize) -> Vec<Vec<Option<usize>>> {
    let mut parts = vec![Vec::new(); ranks];
    for row in 0..rows {
        parts[(row * row + row / 5) % ranks].push(Some(row));
    }
    for part in &mut parts {
        part.push(None);
    }
    parts
}

#[test]
fn shares_give_the_rows_of_the_whole() {
    for (name, layout) in layouts() {
        for window in [None, Some(1), Some(4), Some(70)] {
            let rows = layout.rows() as i64;
            let spec = AttendSpec {
                scale: 0.37,
                window,
            };
            let [q, k, v] = [(4, 0.1), (2, 0.2), (2, 0.3)].map(|(h, s)| values(&[rows, h, 6], s));
            let want = plain(&layout, &q, &k, &v, &spec);
            for ranks in [1, 3] {
                let parts = deal(layout.rows(), ranks);
                let keys: Vec<_> = parts.concat().into_iter().rev().collect();
                // padding holds what no one may see
                let take = |x: &Tensor, rows: &[Option<usize>]| {
                    let rows = rows.iter().map(|r| match r {
                        Some(r) => x.get(*r as i64),
                        None => x.get(0) * 1e6,
                    });
                    Tensor::stack(&rows.collect::<Vec<_>>(), 0)
                };
                for queries in parts {
                    let share = Share {
                        queries: queries.clone(),
                        keys: keys.clone(),
                    };
                    let packed = Packed::shared(&layout, share, Device::Cpu).unwrap();
                    let (k, v) = (take(&k, &keys), take(&v, &keys));
                    let got = packed.attend(0, &take(&q, &queries), &k, &v, &spec);
                    for (at, row) in queries.iter().enumerate() {
                        let want = row.map_or(q.get(0) * 0.0, |r| want.get(r as i64));
                        let off = (got.get(at as i64) - want).abs().max().double_value(&[]);
                        assert!(off < 1e-12, "{name} {window:?} {row:?}: off by {off}");
                    }
                }
            }
            let more = Tensor::cat(&[&q, &(q.narrow(0, 0, 1) * 7.0)], 0);
            let packed = Packed::padded(&layout, rows as usize + 1, Device::Cpu).unwrap();
            let got = packed.attend(0, &more, &k, &v, &spec);
            let off = (got.narrow(0, 0, rows) - &want).abs().max();
            assert!(off.double_value(&[]) < 1e-12, "{name} {window:?}: padded");
            assert_eq!(got.get(rows).abs().max().double_value(&[]), 0.0);
        }
    }
}

#[test]
fn shares_that_do_not_fit_are_refused() {
    let layout = Layout::sequences(&[2, 1]);
    let rows = |r: &[usize]| r.iter().map(|&r| Some(r)).collect::<Vec<_>>();
    let of = |queries: &[usize], keys: &[usize]| {
        let share = Share {
            queries: rows(queries),
            keys: rows(keys),
        };
        Packed::shared(&layout, share, Device::Cpu).map(|_| ())
    };
    of(&[2], &[2, 1, 0]).unwrap();
    for (queries, keys, said) in [
        (
            &[0, 0][..],
            &[0, 1, 2][..],
            "row 0 2 times among its queries",
        ),
        (&[0], &[0, 2], "row 1 0 times among its queries and 0 times"),
        (&[3], &[0, 1, 2], "names row 3 of a layout of 3 rows"),
    ] {
        let error = of(queries, keys).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert!(Packed::padded(&layout, 2, Device::Cpu).is_err());
}
