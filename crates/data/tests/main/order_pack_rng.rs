//! Draws, orders and packing: golden values and properties.

use data::order::Order;
use data::pack::best_fit_decreasing;
use data::rng::Draw;
use proptest::prelude::*;

/// Never to change: stores and checkpoints depend on these values. Computed independently with
/// the blake3 package of Python (derive_key_context, digest(length=64)).
#[test]
fn draws_are_golden() {
    let mut draw = Draw::new(17, "order", 3, 5);
    let words: Vec<u64> = (0..10).map(|_| draw.u64()).collect();
    assert_eq!(words, GOLDEN_WORDS);
    let mut draw = Draw::new(0, "", 0, 0);
    assert_eq!(draw.u64(), GOLDEN_FIRST);
}

const GOLDEN_WORDS: [u64; 10] = [
    14894402166155094828,
    4335025092497356204,
    10142062235643724481,
    7533899510776735400,
    747962331864352118,
    2604615586810695813,
    17883384050980981062,
    12973751739030876984,
    7114629509704657908,
    3169086511665409454,
];
const GOLDEN_FIRST: u64 = 12521656046250452772;

#[test]
fn derived_draws_are_golden() {
    let mut draw = Draw::new(17, "test", 0, 0);
    let mut items: Vec<u32> = (0..10).collect();
    draw.shuffle(&mut items);
    let below: Vec<u64> = (0..6).map(|_| draw.below(10)).collect();
    let float = draw.f64();
    let order = Order::new(7, 1).take(0, 14);
    assert_eq!(
        format!("{items:?} {below:?} {float:.12} {order:?}"),
        GOLDEN_DERIVED
    );
}

const GOLDEN_DERIVED: &str = "[2, 4, 8, 7, 9, 0, 1, 3, 6, 5] [3, 8, 1, 8, 3, 8] 0.204061726117 \
    [0, 1, 6, 4, 5, 3, 2, 0, 2, 1, 3, 5, 4, 6]";

#[test]
fn every_argument_matters() {
    let first = |seed, purpose: &str, step, index| Draw::new(seed, purpose, step, index).u64();
    let all = [
        first(1, "a", 0, 0),
        first(2, "a", 0, 0),
        first(1, "b", 0, 0),
        first(1, "a", 1, 0),
        first(1, "a", 0, 1),
        first(1, "", 0, 0),
    ];
    for (i, x) in all.iter().enumerate() {
        assert!(!all[..i].contains(x));
    }
    assert_eq!(first(1, "a", 0, 0), first(1, "a", 0, 0));
}

#[test]
fn draws_have_their_distributions() {
    let mut draw = Draw::new(5, "test", 0, 0);
    let n = 60_000;
    // Chi-square over 6 faces, 5 degrees of freedom: 20.5 has probability 0.001.
    let mut faces = [0f64; 6];
    (0..n).for_each(|_| faces[draw.below(6) as usize] += 1.0);
    let expected = f64::from(n) / 6.0;
    let chi: f64 = faces
        .iter()
        .map(|c| (c - expected).powi(2) / expected)
        .sum();
    assert!(chi < 20.5, "{faces:?}");
    let normals: Vec<f64> = (0..n).map(|_| draw.normal()).collect();
    let moment = |k: i32| normals.iter().map(|x| x.powi(k)).sum::<f64>() / f64::from(n);
    assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03);
    assert!(moment(3).abs() < 0.06 && (moment(4) - 3.0).abs() < 0.2);
    let mut picks = [0f64; 3];
    (0..n).for_each(|_| picks[draw.weighted(&[1.0, 0.0, 3.0])] += 1.0);
    assert!(picks[1] == 0.0 && (picks[2] / picks[0] - 3.0).abs() < 0.15);
    assert_eq!(draw.below(0), 0);
    assert_eq!(draw.range(3, 3), 3);
    draw.range(i64::MIN, i64::MAX);
}

