//! A mesh's answers against one process's.

use std::collections::BTreeMap;

use crate::job::{Case, Part, Seen};
use crate::traffic::{self, Volumes};

/// The table's head.
pub const HEADER: &str = "\
mesh                   case              norm off  worst gradient off                          curve off  log-p off  moved by all ranks (over the formula)";

/// A line of the table: what is off, relative to one process.
pub struct Line {
    pub norm: f64,
    /// Norm of the difference over the norm, of the tensor where it is largest.
    pub gradient: (String, f64),
    pub curve: f64,
    pub logprobs: f64,
    pub tolerance: f64,
    pub problem: Option<String>,
    /// What the step moved, by group, over what the formula says.
    pub volumes: String,
}

/// Bounds of issue 3: gradients in fp32 and fp64; loss curves; log-probabilities.
const SINGLE: f64 = 1e-5;
const DOUBLE: f64 = 1e-9;
const CURVE: f64 = 1e-4;
const LOGPROBS: f64 = 1e-4;

impl Line {
    pub fn failed(problem: &str) -> Line {
        Line {
            norm: f64::NAN,
            gradient: (String::new(), f64::NAN),
            curve: f64::NAN,
            logprobs: f64::NAN,
            tolerance: 0.0,
            problem: Some(problem.to_owned()),
            volumes: String::new(),
        }
    }

    /// Holds what was moved against the formula.
    pub fn add_volumes(&mut self, volumes: &Volumes) {
        let text = |(group, (counted, formula)): (&&str, &(f64, f64))| {
            format!("{group} {:.0} KB ({:.2})", counted / 1e3, counted / formula)
        };
        self.volumes = volumes.iter().map(text).collect::<Vec<_>>().join(", ");
        if let Some(wrong) = traffic::wrong(volumes).into_iter().next() {
            self.problem.get_or_insert(wrong);
        }
    }

    pub fn good(&self) -> bool {
        self.problem.is_none()
            && self.norm <= self.tolerance
            && self.gradient.1 <= self.tolerance
            && self.curve <= CURVE
            && self.logprobs <= LOGPROBS
    }

    pub fn text(&self, mesh: &str, case: &Case) -> String {
        let kind = if case.double { "fp64" } else { "fp32" };
        let what = format!(
            "{:?} {:?} {kind} {}",
            case.model, case.algorithm, case.batch
        );
        let verdict = if self.good() { "" } else { "  DIFFERS" };
        if let Some(problem) = &self.problem {
            return format!("{mesh:22} {what:18} {problem}{verdict}");
        }
        let (name, off) = &self.gradient;
        let name = name.replace("model.layers.", "").replace(".weight", "");
        format!(
            "{mesh:22} {what:18} {:8.1e}  {off:8.1e} {name:34} {:9.1e} {:10.1e}  {}{verdict}",
            self.norm, self.curve, self.logprobs, self.volumes
        )
    }
}

/// Compares all ranks of a mesh with one process.
pub fn compare(case: &Case, ranks: &[&Seen], solo: &Seen) -> Line {
    let mut line = Line {
        norm: (ranks[0].grad_norm - solo.grad_norm).abs() / solo.grad_norm,
        gradient: (String::new(), 0.0),
        curve: curve(ranks[0], solo),
        logprobs: logprobs(ranks[0], solo),
        tolerance: if case.double { DOUBLE } else { SINGLE },
        problem: None,
        volumes: String::new(),
    };
    match whole(ranks) {
        Ok(grads) => {
            let want = whole(&[solo]).expect("one process has everything");
            for (name, want) in want {
                let off = grads
                    .get(&name)
                    .map_or(f64::INFINITY, |got| ratio(got, &want));
                // `max` would hide what is not a number
                if off.is_nan() || off > line.gradient.1 {
                    line.gradient = (name, off);
                }
            }
        }
        Err(problem) => line.problem = Some(problem),
    }
    for (rank, seen) in ranks.iter().enumerate() {
        let same = seen.grad_norm.to_bits() == ranks[0].grad_norm.to_bits()
            && seen.losses == ranks[0].losses
            && seen.metrics == ranks[0].metrics
            && seen.logprobs == ranks[0].logprobs;
        if !same {
            line.problem = Some(format!("rank {rank} says something else than rank 0"));
        }
    }
    let metrics = ranks[0].metrics.iter().zip(&solo.metrics);
    let close = |(a, b): (&(&String, &f64), &(&String, &f64))| {
        a.0 == b.0 && (a.1 - b.1).abs() <= 1e-6 * b.1.abs().max(1.0)
    };
    let mut pairs = metrics;
    if ranks[0].metrics.len() != solo.metrics.len() || !pairs.all(|(a, b)| close((&a, &b))) {
        line.problem = Some(format!(
            "metrics {:?}, {:?}",
            ranks[0].metrics, solo.metrics
        ));
    }
    line
}

fn curve(seen: &Seen, solo: &Seen) -> f64 {
    assert_eq!(seen.losses.len(), solo.losses.len());
    let off = |(got, want): (&f64, &f64)| (got - want).abs() / want.abs().max(1.0);
    worst(seen.losses.iter().zip(&solo.losses).map(off))
}

fn logprobs(seen: &Seen, solo: &Seen) -> f64 {
    let flat = |s: &Seen| -> Vec<f32> { s.logprobs.iter().flatten().flatten().copied().collect() };
    let (got, want) = (flat(seen), flat(solo));
    assert_eq!(got.len(), want.len());
    worst(got.iter().zip(&want).map(|(a, b)| f64::from((a - b).abs())))
}

/// The largest, or NaN if there is one.
fn worst(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |worst, v| {
        if v.is_nan() || worst.is_nan() {
            f64::NAN
        } else {
            worst.max(v)
        }
    })
}

fn ratio(got: &[f64], want: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    let norm: f64 = want.iter().map(|&x| square(x)).sum();
    let off: f64 = got.iter().zip(want).map(|(a, b)| square(a - b)).sum();
    // an expert may get no row of a small batch
    if off == 0.0 { 0.0 } else { (off / norm).sqrt() }
}

/// Puts the ranks' parts of each gradient together; every element must come exactly once.
fn whole(ranks: &[&Seen]) -> Result<BTreeMap<String, Vec<f64>>, String> {
    let mut out: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut filled: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for part in ranks.iter().flat_map(|seen| &seen.grads) {
        let n = part.shape.iter().product();
        let values = out.entry(part.name.clone()).or_insert_with(|| vec![0.0; n]);
        let filled = filled
            .entry(part.name.clone())
            .or_insert_with(|| vec![false; n]);
        for (at, value) in places(part).zip(&part.values) {
            if std::mem::replace(&mut filled[at], true) {
                return Err(format!("element {at} of {} has two owners", part.name));
            }
            values[at] = *value;
        }
    }
    let gap = filled.iter().find(|(_, filled)| filled.contains(&false));
    match gap {
        Some((name, _)) => Err(format!("a part of {name} has no owner")),
        None => Ok(out),
    }
}

/// Indices of a part's elements in the whole tensor, in order.
fn places(part: &Part) -> impl Iterator<Item = usize> {
    let n: usize = part.size.iter().product();
    (0..n).map(move |mut i| {
        let (mut at, mut stride) = (0, 1);
        for dim in (0..part.shape.len()).rev() {
            at += (part.start[dim] + i % part.size[dim]) * stride;
            i /= part.size[dim];
            stride *= part.shape[dim];
        }
        at
    })
}
