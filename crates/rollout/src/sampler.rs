//! Chooses tokens from logits.
//!
//! A choice is a function of the row's logits, the sampling values and one uniform draw keyed by
//! (seed, request, sample, position); sums are taken in a fixed order.

use crate::Sampling;
use crate::device::{Arriving, upload};
use data::rng::Draw;
use kernels::elem::{Elem, LANES, exp_neg};
use kernels::multiversion;
use tch::{Device, Tensor};

/// Tokens whose probabilities are summed in f32 before f64 takes over.
const CHUNK: usize = 64;

/// What a choice is made for.
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    pub sampling: &'a Sampling,
    pub request: u64,
    pub sample: usize,
    /// Place in its sequence of the token to be chosen.
    pub position: usize,
}

impl Pick<'_> {
    /// The draw that decides.
    pub fn draw(&self) -> Draw {
        let index = (self.sample as u64) << 32 | self.position as u64;
        Draw::new(self.sampling.seed, "sample", self.request, index)
    }
}

/// A chosen token and its log-probability under softmax(logits / temperature), unfiltered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    pub token: u32,
    pub logprob: f32,
}

/// What was chosen for some picks; `None` where the logits are not numbers.
pub enum Chosen {
    /// By the host.
    Here(Vec<Option<Choice>>),
    /// By a device.
    There(Arriving),
}

impl Chosen {
    /// Token ids `[picks]`, int64, on `device`; 0 where there is none.
    pub fn tokens(&self, device: Device) -> Tensor {
        match self {
            Chosen::Here(choices) => {
                let token = |c: &Option<Choice>| c.map_or(0, |c| i64::from(c.token));
                upload(&choices.iter().map(token).collect::<Vec<_>>(), device)
            }
            Chosen::There(arriving) => arriving.tokens(),
        }
    }

    /// The choices; waits for the device, but not for what it was given after them.
    pub fn read(self) -> Vec<Option<Choice>> {
        match self {
            Chosen::Here(choices) => choices,
            Chosen::There(arriving) => arriving.read(),
        }
    }
}

/// Reusable memory of one thread.
#[derive(Default)]
pub struct Scratch {
    scaled: Vec<f32>,
    weights: Vec<f32>,
    sums: Vec<f64>,
    order: Vec<u32>,
}

/// Chooses a token of one row; `None` if the logits are not numbers.
pub fn choose<E: Elem>(logits: &[E], pick: &Pick, scratch: &mut Scratch) -> Option<Choice> {
    let sampling = pick.sampling;
    let greedy = sampling.temperature == 0.0;
    let by = if greedy {
        1.0
    } else {
        (1.0 / sampling.temperature) as f32
    };
    weigh(logits, by, scratch);
    let total: f64 = scratch.sums.iter().sum();
    if !total.is_finite() || total <= 0.0 {
        return None;
    }
    let token = if greedy {
        most_likely(&scratch.scaled)
    } else {
        let u = pick.draw().f64();
        if sampling.top_p < 1.0 || (1..logits.len()).contains(&sampling.top_k) {
            from_filtered(u, total, sampling, scratch)
        } else {
            from_all(u * total, scratch)
        }
    };
    // weights are e^(scaled - max), so log(weight) - log(total) without the loss of the exp
    let max = scratch.scaled[most_likely(&scratch.scaled)];
    let logprob = f64::from(scratch.scaled[token] - max) - total.ln();
    Some(Choice {
        token: token as u32,
        logprob: logprob as f32,
    })
}

multiversion! {
    /// Fills `scaled` with logits * by, `weights` with their exponentials relative to the largest,
    /// and `sums` with the weights' sums by chunk. Sums are NaN if a logit is NaN or infinite.
    pub fn weigh[E: Elem][E](logits: &[E], by: f32, scratch: &mut Scratch) = weigh_body
}

