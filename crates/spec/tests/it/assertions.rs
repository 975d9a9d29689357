//! Verdicts on metrics, windows, trends, pinned runs and bits.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use spec::Assertion;
use spec::assertion::{
    Change, Evidence, Judged, Missing, Over, Per, Reference, Steps, Trend, Verdict, mann_kendall,
    student,
};
use std::collections::BTreeMap;

fn on(metric: &str) -> Assertion {
    Assertion {
        metric: Some(metric.to_owned()),
        ..Assertion::default()
    }
}

fn summary(value: Value) -> Map<String, Value> {
    [("m".to_owned(), value)].into_iter().collect()
}

fn steps(planned: Option<u64>, values: &[(u64, f64)]) -> Steps {
    let mut steps = Steps {
        planned,
        ..Steps::default()
    };
    for (step, value) in values {
        steps.add(*step, [("loss".to_owned(), *value)].into());
    }
    steps
}

fn judge(assertion: &Assertion, summary: &Map<String, Value>, steps: Option<&Steps>) -> Judged {
    assertion.finish().expect("the assertion goes together");
    assertion.judge(&Evidence {
        summary,
        steps: Ok(steps),
        calibration: Ok(4.0),
    })
}

fn of_summary(min: Option<f64>, max: Option<f64>, value: Value) -> Judged {
    let assertion = Assertion {
        min,
        max,
        ..on("m")
    };
    judge(&assertion, &summary(value), None)
}

fn of_steps(assertion: Assertion, steps: &Steps) -> Judged {
    judge(&assertion, &Map::new(), Some(steps))
}

#[test]
fn bounds_are_inclusive_and_margins_signed() {
    for (min, max, value, verdict, margin) in [
        (Some(0.5), None, 0.5, Verdict::Passed, 0.0),
        (Some(0.5), None, 0.25, Verdict::Failed, -0.25),
        (Some(0.0), Some(1.0), 0.75, Verdict::Passed, 0.25),
        (None, Some(1.0), 1.5, Verdict::Failed, -0.5),
    ] {
        let judged = of_summary(min, max, json!(value));
        assert_eq!(
            (judged.verdict, judged.margin, judged.value),
            (verdict, Some(margin), Some(value))
        );
        assert_eq!(judged.holds, verdict == Verdict::Passed);
    }
    let failed = of_summary(Some(0.8), None, json!(0.75)).to_string();
    assert_eq!(failed, "m >= 0.8 does not hold: it is 0.75, margin -0.05");
}

#[test]
fn what_is_no_number_never_passes() {
    let lenient = Assertion {
        min: Some(0.0),
        missing: Missing::Pass,
        ..on("m")
    };
    let none = judge(&lenient, &Map::new(), None);
    assert_eq!((none.verdict, none.holds), (Verdict::Missing, true));
    // NaN and infinity are null in JSON; a lenient assertion does not let them through either
    let judged = judge(&lenient, &summary(Value::Null), None);
    assert_eq!((judged.verdict, judged.holds), (Verdict::Failed, false));
    let strict = of_summary(Some(0.0), None, Value::Null);
    assert_eq!((strict.verdict, strict.holds), (Verdict::Failed, false));
    let gone = Assertion {
        min: Some(0.0),
        ..on("n")
    };
    let gone = judge(&gone, &summary(json!(1.0)), None);
    assert_eq!((gone.verdict, gone.holds), (Verdict::Missing, false));
    // one NaN spoils every way of looking at its window, and only that
    let series: Vec<(u64, f64)> = (1..=20)
        .map(|s| (s, if s == 7 { f64::NAN } else { 1.0 / s as f64 }))
        .collect();
    let series = steps(None, &series);
    for over in [Over::Mean, Over::Median, Over::Min, Over::Max] {
        let all = Assertion {
            over: Some(over),
            max: Some(9.0),
            missing: Missing::Pass,
            ..on("loss")
        };
        let judged = of_steps(all.clone(), &series);
        assert_eq!(judged.verdict, Verdict::Failed, "{over:?}");
        assert!(judged.why.unwrap().contains("not a finite number"));
        let after = Assertion {
            steps: Some([8, 20]),
            ..all
        };
        assert!(of_steps(after, &series).holds, "{over:?}");
    }
    let falls = Assertion {
        trend: Some(Trend::Falls),
        ..on("loss")
    };
    assert_eq!(of_steps(falls, &series).verdict, Verdict::Failed);
    let end = Assertion {
        over: Some(Over::Last),
        max: Some(9.0),
        ..on("loss")
    };
    assert!(of_steps(end, &series).holds, "the last value is a number");
}

