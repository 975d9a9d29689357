//! How curves of a metric come apart.

use serde_json::{Value, json};

use crate::past::{Curves, of_mathematics};

/// Two curves that are not equal.
pub struct Apart {
    pub metric: String,
    /// The first step where they are not equal.
    pub from: u64,
    /// The largest difference at a step that both have, and the step. NaN where one of them is no
    /// number.
    pub most: f64,
    pub at: u64,
    pub last: [f64; 2],
}

impl Apart {
    pub fn as_json(&self) -> Value {
        json!({
            "metric": self.metric, "from": self.from, "most": self.most, "at": self.at,
            "last": self.last,
        })
    }
}

/// Curves of both that are not equal, without those of time.
pub fn apart(a: &Curves, b: &Curves) -> Vec<Apart> {
    let mut out = Vec::new();
    for (metric, left) in a.iter().filter(|(name, _)| of_mathematics(name)) {
        let Some(right) = b.get(metric) else { continue };
        let steps = left
            .iter()
            .filter_map(|(step, x)| Some((*step, *x, *right.get(step)?)));
        let mut found: Option<Apart> = None;
        let mut last = [f64::NAN; 2];
        for (step, x, y) in steps {
            last = [x, y];
            if x == y || (x.is_nan() && y.is_nan()) {
                continue;
            }
            let by = (x - y).abs();
            let apart = found.get_or_insert_with(|| Apart {
                metric: metric.clone(),
                from: step,
                most: by,
                at: step,
                last,
            });
            if by > apart.most || (by.is_nan() && !apart.most.is_nan()) {
                (apart.most, apart.at) = (by, step);
            }
        }
        out.extend(found.map(|apart| Apart { last, ..apart }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_come_apart_where_they_first_differ() {
        let curves = |name: &str, values: &[f64]| -> Curves {
            let steps = values.iter().enumerate().map(|(i, v)| (i as u64, *v));
            [(name.to_owned(), steps.collect())].into()
        };
        let a = curves("train/loss", &[3.0, 2.0, f64::NAN, 1.0]);
        assert!(apart(&a, &a).is_empty());
        let b = curves("train/loss", &[3.0, 2.5, f64::NAN, 1.75, 0.5]);
        let found = apart(&a, &b);
        assert_eq!((found[0].from, found[0].at, found[0].most), (1, 3, 0.75));
        assert_eq!(found[0].last, [1.0, 1.75]);
        let broken = curves("train/loss", &[3.0, 2.0, 2.0, 1.0]);
        assert!(apart(&a, &broken)[0].most.is_nan());
        let time = curves("timing/step", &[1.0]);
        assert!(apart(&time, &curves("timing/step", &[2.0])).is_empty());
    }
}
