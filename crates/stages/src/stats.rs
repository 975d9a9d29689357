//! Estimates with 95% confidence intervals.

/// An estimate and its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Two-sided 95% quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// The mean of one value per task, tasks being independent. For values in {0, 1} Wilson's score
/// interval, else the normal approximation. None without values.
pub fn mean(values: &[f64]) -> Option<Estimate> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let value = values.iter().sum::<f64>() / n;
    if values.iter().all(|v| *v == 0.0 || *v == 1.0) {
        let centre = (value + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let spread = value * (1.0 - value) / n + Z * Z / (4.0 * n * n);
        let half = Z * spread.sqrt() / (1.0 + Z * Z / n);
        return Some(Estimate {
            value,
            low: (centre - half).max(0.0),
            high: (centre + half).min(1.0),
        });
    }
    let half = Z * standard_error(values, value);
    Some(Estimate {
        value,
        low: value - half,
        high: value + half,
    })
}

/// `exp(sum of nll / sum of tokens)` over sequences `(nll, tokens)`, with the interval of a ratio
/// of sums over independent sequences. None without tokens.
pub fn perplexity(sequences: &[(f64, usize)]) -> Option<Estimate> {
    let tokens: f64 = sequences.iter().map(|(_, n)| *n as f64).sum();
    if tokens == 0.0 {
        return None;
    }
    let rate = sequences.iter().map(|(nll, _)| nll).sum::<f64>() / tokens;
    let per_sequence = tokens / sequences.len() as f64;
    let residuals: Vec<f64> = sequences
        .iter()
        .map(|(nll, n)| (nll - rate * *n as f64) / per_sequence)
        .collect();
    let half = Z * standard_error(&residuals, 0.0);
    Some(Estimate {
        value: rate.exp(),
        low: (rate - half).exp(),
        high: (rate + half).exp(),
    })
}

fn standard_error(values: &[f64], mean: f64) -> f64 {
    let n = values.len() as f64;
    if values.len() < 2 {
        return 0.0;
    }
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (squares / (n - 1.0) / n).sqrt()
}

/// Unbiased probability that at least one of `k` samples is right, of `n` sampled with `c` right:
/// `1 - C(n-c, k) / C(n, k)` (Chen et al. 2021).
pub fn pass_at_k(n: usize, c: usize, k: usize) -> f64 {
    if n - c < k {
        return 1.0;
    }
    1.0 - (n - c + 1..=n)
        .map(|i| 1.0 - k as f64 / i as f64)
        .product::<f64>()
}

/// Whether the most frequent answer among the first `k` is right; of equally frequent ones the
/// answer that came first counts. `answers`: the answer of each sample and whether it is right.
pub fn cons_at_k<A: PartialEq>(answers: &[(A, bool)], k: usize) -> bool {
    let first = &answers[..k.min(answers.len())];
    let votes = |answer: &A| first.iter().filter(|(other, _)| other == answer).count();
    let mut best: Option<(usize, bool)> = None;
    for (answer, right) in first {
        let count = votes(answer);
        if best.is_none_or(|(most, _)| count > most) {
            best = Some((count, *right));
        }
    }
    best.is_some_and(|(_, right)| right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_one() {
        // of C(5, 2) = 10 pairs, C(3, 2) = 3 hold none of the 2 right ones
        assert!((pass_at_k(5, 2, 2) - 0.7).abs() < 1e-12);
        assert_eq!(pass_at_k(4, 0, 2), 0.0);
        assert_eq!(pass_at_k(4, 3, 2), 1.0);
        assert!((pass_at_k(8, 3, 1) - 3.0 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn the_majority_decides() {
        let answers = [("7", false), ("8", true), ("8", true), ("9", false)];
        assert!(cons_at_k(&answers, 4));
        assert!(!cons_at_k(&answers, 2), "a tie goes to the first answer");
    }

    #[test]
    fn intervals_cover_their_estimate() {
        let accuracy = mean(&[1.0, 1.0, 0.0, 1.0]).unwrap();
        assert_eq!(accuracy.value, 0.75);
        // Wilson: statsmodels proportion_confint(3, 4, method="wilson")
        assert!((accuracy.low - 0.300641842582).abs() < 1e-9, "{accuracy:?}");
        assert!(
            (accuracy.high - 0.954412739953).abs() < 1e-9,
            "{accuracy:?}"
        );
        let all = mean(&[1.0; 10]).unwrap();
        assert!(all.low < 1.0 && (all.high - 1.0).abs() < 1e-12, "{all:?}");
        let perplexity = perplexity(&[(2.0, 2), (2.0, 2)]).unwrap();
        assert!((perplexity.value - 1f64.exp()).abs() < 1e-12);
        assert!((perplexity.low - perplexity.high).abs() < 1e-12);
        assert!(mean(&[]).is_none());
    }
}
