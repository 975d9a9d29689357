//! Whether a sequence goes up or down: the test of Mann (1945) and Kendall (1975), which asks only
//! for the order of values, so that one spike decides nothing.

/// Fewest values: below 8 the normal approximation of S is poor.
pub const LEAST: usize = 8;

/// z for 5%, one-sided.
pub const CRITICAL: f64 = 1.644_853_626_951_472_7;

/// Kendall's z of a sequence: below -1.645 it falls, above 1.645 it rises, at 5% one-sided.
///
/// With S the number of pairs (i < j) that rise less those that fall, and t the sizes of groups of
/// equal values: `var = (n (n - 1) (2n + 5) - sum t (t - 1) (2t + 5)) / 18`, and
/// `z = (S - sign(S)) / sqrt(var)`. All values equal: 0. The test takes the values' noise as
/// independent; noise that is alike from step to step makes it say "trend" more often.
pub fn mann_kendall(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let pairs = n * (n - 1.0) / 2.0;
    let mut sorted = values.to_vec();
    let fallen = inversions(&mut sorted) as f64;
    let (mut tied, mut correction) = (0.0, 0.0);
    for group in sorted.chunk_by(|a, b| a == b) {
        let t = group.len() as f64;
        tied += t * (t - 1.0) / 2.0;
        correction += t * (t - 1.0) * (2.0 * t + 5.0);
    }
    let s = pairs - tied - 2.0 * fallen;
    let variance = (n * (n - 1.0) * (2.0 * n + 5.0) - correction) / 18.0;
    if s == 0.0 || variance <= 0.0 {
        return 0.0;
    }
    (s - s.signum()) / variance.sqrt()
}

/// Sorts, and counts the pairs that stood in falling order: by merging, since windows may be long.
fn inversions(values: &mut [f64]) -> u64 {
    let half = values.len() / 2;
    if half == 0 {
        return 0;
    }
    let (left, right) = values.split_at_mut(half);
    let mut count = inversions(left) + inversions(right);
    let (left, right) = (left.to_vec(), right.to_vec());
    let (mut i, mut j) = (0, 0);
    for slot in values {
        if j == right.len() || i < left.len() && left[i] <= right[j] {
            *slot = left[i];
            i += 1;
        } else {
            count += (left.len() - i) as u64;
            *slot = right[j];
            j += 1;
        }
    }
    count
}
