//! A vocabulary cut over ranks against a whole one.

use std::time::Duration;

use parallel::{Groups, Solo};
use tch::Device;

use super::*;

const VOCABULARY: usize = 13;
const ROWS: i64 = 11;

fn wave(size: &[i64], salt: f64) -> Tensor {
    let n: i64 = size.iter().product();
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + salt)
        .sin()
        .view(size)
}

/// Two phases, then one: log-probabilities, entropies, gradients of hidden states and of the
/// matrix, each time.
fn values(ranks: &dyn Collective, chunk: Option<usize>) -> Vec<Tensor> {
    let part = arch::slice::even(VOCABULARY, ranks.size(), ranks.rank());
    let weight = wave(&[VOCABULARY as i64, 6], 0.3) * 3.0;
    let weight = weight.narrow(0, part.start as i64, part.len() as i64);
    let hidden = wave(&[ROWS, 6], 0.1) * 2.0;
    let targets = Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)) * 5;
    let targets = targets.remainder(VOCABULARY as i64);
    let (d_logp, d_entropy) = (wave(&[ROWS], 0.5), wave(&[ROWS], 0.8));
    let head = Head {
        temperature: 0.7,
        chunk,
        vocabulary: VOCABULARY,
        ranks,
    };
    let input = Input {
        hidden: &hidden,
        weight: &weight,
        targets: &targets,
    };
    let pull = Pull {
        logp: &d_logp,
        entropy: Some(&d_entropy),
    };
    let scored = head.score(input, true, true).expect("scored");
    let mut out = scored.values();
    let pulled = head.backward(input, scored, pull);
    out.extend([pulled.hidden, pulled.weight]);
    let (scored, pulled) = head.fused(input, false, pull).expect("fused");
    out.extend(scored.values());
    out.extend([pulled.hidden, pulled.weight]);
    out
}

fn on_ranks(size: usize, chunk: Option<usize>) -> Vec<Vec<Tensor>> {
    let port = parallel::free_port().expect("a port");
    let mesh = arch::mesh::Mesh {
        tp: size,
        ..arch::mesh::Mesh::solo()
    };
    let ranks = (0..size).map(|rank| {
        std::thread::spawn(move || {
            let deadline = Duration::from_secs(60);
            let groups =
                Groups::join(mesh, rank, "127.0.0.1", port, deadline, Device::Cpu).expect("joined");
            let values = values(&*groups.tp, chunk);
            groups.tp.barrier("end").expect("all there");
            values
        })
    });
    let ranks: Vec<_> = ranks.collect();
    let join = |rank: std::thread::JoinHandle<_>| rank.join().expect("a rank");
    ranks.into_iter().map(join).collect()
}

#[test]
fn ranks_that_share_a_vocabulary_give_the_values_of_one() {
    for (size, chunk) in [(2, None), (3, Some(4))] {
        let want = values(&Solo, chunk);
        let got = on_ranks(size, chunk);
        for (i, want) in want.iter().enumerate() {
            let parts = got.iter().map(|rank| rank[i].shallow_clone());
            let all = match i % 4 {
                2 => parts.reduce(|a, b| a + b).expect("ranks"),
                3 => Tensor::cat(&parts.collect::<Vec<_>>(), 0),
                _ => {
                    let first = got[0][i].shallow_clone();
                    assert!(got.iter().all(|rank| rank[i].equal(&first)), "{size} {i}");
                    first
                }
            };
            assert_eq!(all.size(), want.size());
            let off = (&all - want).norm().double_value(&[]) / want.norm().double_value(&[]);
            assert!(off < 1e-13, "{size} ranks, value {i} is off by {off:e}");
        }
    }
}