#[test]
fn windows_come_to_one_value_and_say_which_steps_it_is_of() {
    let series = steps(
        Some(10),
        &(0..=10).map(|s| (s, s as f64)).collect::<Vec<_>>(),
    );
    let cases = [
        (Some(Over::Mean), Some([2, 5]), None, None, 3.5, [2, 5], 4),
        (Some(Over::Median), Some([2, 4]), None, None, 3.0, [2, 4], 3),
        (Some(Over::Min), None, Some(3), None, 8.0, [8, 10], 3),
        (Some(Over::Max), Some([0, 4]), None, None, 4.0, [0, 4], 5),
        (Some(Over::Last), None, None, None, 10.0, [10, 10], 1),
        (None, None, None, Some(6), 6.0, [6, 6], 1),
        (None, None, None, None, 10.0, [10, 10], 1),
    ];
    for (over, window, last, at_step, value, at, count) in cases {
        let judged = of_steps(
            Assertion {
                over,
                steps: window,
                last,
                at_step,
                equals: Some(value),
                ..on("loss")
            },
            &series,
        );
        assert!(judged.holds, "{judged:?}");
        assert_eq!((judged.steps, judged.count), (Some(at), Some(count)));
    }
    let failed = of_steps(
        Assertion {
            over: Some(Over::Mean),
            steps: Some([2, 5]),
            max: Some(1.5),
            ..on("loss")
        },
        &series,
    );
    assert_eq!(
        failed.to_string(),
        "mean of loss over steps 2 to 5 <= 1.5 does not hold: it is 3.5, margin -2, 4 values of steps 2 to 5"
    );
    // the summary counts where it has the name, unless a window is asked for
    let both = Assertion {
        max: Some(1.0),
        ..on("loss")
    };
    let summary: Map<String, Value> = [("loss".to_owned(), json!(0.5))].into_iter().collect();
    assert!(judge(&both, &summary, Some(&series)).holds);
}

#[test]
fn a_window_that_the_run_did_not_fill_is_missing() {
    let every = |n: u64, step: usize| {
        let all: Vec<(u64, f64)> = (step as u64..=n).step_by(step).map(|s| (s, 0.1)).collect();
        steps(None, &all)
    };
    let mean = |window: Option<[u64; 2]>, last: Option<u64>| Assertion {
        over: Some(Over::Mean),
        steps: window,
        last,
        max: Some(1.0),
        ..on("loss")
    };
    for (assertion, series, why) in [
        (
            mean(Some([50, 100]), None),
            every(70, 1),
            "ended at step 70",
        ),
        (mean(None, Some(100)), every(70, 1), "70 of 100 values"),
        (
            Assertion {
                at_step: Some(80),
                max: Some(1.0),
                ..on("loss")
            },
            every(70, 1),
            "ended at step 70",
        ),
    ] {
        let judged = of_steps(assertion, &series);
        assert_eq!((judged.verdict, judged.holds), (Verdict::Missing, false));
        assert!(judged.why.as_ref().unwrap().contains(why), "{judged:?}");
    }
    // most metrics have no step 0
    assert!(of_steps(mean(Some([0, 100]), None), &every(100, 1)).holds);
    // a metric of every 10th step fills its window at its own rhythm
    let slow = every(100, 10);
    assert!(of_steps(mean(Some([50, 100]), None), &slow).holds);
    // one that falls silent does not, whichever window is asked for
    let mut silent = every(60, 1);
    for step in 61..=100 {
        silent.add(step, [("other".to_owned(), 1.0)].into());
    }
    for assertion in [
        mean(Some([50, 100]), None),
        mean(None, Some(5)),
        mean(None, None),
    ] {
        let judged = of_steps(assertion, &silent);
        assert_eq!(judged.verdict, Verdict::Missing, "{judged:?}");
    }
    // a run that ended before its plan passes nothing, not even a bound on its summary
    let mut early = every(70, 1);
    early.planned = Some(100);
    let bound = Assertion {
        max: Some(1.0),
        ..on("m")
    };
    let judged = judge(&bound, &summary(json!(0.1)), Some(&early));
    assert_eq!(
        (judged.verdict, judged.why.as_deref()),
        (
            Verdict::Missing,
            Some("the run ended at step 70 of 100 that were planned")
        )
    );
}