#[inline(always)]
fn weigh_body<E: Elem>(logits: &[E], by: f32, scratch: &mut Scratch) {
    let Scratch {
        scaled,
        weights,
        sums,
        ..
    } = scratch;
    scaled.clear();
    scaled.extend(logits.iter().map(|l| l.to_f32() * by));
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut poison = [0f32; LANES]; // 0 * x is NaN for every x that is no number
    for c in scaled.chunks(LANES) {
        for ((lane, poison), &x) in lanes.iter_mut().zip(&mut poison).zip(c) {
            *lane = if x > *lane { x } else { *lane };
            *poison += 0.0 * x;
        }
    }
    let max = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let poison: f32 = poison.iter().sum();
    weights.clear();
    weights.extend(scaled.iter().map(|x| exp_neg(x - max)));
    sums.clear();
    sums.extend(weights.chunks(CHUNK).map(|chunk| {
        let mut lanes = [poison; LANES];
        for c in chunk.chunks(LANES) {
            for (lane, x) in lanes.iter_mut().zip(c) {
                *lane += x;
            }
        }
        f64::from(lanes.iter().sum::<f32>())
    }));
}

/// The first of the largest.
fn most_likely(scaled: &[f32]) -> usize {
    let max = scaled
        .iter()
        .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    scaled.iter().position(|&x| x == max).unwrap_or(0)
}

/// The token at which the running sum of weights passes `at`.
fn from_all(mut at: f64, scratch: &Scratch) -> usize {
    let mut last = 0;
    for (c, (chunk, &sum)) in scratch.weights.chunks(CHUNK).zip(&scratch.sums).enumerate() {
        if at >= sum {
            at -= sum;
            continue;
        }
        for (i, &w) in chunk.iter().enumerate() {
            if w > 0.0 {
                last = c * CHUNK + i;
                if at < f64::from(w) {
                    return last;
                }
                at -= f64::from(w);
            }
        }
        return last; // the chunk's sum was rounded up
    }
    // rounding carried `at` past the end: the last token that has any probability
    scratch
        .weights
        .iter()
        .rposition(|&w| w > 0.0)
        .unwrap_or(last)
}