proptest! {
    #[test]
    fn bounded_draws_stay_in_bounds(seed: u64, n in 1u64.., low in -1000i64..1000, span in 0i64..1000) {
        let mut draw = Draw::new(seed, "test", 0, 0);
        prop_assert!(draw.below(n) < n);
        let x = draw.range(low, low + span);
        prop_assert!((low..=low + span).contains(&x));
        prop_assert!((0.0..1.0).contains(&draw.f64()));
        prop_assert!(draw.normal().is_finite());
    }

    #[test]
    fn each_epoch_takes_each_row_once(n in 1usize..200, seed: u64, epoch in 0u64..5) {
        let order = Order::new(n, seed);
        let mut rows = order.take(epoch * n as u64, n);
        rows.sort_unstable();
        prop_assert_eq!(rows, (0..n).collect::<Vec<_>>());
    }

    #[test]
    fn a_resumed_order_goes_on_where_it_stopped(n in 1usize..100, seed: u64, stop in 0u64..300, count in 0usize..300) {
        let whole = Order::new(n, seed).take(0, stop as usize + count);
        prop_assert_eq!(&whole[stop as usize..], Order::new(n, seed).take(stop, count));
    }

    #[test]
    fn packing_takes_all_and_overfills_none(
        lengths in prop::collection::vec(0usize..300, 0..200),
        capacity in 1usize..400,
    ) {
        let bins = best_fit_decreasing(&lengths, capacity);
        let mut seen: Vec<usize> = bins.iter().flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        let sums: Vec<usize> = bins.iter().map(|bin| bin.iter().map(|&i| lengths[i]).sum()).collect();
        for (bin, sum) in bins.iter().zip(&sums) {
            prop_assert!(*sum <= capacity || bin.len() == 1);
            prop_assert!(bin.windows(2).all(|w| w[0] < w[1]));
        }
        // No two bins could be one: best fit would have joined them.
        let mut small: Vec<usize> = sums.iter().copied().filter(|&s| s > 0).collect();
        small.sort_unstable();
        if small.len() > 1 {
            prop_assert!(small[0] + small[1] > capacity);
        }
    }

    #[test]
    fn packing_equals_the_quadratic_definition(
        lengths in prop::collection::vec(1usize..60, 0..60),
        capacity in 60usize..120,
    ) {
        let mut by_length: Vec<usize> = (0..lengths.len()).collect();
        by_length.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
        let mut bins: Vec<(usize, Vec<usize>)> = Vec::new();
        for i in by_length {
            let fits = (bins.iter().enumerate())
                .filter(|(_, (room, _))| *room >= lengths[i])
                .min_by_key(|(at, (room, _))| (*room, *at))
                .map(|(at, _)| at);
            let at = fits.unwrap_or_else(|| {
                bins.push((capacity, Vec::new()));
                bins.len() - 1
            });
            bins[at].0 -= lengths[i];
            bins[at].1.push(i);
        }
        let mut want: Vec<Vec<usize>> = bins.into_iter().map(|(_, bin)| bin).collect();
        want.iter_mut().for_each(|bin| bin.sort_unstable());
        prop_assert_eq!(best_fit_decreasing(&lengths, capacity), want);
    }
}

#[test]
fn orders_differ_by_epoch_and_seed() {
    let order = Order::new(50, 9);
    assert_ne!(order.take(0, 50), order.take(50, 50));
    assert_ne!(order.take(0, 50), Order::new(50, 10).take(0, 50));
    assert_eq!(Order::sequential(3).take(2, 4), [2, 0, 1, 2]);
}

#[test]
fn packing_is_dense_and_quick() {
    let mut draw = Draw::new(1, "test", 0, 0);
    let lengths: Vec<usize> = (0..200_000)
        .map(|_| 1 + draw.below(2048) as usize)
        .collect();
    let start = std::time::Instant::now();
    let bins = best_fit_decreasing(&lengths, 4096);
    // Quadratic time would take minutes.
    assert!(start.elapsed().as_secs() < 20);
    let filled: usize = lengths.iter().sum();
    assert!(filled as f64 / (bins.len() * 4096) as f64 > 0.999);
}