#[test]
fn trends_are_told_from_noise() {
    let noise = |s: u64| ((s * 7919) % 101) as f64 / 101.0;
    let line = |slope: f64| {
        let all: Vec<(u64, f64)> = (1..=60).map(|s| (s, slope * s as f64 + noise(s))).collect();
        steps(None, &all)
    };
    let trend = |trend: Trend| Assertion {
        trend: Some(trend),
        ..on("loss")
    };
    let falling = of_steps(trend(Trend::Falls), &line(-0.05));
    assert!(falling.holds && falling.margin.unwrap() > 0.0);
    assert!(!of_steps(trend(Trend::Rises), &line(-0.05)).holds);
    assert!(of_steps(trend(Trend::Rises), &line(0.05)).holds);
    assert!(!of_steps(trend(Trend::Falls), &line(0.0)).holds);
    let flat = steps(None, &(1..=20).map(|s| (s, 1.0)).collect::<Vec<_>>());
    assert!(!of_steps(trend(Trend::Falls), &flat).holds);
    let few = steps(None, &(1..=7).map(|s| (s, -(s as f64))).collect::<Vec<_>>());
    assert_eq!(
        of_steps(trend(Trend::Falls), &few).verdict,
        Verdict::Missing
    );
    // ties, from Gilbert (1987), "Statistical Methods for Environmental Pollution Monitoring": S = 7
    // of 10, 22, 21, 30, 22, 30, 40, 40 has tied groups of 2, 2 and 2
    let z = mann_kendall(&[10.0, 22.0, 21.0, 30.0, 22.0, 30.0, 40.0, 40.0]);
    let variance: f64 = (8.0 * 7.0 * 21.0 - 3.0 * 2.0 * 9.0) / 18.0;
    assert!((z - 20.0 / variance.sqrt()).abs() < 1e-12, "{z}");
}

proptest! {
    #[test]
    fn pairs_are_counted_as_by_hand(values in prop::collection::vec(0i32..12, 8..60)) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        let n = values.len();
        let mut s = 0.0;
        for i in 0..n {
            for j in i + 1..n {
                s += (values[j] - values[i]).partial_cmp(&0.0).map_or(0.0, |o| o as i32 as f64);
            }
        }
        let mut counts = BTreeMap::new();
        for v in &values {
            *counts.entry(*v as i64).or_insert(0.0) += 1.0;
        }
        let ties: f64 = counts.values().map(|t: &f64| t * (t - 1.0) * (2.0 * t + 5.0)).sum();
        let m = n as f64;
        let variance = (m * (m - 1.0) * (2.0 * m + 5.0) - ties) / 18.0;
        let wanted = if s == 0.0 || variance <= 0.0 { 0.0 } else { (s - f64::signum(s)) / variance.sqrt() };
        prop_assert!((mann_kendall(&values) - wanted).abs() < 1e-9);
    }

    #[test]
    fn stored_steps_are_read_as_they_were(
        planned in prop::option::of(0u64..1000),
        rows in prop::collection::btree_map(0u64..500, prop::collection::btree_map("[a-z/]{1,8}", -1e9f64..1e9, 0..4), 0..20),
    ) {
        let steps = Steps { planned, rows };
        prop_assert_eq!(Steps::decode(&steps.encode()).unwrap(), steps);
    }
}

#[test]
fn a_nan_survives_being_stored() {
    let back = Steps::decode(&steps(None, &[(1, f64::NAN), (2, 0.5)]).encode()).unwrap();
    assert!(back.rows[&1]["loss"].is_nan() && back.rows[&2]["loss"] == 0.5);
    assert!(Steps::decode(b"{\"step\":1,\"metrics\":{\"a\":\"x\"}}\n").is_err());
}