/// A token of the `top_k` most likely, then of the least number of those that reach `top_p`.
fn from_filtered(u: f64, total: f64, sampling: &Sampling, scratch: &mut Scratch) -> usize {
    let Scratch {
        weights,
        order,
        scaled,
        ..
    } = scratch;
    let n = weights.len();
    let keep = if sampling.top_k == 0 {
        n
    } else {
        sampling.top_k.min(n)
    };
    let before = |a: &u32, b: &u32| {
        scaled[*b as usize]
            .total_cmp(&scaled[*a as usize])
            .then(a.cmp(b))
    };
    order.clear();
    order.extend(0..n as u32);
    let mut sorted = 0;
    // sort as much as `top_p` turns out to need; all that `top_k` keeps, to know its sum
    let mut want = if sampling.top_k == 0 {
        CHUNK.min(n)
    } else {
        keep
    };
    let weight = |id: u32| f64::from(weights[id as usize]);
    let (count, mass) = loop {
        if want < n {
            order[sorted..].select_nth_unstable_by(want - sorted - 1, before);
        }
        order[sorted..want].sort_unstable_by(before);
        sorted = want;
        let whole = if sampling.top_k == 0 {
            total
        } else {
            order[..keep].iter().map(|&i| weight(i)).sum()
        };
        let (mut count, mut mass) = (0, 0.0);
        while count < sorted && (count == 0 || mass < sampling.top_p * whole) {
            mass += weight(order[count]);
            count += 1;
        }
        if count < sorted || sorted == keep {
            break (count, mass);
        }
        want = (sorted * 8).min(keep);
    };
    let mut at = u * mass;
    for &id in &order[..count] {
        if at < weight(id) {
            return id as usize;
        }
        at -= weight(id);
    }
    order[count - 1] as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(logits: &[f32], sampling: &Sampling, n: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut scratch = Scratch::default();
        for i in 0..n {
            let pick = Pick {
                sampling,
                request: 3,
                sample: i % 7,
                position: i / 7,
            };
            counts[choose(logits, &pick, &mut scratch).unwrap().token as usize] += 1;
        }
        counts
    }

    /// Chi-square of counts against probabilities; tokens of no probability must have none.
    fn chi_square(counts: &[usize], p: &[f64]) -> (f64, usize) {
        let n = counts.iter().sum::<usize>() as f64;
        let mut sum = 0.0;
        for (&c, &p) in counts.iter().zip(p) {
            if p == 0.0 {
                assert_eq!(c, 0, "a filtered token was sampled");
            } else {
                sum += (c as f64 - n * p).powi(2) / (n * p);
            }
        }
        (sum, p.iter().filter(|&&p| p > 0.0).count() - 1)
    }

    /// Softmax at a temperature, cut as transformers' warpers do: top-k, then top-p.
    fn expected(logits: &[f32], s: &Sampling) -> Vec<f64> {
        let mut p: Vec<f64> = logits
            .iter()
            .map(|&l| (l as f64 / s.temperature).exp())
            .collect();
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        if s.top_k > 0 {
            order[s.top_k.min(p.len())..]
                .iter()
                .for_each(|&i| p[i] = 0.0);
        }
        let total: f64 = p.iter().sum();
        let mut seen = 0.0;
        for &i in &order {
            if seen >= s.top_p * total {
                p[i] = 0.0;
            }
            seen += p[i];
        }
        let total: f64 = p.iter().sum();
        p.iter().map(|x| x / total).collect()
    }

    #[test]
    fn frequencies_pass_chi_square() {
        let logits: Vec<f32> = (0..90)
            .map(|i| ((i * 37 % 90) as f32 / 30.0).sin() * 2.0)
            .collect();
        let cases = [
            (1.0, 1.0, 0),
            (0.7, 1.0, 0),
            (1.3, 0.6, 0),
            (1.0, 1.0, 12),
            (0.8, 0.9, 80),
            (2.0, 0.5, 200),
            (1.0, 0.999, 0),
        ];
        for (temperature, top_p, top_k) in cases {
            let s = Sampling {
                temperature,
                top_p,
                top_k,
                seed: 17,
                ..Sampling::default()
            };
            let (chi, degrees) = chi_square(&draws(&logits, &s, 60_000), &expected(&logits, &s));
            // the normal approximation's 99.9% point; the draws are fixed, so this never flickers
            let limit = degrees as f64 + 3.3 * (2.0 * degrees as f64).sqrt() + 4.0;
            assert!(
                degrees > 3 && chi < limit,
                "{temperature} {top_p} {top_k}: {chi} of {degrees}"
            );
        }
    }

    #[test]
    fn logprobs_are_scaled_and_unfiltered() {
        let logits: Vec<f32> = (0..660).map(|i| (i as f32 * 0.37).sin() * 5.0).collect();
        for (temperature, top_k) in [(0.0, 0), (1.0, 0), (0.5, 3)] {
            let s = Sampling {
                temperature,
                top_k,
                ..Sampling::default()
            };
            let pick = Pick {
                sampling: &s,
                request: 0,
                sample: 0,
                position: 9,
            };
            let c = choose(&logits, &pick, &mut Scratch::default()).unwrap();
            let t = if temperature == 0.0 { 1.0 } else { temperature };
            let z: f64 = logits.iter().map(|&l| (l as f64 / t).exp()).sum();
            let exact = logits[c.token as usize] as f64 / t - z.ln();
            assert!(
                (exact - c.logprob as f64).abs() < 2e-6,
                "{exact} {}",
                c.logprob
            );
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let s = Sampling {
            temperature: 0.0,
            ..Sampling::default()
        };
        let pick = Pick {
            sampling: &s,
            request: 0,
            sample: 0,
            position: 0,
        };
        let mut logits = vec![0f32; 100];
        (logits[41], logits[77]) = (3.0, 3.0);
        assert_eq!(
            choose(&logits, &pick, &mut Scratch::default())
                .unwrap()
                .token,
            41
        );
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let s = Sampling::default();
        let pick = Pick {
            sampling: &s,
            request: 0,
            sample: 0,
            position: 0,
        };
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 5, 69] {
                let mut logits = vec![1f32; 70];
                logits[at] = bad;
                assert_eq!(
                    choose(&logits, &pick, &mut Scratch::default()),
                    None,
                    "{bad} at {at}"
                );
            }
        }
    }
}
