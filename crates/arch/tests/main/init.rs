//! Fresh values: known draws, slices, and the shape of the distribution.

use arch::init::Normals;

#[test]
fn a_slice_alone_is_the_slice_of_the_whole() {
    let draws = Normals::new(17, "model.norm.weight");
    let mut whole = vec![0.0; 1003];
    draws.fill(0, 0.5, &mut whole);
    for (first, len) in [(0, 5), (1, 4), (3, 9), (6, 1), (997, 6), (2, 0)] {
        let mut part = vec![0.0; len];
        draws.fill(first as u64, 0.5, &mut part);
        assert_eq!(part, whole[first..first + len], "{first}..+{len}");
    }
}

#[test]
fn draws_are_standard_normal_and_independent_of_one_another() {
    let n = 200_000;
    let sample = |seed, name| {
        let mut out = vec![0.0; n];
        Normals::new(seed, name).fill(0, 1.0, &mut out);
        out
    };
    let (a, b, c) = (sample(1, "a"), sample(1, "b"), sample(2, "a"));
    let moment =
        |x: &[f32], p: i32| x.iter().map(|v| f64::from(*v).powi(p)).sum::<f64>() / n as f64;
    let dot = |x: &[f32], y: &[f32]| {
        x.iter().zip(y).map(|(a, b)| f64::from(a * b)).sum::<f64>() / n as f64
    };
    // five standard errors
    let most = 5.0 / (n as f64).sqrt();
    for x in [&a, &b, &c] {
        assert!(moment(x, 1).abs() < most);
        assert!((moment(x, 2) - 1.0).abs() < most * 2f64.sqrt());
        assert!((moment(x, 4) - 3.0).abs() < most * 96f64.sqrt());
        assert!(dot(&x[1..], &x[..n - 1]).abs() < most);
        let within = x.iter().filter(|v| v.abs() < 1.0).count() as f64 / n as f64;
        assert!((within - 0.682_689).abs() < most);
    }
    assert!(dot(&a, &b).abs() < most && dot(&a, &c).abs() < most);
}
