//! Attention over a paged cache, and writing to it.

use kernels::cuda::paged::{Cache, Seen, attend, write};
use tch::{Kind, Tensor};

use crate::support::{KINDS, close, given, ints, machines, noise};

/// Blocks of a sequence in an order that is not theirs in memory.
fn tables(lengths: &[i64], width: i64) -> Vec<i64> {
    let blocks = lengths.len() as i64 * width;
    // a number without a divisor in common with that of blocks
    let stride = (7..).find(|s| gcd(*s, blocks) == 1).unwrap();
    (0..blocks).map(|i| i * stride % blocks).collect()
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn attention_agrees_with_gathered_keys() {
    // heads, key heads, d, window, lengths
    type Case<'a> = (i64, i64, i64, Option<i64>, &'a [i64]);
    let cases: [Case; 8] = [
        (1, 1, 8, None, &[1]),
        (4, 2, 64, None, &[1, 16, 17, 0, 255, 256, 257]),
        (16, 8, 128, None, &[530, 3]),
        (8, 1, 32, None, &[100, 33]),
        (6, 2, 40, None, &[70, 300]),
        (3, 3, 256, None, &[20, 1]),
        (12, 2, 96, Some(50), &[10, 49, 50, 51, 400]),
        (2, 1, 16, Some(1), &[5, 300]),
    ];
    for (c, (heads, kv_heads, d, window, lengths)) in cases.into_iter().enumerate() {
        for kind in KINDS {
            let machine = machines()[c % 3];
            let rows = lengths.len() as i64;
            let longest = *lengths.iter().max().unwrap();
            let width = (longest + 15) / 16;
            let slots = rows * width * 16;
            let (q, qd) = given(machine, &noise(&[rows, heads, d], 1), kind);
            let (keys, kd) = given(machine, &noise(&[slots, kv_heads, d], 2), kind);
            let (values, vd) = given(machine, &noise(&[slots, kv_heads, d], 3), kind);
            let table = tables(lengths, width);
            let table_tensor = ints(machine, &table, Kind::Int).view([rows, width]);
            let lens = ints(machine, lengths, Kind::Int);
            let seen = Seen {
                tables: &table_tensor,
                lengths: &lens,
                longest,
                window,
            };
            let scale = 1.0 / (d as f64).sqrt();
            let cache = Cache {
                keys: &keys,
                values: &values,
            };
            let ours = attend(machine, &q, cache, &seen, scale).unwrap();
            for (row, &length) in lengths.iter().enumerate() {
                let one = ours.get(row as i64);
                if length == 0 {
                    assert_eq!(one.abs().max().double_value(&[]), 0.0);
                    continue;
                }
                let from = window.map_or(0, |w| (length - w).max(0));
                let at: Vec<i64> = (from..length)
                    .map(|t| table[row * width as usize + (t / 16) as usize] * 16 + t % 16)
                    .collect();
                let at = Tensor::from_slice(&at);
                let spread = |x: &Tensor| {
                    x.index_select(0, &at)
                        .repeat_interleave_self_int(heads / kv_heads, 1, None)
                        .transpose(0, 1)
                };
                let scores = spread(&kd).matmul(&qd.get(row as i64).unsqueeze(-1)) * scale;
                let p = scores.squeeze_dim(-1).softmax(-1, Kind::Double);
                let exact = p.unsqueeze(1).matmul(&spread(&vd)).squeeze_dim(1);
                close(&format!("case {c}, row {row}"), &one, &exact);
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let machine = machines()[2];
    let (heads, kv_heads, d, width) = (4, 2, 64, 40);
    let (q, _) = given(machine, &noise(&[3, heads, d], 1), Kind::Float);
    let (keys, _) = given(
        machine,
        &noise(&[3 * width * 16, kv_heads, d], 2),
        Kind::Float,
    );
    let (values, _) = given(
        machine,
        &noise(&[3 * width * 16, kv_heads, d], 3),
        Kind::Float,
    );
    let cache = Cache {
        keys: &keys,
        values: &values,
    };
    let table = ints(machine, &(0..3 * width).collect::<Vec<_>>(), Kind::Int).view([3, width]);
    let lens = ints(machine, &[300, 640, 17], Kind::Int);
    let seen = Seen {
        tables: &table,
        lengths: &lens,
        longest: 640,
        window: None,
    };
    let all = attend(machine, &q, cache, &seen, 0.1).unwrap();
    let (table, lens) = (table.narrow(0, 0, 1), lens.narrow(0, 0, 1));
    let seen = Seen {
        tables: &table,
        lengths: &lens,
        longest: 300,
        window: None,
    };
    let alone = attend(machine, &q.narrow(0, 0, 1), cache, &seen, 0.1).unwrap();
    assert!(alone.equal(&all.narrow(0, 0, 1)));
}

#[test]
fn rows_are_written_to_their_slots_and_nowhere_else() {
    for (kv_heads, d) in [(1, 1), (2, 8), (3, 5), (8, 128)] {
        for kind in KINDS {
            for machine in machines() {
                let (k, _) = given(machine, &noise(&[5, kv_heads, d], 1), kind);
                let (v, _) = given(machine, &noise(&[5, kv_heads, d], 2), kind);
                let (keys, _) = given(machine, &noise(&[32, kv_heads, d], 3), kind);
                let (values, _) = given(machine, &noise(&[32, kv_heads, d], 4), kind);
                let (want_keys, want_values) = (keys.copy(), values.copy());
                let at = [31, -1, 0, 7, 16];
                for (row, &slot) in at.iter().enumerate().filter(|(_, slot)| **slot >= 0) {
                    want_keys.get(slot).copy_(&k.get(row as i64));
                    want_values.get(slot).copy_(&v.get(row as i64));
                }
                let slots = ints(machine, &at, Kind::Int64);
                write(
                    machine,
                    &k,
                    &v,
                    &slots,
                    Cache {
                        keys: &keys,
                        values: &values,
                    },
                )
                .unwrap();
                assert!(keys.equal(&want_keys) && values.equal(&want_values));
            }
        }
    }
}
