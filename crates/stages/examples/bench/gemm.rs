//! The peak of libtorch's matrix product: what the machine gives at most.

use serde_json::{Value, json};
use tch::Kind;

use crate::Result;
use crate::measure::{Setup, dtype, median};

pub fn run(setup: &Setup, kind: Kind) -> Result<Value> {
    let rates: Vec<f64> = (0..if setup.quick { 3 } else { 30 })
        .map(|_| setup.peak(kind))
        .collect();
    Ok(json!({
        "dtype": dtype(kind),
        "unit": "GFLOP/s",
        "rate_median": median(&rates) / 1e9,
        "rate_best": rates.iter().copied().fold(0.0, f64::max) / 1e9,
        "repeats": rates.len(),
    }))
}
