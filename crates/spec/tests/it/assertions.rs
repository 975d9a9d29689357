//! Verdicts on metrics.

use spec::Assertion;
use spec::assertion::Verdict;
use std::collections::BTreeMap;

fn judge(min: Option<f64>, max: Option<f64>, value: Option<f64>) -> Verdict {
    let metrics: BTreeMap<String, f64> = value.into_iter().map(|v| ("m".to_owned(), v)).collect();
    Assertion {
        metric: "m".to_owned(),
        min,
        max,
    }
    .judge(&metrics)
}

#[test]
fn bounds_are_inclusive_and_margins_signed() {
    assert_eq!(
        judge(Some(0.5), None, Some(0.5)),
        Verdict::Passed {
            value: 0.5,
            margin: 0.0
        }
    );
    assert_eq!(
        judge(Some(0.5), None, Some(0.25)),
        Verdict::Failed {
            value: 0.25,
            margin: -0.25
        }
    );
    assert_eq!(
        judge(Some(0.0), Some(1.0), Some(0.75)),
        Verdict::Passed {
            value: 0.75,
            margin: 0.25
        }
    );
    assert_eq!(
        judge(None, Some(1.0), Some(1.5)),
        Verdict::Failed {
            value: 1.5,
            margin: -0.5
        }
    );
}

#[test]
fn what_is_missing_or_no_number_fails() {
    assert!(!judge(Some(0.0), None, None).passed());
    assert!(!judge(None, Some(1.0), Some(f64::NAN)).passed());
    assert!(!judge(None, Some(1.0), Some(f64::INFINITY)).passed());
}