/// Values from the table of Student's t of Abramowitz and Stegun (26.10).
#[test]
fn students_quantiles_are_those_of_the_tables() {
    for (p, freedom, t) in [
        (0.95, 1.0, 6.314),
        (0.95, 2.0, 2.920),
        (0.975, 4.0, 2.776),
        (0.95, 10.0, 1.812),
        (0.995, 30.0, 2.750),
        (0.95, 120.0, 1.658),
    ] {
        assert!(
            (student::quantile(p, freedom) - t).abs() < 5e-4,
            "{p} {freedom}"
        );
        let back = student::cumulative(student::quantile(p, freedom), freedom);
        assert!((back - p).abs() < 1e-12);
        assert!((student::quantile(1.0 - p, freedom) + student::quantile(p, freedom)).abs() < 1e-9);
    }
}

fn against(assertion: Assertion, now: &[f64], pinned: &[f64], history: &[f64]) -> Judged {
    let assertion = Assertion {
        baseline: Some("pin:nightly".to_owned()),
        ..assertion
    };
    assertion.finish().expect("the assertion goes together");
    let evidence = now.iter().map(|v| summary(json!(v))).collect::<Vec<_>>();
    let looked: Vec<_> = evidence
        .iter()
        .map(|summary| {
            let evidence = Evidence {
                summary,
                steps: Ok(None),
                calibration: Ok(1.0),
            };
            assertion.look(&evidence).unwrap()
        })
        .collect();
    let reference = Reference {
        pinned: pinned.to_vec(),
        history: history.to_vec(),
    };
    assertion.judge_baseline(Ok(&looked), Ok(&reference))
}

#[test]
fn one_run_is_held_to_the_pinned_one_exactly() {
    let drop = |change| Assertion {
        max_drop: Some(change),
        ..on("m")
    };
    let judged = against(drop(Change::Absolute(0.02)), &[0.79], &[0.8], &[]);
    assert!(judged.holds && judged.min == Some(0.78) && judged.baseline == Some(0.8));
    assert!(!against(drop(Change::Absolute(0.02)), &[0.77], &[0.8], &[]).holds);
    assert!(against(drop(Change::Absolute(0.02)), &[5.0], &[0.8], &[]).holds);
    assert!(against(drop(Change::Share(0.1)), &[0.73], &[0.8], &[]).holds);
    assert!(!against(drop(Change::Share(0.05)), &[0.73], &[0.8], &[]).holds);
    let rise = Assertion {
        max_rise: Some(Change::Absolute(0.0)),
        ..on("m")
    };
    assert!(!against(rise, &[0.81], &[0.8], &[]).holds);
}

#[test]
fn replicas_are_held_to_it_within_their_noise() {
    let drop = Assertion {
        max_drop: Some(Change::Absolute(0.0)),
        ..on("m")
    };
    let pinned = [0.80, 0.82, 0.78];
    // a mean that is a little lower is noise; by hand: s = 0.02, t(0.95, 4) = 2.1318, noise 0.03481
    let judged = against(drop.clone(), &[0.79, 0.81, 0.77], &pinned, &[]);
    assert!(judged.holds && judged.count == Some(3), "{judged}");
    let noise = 0.8 - judged.min.unwrap();
    assert!((noise - 2.131_846_8 * 0.02 * (2.0f64 / 3.0).sqrt()).abs() < 1e-6);
    assert!(!against(drop.clone(), &[0.75, 0.77, 0.73], &pinned, &[]).holds);
    // the more certain it must be, the more passes
    let sure = Assertion {
        confidence: Some(0.999),
        ..drop
    };
    assert!(against(sure, &[0.75, 0.77, 0.73], &pinned, &[]).holds);
}

#[test]
fn sigma_is_taken_from_the_whole_history() {
    let history = [0.80, 0.82, 0.78, 0.81, 0.79];
    let within = Assertion {
        sigma: Some(3.0),
        ..on("m")
    };
    assert!(against(within.clone(), &[0.77], &[0.79], &history).holds);
    assert!(!against(within.clone(), &[0.74], &[0.79], &history).holds);
    assert!(!against(within.clone(), &[0.86], &[0.79], &history).holds);
    let few = against(within, &[0.8], &[0.8], &history[..2]);
    assert_eq!(few.verdict, Verdict::Missing);
    let one_way = Assertion {
        max_drop: Some(Change::Sigma(3.0)),
        ..on("m")
    };
    assert!(against(one_way.clone(), &[0.86], &[0.79], &history).holds);
    assert!(!against(one_way, &[0.74], &[0.79], &history).holds);
}

