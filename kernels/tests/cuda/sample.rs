//! Choice of tokens, against a choice by sorting.

use kernels::cuda::Machine;
use kernels::cuda::sample::{Chosen, Picks, choose};
use tch::{Kind, Tensor};

use crate::support::{KINDS, copy, given, ints, machines, noise};

#[derive(Clone, Copy)]
struct Pick {
    row: i64,
    by: f32,
    top_k: i64,
    top_p: f32,
    draw: u64,
}

fn run(machine: &dyn Machine, logits: &Tensor, picks: &[Pick]) -> Chosen {
    let floats = |f: &dyn Fn(&Pick) -> f32| {
        let values: Vec<f32> = picks.iter().map(f).collect();
        copy(machine, &Tensor::from_slice(&values))
    };
    let rows = ints(
        machine,
        &picks.iter().map(|p| p.row).collect::<Vec<_>>(),
        Kind::Int,
    );
    let top_k = ints(
        machine,
        &picks.iter().map(|p| p.top_k).collect::<Vec<_>>(),
        Kind::Int,
    );
    let draws = ints(
        machine,
        &picks.iter().map(|p| p.draw as i64).collect::<Vec<_>>(),
        Kind::Int64,
    );
    let (by, top_p) = (floats(&|p| p.by), floats(&|p| p.top_p));
    let picks = Picks {
        rows: &rows,
        by: &by,
        top_k: &top_k,
        top_p: &top_p,
        draws: &draws,
    };
    choose(machine, logits, &picks).unwrap()
}

/// Probabilities of the tokens that the filters leave, in fp64, not summing to 1; those left out have 0.
fn kept(logits: &[f64], pick: &Pick) -> Vec<f64> {
    let z: Vec<f64> = logits
        .iter()
        .map(|x| f64::from((*x as f32) * pick.by))
        .collect();
    let most = z.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    let weights: Vec<f64> = z.iter().map(|z| (z - most).exp()).collect();
    let mut order: Vec<usize> = (0..z.len()).collect();
    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
    if pick.top_k > 0 {
        order.truncate(pick.top_k as usize);
    }
    let whole: f64 = order.iter().map(|&i| weights[i]).sum();
    let (mut sum, mut count) = (0.0, 0);
    while count < order.len()
        && (count == 0 || sum < f64::from(pick.top_p) * whole || pick.top_p == 1.0)
    {
        sum += weights[order[count]];
        count += 1;
    }
    let mut out = vec![0.0; z.len()];
    for &i in &order[..count] {
        out[i] = weights[i];
    }
    out
}

/// The token at which the running sum passes `u` of the whole, and how near the draw came to another.
fn token(weights: &[f64], draw: u64) -> (usize, f64) {
    let u = draw as f64 / 2f64.powi(64);
    let total: f64 = weights.iter().sum();
    let (mut sum, mut near) = (0.0, f64::INFINITY);
    let mut chosen = None;
    for (i, w) in weights.iter().enumerate() {
        sum += w / total;
        near = near.min((sum - u).abs());
        if chosen.is_none() && sum > u && *w > 0.0 {
            chosen = Some(i);
        }
    }
    (chosen.unwrap_or(weights.len() - 1), near)
}

#[test]
fn choices_are_those_of_a_sort() {
    let (mut compared, mut skipped) = (0, 0);
    for (c, n) in [1, 5, 31, 660, 4097].into_iter().enumerate() {
        for kind in KINDS {
            let machine = machines()[c % 3];
            let rows = 3;
            let (logits, exact) = given(machine, &(noise(&[rows, n], 5 + c as u64) * 3.0), kind);
            let exact: Vec<Vec<f64>> = (0..rows)
                .map(|r| Vec::try_from(exact.get(r)).unwrap())
                .collect();
            let mut picks = Vec::new();
            for (i, (top_k, top_p)) in [
                (0, 1.0),
                (1, 1.0),
                (3, 1.0),
                (0, 0.9),
                (0, 0.1),
                (40, 0.7),
                (0, 0.999),
                (n + 9, 0.5),
                (2, 0.0001),
            ]
            .into_iter()
            .enumerate()
            {
                for draw in 0..6u64 {
                    picks.push(Pick {
                        row: (i as i64 + draw as i64) % rows,
                        by: [1.0, 1.4, 0.5][draw as usize % 3],
                        top_k,
                        top_p,
                        draw: [
                            0,
                            u64::MAX,
                            1 << 63,
                            0x3333_3333_3333_3333,
                            0xdead_beef_0123_4567,
                            77 << 55,
                        ][draw as usize],
                    });
                }
            }
            let chosen = run(machine, &logits, &picks);
            for (i, pick) in picks.iter().enumerate() {
                let row = &exact[pick.row as usize];
                let weights = kept(row, pick);
                let ours = chosen.tokens.int64_value(&[i as i64]);
                assert!(
                    ours >= 0 && weights[ours as usize] > 0.0,
                    "a token that the filters leave"
                );
                let (want, near) = token(&weights, pick.draw);
                // a draw within rounding of two tokens may give either
                match near > 1e-6 {
                    true => assert_eq!(
                        ours, want as i64,
                        "{n} tokens, top {}, {}",
                        pick.top_k, pick.top_p
                    ),
                    false => skipped += 1,
                }
                compared += 1;
                let z: Vec<f64> = row.iter().map(|x| x * f64::from(pick.by)).collect();
                let most = z.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let lse = most + z.iter().map(|z| (z - most).exp()).sum::<f64>().ln();
                let apart = chosen.logprobs.double_value(&[i as i64]) - (z[ours as usize] - lse);
                assert!(apart.abs() < 1e-5, "log-probability is {apart} off");
            }
        }
    }
    assert!(
        skipped < compared / 2,
        "{skipped} of {compared} draws lay between two tokens"
    );
}

