//! A completion has the same bits alone and in any batch.

use crate::common::{model, requests};
use rollout::{Rollout, RolloutConfig, Sample};
use tch::Kind;

fn bits(s: &Sample) -> (u64, usize, Vec<u32>, Vec<u32>) {
    (
        s.request,
        s.sample,
        s.tokens.clone(),
        s.logprobs.iter().map(|p| p.to_bits()).collect(),
    )
}

#[test]
fn alone_and_in_any_batch() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (decoder, weights) = model(kind);
        let sizes = |max_rows, max_sequences, threads| RolloutConfig {
            max_rows,
            max_sequences,
            threads,
            cache_tokens: 8192,
            ..RolloutConfig::default()
        };
        let alone: Vec<_> = requests(24)
            .into_iter()
            .flat_map(|r| {
                let mut rollout = Rollout::new(&decoder, &weights, sizes(1024, 256, 1)).unwrap();
                rollout.run_all(vec![r]).unwrap()
            })
            .map(|s| bits(&s))
            .collect();
        assert!(alone.iter().any(|s| s.2.len() > 20));
        for (max_rows, max_sequences, threads) in [
            (1024, 256, 2),
            (1, 1, 1),
            (7, 256, 3),
            (64, 5, 2),
            (33, 33, 2),
        ] {
            let mut rollout =
                Rollout::new(&decoder, &weights, sizes(max_rows, max_sequences, threads)).unwrap();
            let together: Vec<_> = rollout
                .run_all(requests(24))
                .unwrap()
                .iter()
                .map(bits)
                .collect();
            assert!(
                together == alone,
                "{kind:?} rows {max_rows} sequences {max_sequences} threads {threads}"
            );
            // other company, other order
            let mut some: Vec<_> = requests(24).into_iter().filter(|r| r.id % 5 != 2).collect();
            some.reverse();
            for s in rollout.run_all(some).unwrap() {
                let same = alone
                    .iter()
                    .find(|a| (a.0, a.1) == (s.request, s.sample))
                    .unwrap();
                assert!(
                    bits(&s) == *same,
                    "{kind:?} request {} in other company",
                    s.request
                );
            }
        }
    }
}

#[test]
fn seeds_requests_and_samples_draw_apart() {
    let (decoder, weights) = model(Kind::Float);
    let mut rollout = Rollout::new(&decoder, &weights, RolloutConfig::default()).unwrap();
    let mut base = requests(1).remove(0);
    (
        base.samples,
        base.sampling.max_tokens,
        base.sampling.top_k,
        base.sampling.top_p,
    ) = (4, 30, 0, 1.0);
    let mut other_id = base.clone();
    other_id.id = 99;
    let mut other_seed = base.clone();
    other_seed.sampling.seed = 6;
    let all = rollout.run_all(vec![base, other_id, other_seed]).unwrap();
    assert_eq!(all.len(), 12);
    for i in 0..12 {
        for j in 0..i {
            assert_ne!(all[i].tokens, all[j].tokens, "{i} and {j}");
        }
    }
}