#[test]
fn metrics_are_divided_by_the_calibration_of_their_run() {
    let per = Assertion {
        per: Some(Per::Calibration),
        min: Some(20.0),
        ..on("m")
    };
    let judged = judge(&per, &summary(json!(100.0)), None);
    assert_eq!((judged.holds, judged.value), (true, Some(25.0)));
    let summary = summary(json!(100.0));
    let none = per.judge(&Evidence {
        summary: &summary,
        steps: Ok(None),
        calibration: Err("it was computed on cuda"),
    });
    assert_eq!(none.verdict, Verdict::Missing);
}

#[test]
fn bits_are_compared_within_equal_numerics() {
    let assertion = Assertion {
        digest: Some("pin:nightly".to_owned()),
        ..Assertion::default()
    };
    assertion.finish().unwrap();
    let outputs = |digest: &str| BTreeMap::from([("model".to_owned(), digest.to_owned())]);
    let (one, other) = (outputs("aaaa"), outputs("bbbb"));
    let range =
        |from: u64, threads: u64| json!({"from": from, "device": "cpu", "threads": threads});
    let whole = json!([range(0, 2)]);
    let resumed = json!([range(0, 2), range(15, 2)]);
    let elsewhere = json!([range(0, 4)]);
    let judge = |now: (&BTreeMap<String, String>, &Value),
                 then: (&BTreeMap<String, String>, &Value)| {
        assertion.judge_digest(now, Ok(then))
    };
    assert!(judge((&one, &whole), (&one, &whole)).holds);
    // equal bits need no excuse
    assert!(judge((&one, &elsewhere), (&one, &whole)).holds);
    let differs = judge((&other, &resumed), (&one, &whole));
    assert_eq!(differs.verdict, Verdict::Failed);
    assert!(
        differs
            .why
            .unwrap()
            .contains("output 'model' was aaaa, and is bbbb")
    );
    let judged = judge((&other, &elsewhere), (&one, &whole));
    assert_eq!(
        (judged.verdict, judged.holds),
        (Verdict::NotComparable, false)
    );
    assert!(judged.why.unwrap().contains("threads 2 -> 4"));
    let none = assertion.judge_digest((&one, &whole), Err("there is no pin 'nightly'"));
    assert_eq!(none.verdict, Verdict::Missing);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let refused = |assertion: Assertion| assertion.finish().unwrap_err().message;
    let min = || Assertion {
        min: Some(0.0),
        ..on("m")
    };
    assert!(refused(Assertion::default()).contains("'metric' is missing"));
    assert!(refused(on("m")).contains("no bound"));
    for (assertion, said) in [
        (
            Assertion {
                equals: Some(1.0),
                ..min()
            },
            "'equals' and 'min'",
        ),
        (
            Assertion {
                max: Some(-1.0),
                ..min()
            },
            "no value is at least 0",
        ),
        (
            Assertion {
                last: Some(3),
                ..min()
            },
            "'over' is missing",
        ),
        (
            Assertion {
                tolerance: Some(0.1),
                ..min()
            },
            "'equals' is missing",
        ),
        (
            Assertion {
                sigma: Some(3.0),
                ..min()
            },
            "'baseline' is missing",
        ),
        (
            Assertion {
                digest: Some("pin:x".into()),
                ..min()
            },
            "'digest' and 'metric'",
        ),
        (
            Assertion {
                output: Some("model".into()),
                ..min()
            },
            "without 'digest'",
        ),
        (
            Assertion {
                baseline: Some("nightly".into()),
                max_drop: Some(Change::Absolute(0.0)),
                ..on("m")
            },
            "'baseline' is 'nightly'",
        ),
        (
            Assertion {
                trend: Some(Trend::Falls),
                last: Some(5),
                ..on("m")
            },
            "'last' is 5 steps",
        ),
        (
            Assertion {
                digest: Some("pin:x".into()),
                sigma: Some(1.0),
                ..Assertion::default()
            },
            "'sigma' and 'digest'",
        ),
    ] {
        let message = refused(assertion);
        assert!(message.contains(said), "{message}");
    }
}