#[test]
fn equal_logits_are_kept_in_order() {
    let machine = machines()[2];
    // 700 equal tokens between a greater and a smaller one: ties in several warps' stretches
    let mut x = vec![1.0; 702];
    x[650] = 2.0;
    x[3] = 0.0;
    let (logits, _) = given(machine, &Tensor::from_slice(&x).view([1, 702]), Kind::Float);
    let pick = |draw| Pick {
        row: 0,
        by: 1.0,
        top_k: 5,
        top_p: 1.0,
        draw,
    };
    // kept: 650 with weight 1, and the first four others (0, 1, 2, 4) with exp(-1) each
    let draws: Vec<Pick> = (0..200u64)
        .map(|i| pick(i << 56 | 1 << 50))
        .chain([pick(u64::MAX)])
        .collect();
    let chosen = run(machine, &logits, &draws);
    let mut counts = std::collections::BTreeMap::new();
    for i in 0..200 {
        *counts.entry(chosen.tokens.int64_value(&[i])).or_insert(0) += 1;
    }
    assert_eq!(
        counts.keys().copied().collect::<Vec<_>>(),
        [0, 1, 2, 4, 650]
    );
    assert_eq!(chosen.tokens.int64_value(&[200]), 650);
    // a share that ends among the equal ones: 650 and the first of them
    let e = (-1.0f64).exp();
    let share = ((1.0 + 0.5 * e) / (1.0 + 700.0 * e + (-2.0f64).exp())) as f32;
    let some = Pick {
        top_k: 0,
        top_p: share,
        ..pick(0)
    };
    let last = Pick {
        draw: u64::MAX,
        ..some
    };
    let chosen = run(machine, &logits, &[some, last]);
    assert_eq!(
        (
            chosen.tokens.int64_value(&[0]),
            chosen.tokens.int64_value(&[1])
        ),
        (0, 650)
    );
}

#[test]
fn greedy_takes_the_first_of_the_most_likely_and_what_is_no_number_is_told() {
    for machine in machines() {
        let mut x = vec![vec![0.5; 600]; 5];
        x[0][77] = 3.0;
        x[0][599] = 3.0;
        x[1][0] = f64::NAN;
        x[2][599] = f64::INFINITY;
        x[3] = vec![f64::NEG_INFINITY; 600];
        x[4] = vec![f64::NEG_INFINITY; 600];
        x[4][321] = -7.0;
        let flat: Vec<f64> = x.concat();
        let (logits, _) = given(
            machine,
            &Tensor::from_slice(&flat).view([5, 600]),
            Kind::Float,
        );
        let greedy = |row| Pick {
            row,
            by: 0.0,
            top_k: 3,
            top_p: 0.5,
            draw: 1 << 62,
        };
        let drawn = |row| Pick {
            by: 1.0,
            top_k: 0,
            top_p: 1.0,
            ..greedy(row)
        };
        let picks: Vec<Pick> = (0..5).map(greedy).chain((1..5).map(drawn)).collect();
        let chosen = run(machine, &logits, &picks);
        let tokens: Vec<i64> = (0..9).map(|i| chosen.tokens.int64_value(&[i])).collect();
        assert_eq!(tokens, [77, -1, -1, -1, 321, -1, -1, -1, 321]);
        assert!(chosen.logprobs.double_value(&[1]).is_nan());
        assert_eq!(chosen.logprobs.double_value(&[4]), 0.0);
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let machine = machines()[0];
    let (logits, exact) = given(machine, &noise(&[1, 12], 3), Kind::BFloat16);
    let row: Vec<f64> = Vec::try_from(exact.get(0)).unwrap();
    let n = 400u64;
    let picks: Vec<Pick> = (0..n)
        .map(|i| Pick {
            row: 0,
            by: 1.0,
            top_k: 6,
            top_p: 0.95,
            draw: (2 * i + 1) * (u64::MAX / (2 * n)),
        })
        .collect();
    let chosen = run(machine, &logits, &picks);
    let weights = kept(&row, &picks[0]);
    let total: f64 = weights.iter().sum();
    for (t, w) in weights.iter().enumerate() {
        let count = (0..n as i64)
            .filter(|&i| chosen.tokens.int64_value(&[i]) == t as i64)
            .count();
        // evenly spaced draws: off by one at each end
        assert!(
            (count as f64 - n as f64 * w / total).abs() <= 2.0,
            "token {t}"
        );
    }
}
