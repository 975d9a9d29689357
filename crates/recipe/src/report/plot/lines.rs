//! Lines of one metric over steps.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::scale::{BOTTOM, HEIGHT, LEFT, RIGHT, Scale, TOP, WIDTH};
use super::{COLOURS, figure};
use crate::format::number;
use crate::past::Curve;

/// Most points that a line is drawn with; of more, the least and the largest of each part stay.
const POINTS: usize = 400;
/// A curve with more steps than this is drawn faintly, and its moving mean over it.
const NOISY: usize = 60;
/// Places where the pointer finds values.
const PLACES: usize = 40;

/// Lines of one metric over steps, each with the number of its colour. None where there is nothing
/// to draw a line through.
pub fn lines(title: &str, curves: &[(usize, &Curve)]) -> Option<String> {
    let all = || curves.iter().flat_map(|(_, curve)| curve.iter());
    let ends = |values: &mut dyn Iterator<Item = f64>| {
        values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| {
            [low.min(v), high.max(v)]
        })
    };
    let x = ends(&mut all().map(|(step, _)| *step as f64));
    let y = ends(&mut all().map(|(_, v)| *v).filter(|v| v.is_finite()));
    if x[1] <= x[0] || y[0] > y[1] {
        return None;
    }
    let scale = Scale::with_room(x, y);
    let mut inner = String::new();
    scale.axes(&mut inner);
    for (colour, curve) in curves {
        let colour = colour % COLOURS;
        let noisy = curve.len() > NOISY;
        let faint = if noisy { " faint" } else { "" };
        path(
            &mut inner,
            &scale,
            &format!("line c{colour}{faint}"),
            &thinned(curve),
        );
        if noisy {
            let mean = moving_mean(curve, curve.len() / 25);
            path(
                &mut inner,
                &scale,
                &format!("line c{colour}"),
                &thinned(&mean),
            );
        }
        for (step, _) in curve.iter().filter(|(_, v)| !v.is_finite()).take(PLACES) {
            let (x, y) = (scale.x(*step as f64), HEIGHT - BOTTOM);
            let _ = write!(inner, "<path class=\"nan\" d=\"M{x:.1} {y}v-8\"/>");
        }
    }
    pointer(&mut inner, &scale, curves);
    let last: Vec<(usize, String)> = curves
        .iter()
        .filter_map(|(colour, curve)| Some((*colour, number(*curve.last_key_value()?.1))))
        .collect();
    Some(figure(title, &last, &inner))
}

/// A line, broken where a value is no number.
fn path(out: &mut String, scale: &Scale, class: &str, points: &[(f64, f64)]) {
    let mut d = String::new();
    let mut pen = false;
    for (step, value) in points {
        if !value.is_finite() {
            pen = false;
            continue;
        }
        let letter = if std::mem::replace(&mut pen, true) {
            'L'
        } else {
            'M'
        };
        let _ = write!(d, "{letter}{:.1} {:.1}", scale.x(*step), scale.y(*value));
    }
    let _ = write!(out, "<path class=\"{class}\" d=\"{d}\"/>");
}

/// Columns that show, while the pointer is in them, the values of the step they stand for.
fn pointer(out: &mut String, scale: &Scale, curves: &[(usize, &Curve)]) {
    let steps: BTreeSet<u64> = curves.iter().flat_map(|(_, c)| c.keys().copied()).collect();
    let steps: Vec<u64> = steps.into_iter().collect();
    let every = steps.len().div_ceil(PLACES);
    let mut places: Vec<u64> = steps.iter().copied().step_by(every).collect();
    if places.last() != steps.last() {
        places.extend(steps.last());
    }
    let middle = |a: u64, b: u64| f64::midpoint(scale.x(a as f64), scale.x(b as f64));
    for (i, step) in places.iter().enumerate() {
        let from = if i == 0 {
            LEFT
        } else {
            middle(places[i - 1], *step)
        };
        let to = places
            .get(i + 1)
            .map_or(WIDTH - RIGHT, |next| middle(*step, *next));
        let (at, bottom) = (scale.x(*step as f64), HEIGHT - BOTTOM);
        let mut text = format!("step {step}");
        let mut dots = String::new();
        for (colour, curve) in curves {
            let Some(value) = curve.get(step) else {
                continue;
            };
            let colour = colour % COLOURS;
            let _ = write!(
                text,
                "<tspan class=\"c{colour}\" dx=\"8\">{}</tspan>",
                number(*value)
            );
            if value.is_finite() {
                let y = scale.y(*value);
                let _ = write!(
                    dots,
                    "<circle class=\"c{colour}\" cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"3\"/>"
                );
            }
        }
        let _ = write!(
            out,
            "<g class=\"at\"><rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>\
             <g><path class=\"rule\" d=\"M{at:.1} {TOP}V{bottom}\"/>{dots}<text x=\"{LEFT}\" y=\"12\">{text}</text></g></g>",
            (to - from).max(0.1),
            bottom - TOP,
        );
    }
}

/// The mean of each value with those around it, `width` in all; what is no number is left out.
fn moving_mean(curve: &Curve, width: usize) -> Curve {
    let all: Vec<(u64, f64)> = curve.iter().map(|(s, v)| (*s, *v)).collect();
    let half = (width / 2).max(1);
    let mean = |i: usize| {
        let around = &all[i.saturating_sub(half)..(i + half + 1).min(all.len())];
        let finite: Vec<f64> = around
            .iter()
            .map(|(_, v)| *v)
            .filter(|v| v.is_finite())
            .collect();
        match finite.is_empty() {
            true => f64::NAN,
            false => finite.iter().sum::<f64>() / finite.len() as f64,
        }
    };
    all.iter()
        .enumerate()
        .map(|(i, (step, _))| (*step, mean(i)))
        .collect()
}

/// At most about [`POINTS`] points of a curve that keep its outline and its gaps.
fn thinned(curve: &Curve) -> Vec<(f64, f64)> {
    let all: Vec<(f64, f64)> = curve.iter().map(|(s, v)| (*s as f64, *v)).collect();
    if all.len() <= POINTS {
        return all;
    }
    let part = all.len().div_ceil(POINTS / 2);
    let mut out: Vec<(f64, f64)> = Vec::with_capacity(POINTS);
    for chunk in all.chunks(part) {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let finite = || chunk.iter().filter(|(_, v)| v.is_finite());
        let (Some(low), Some(high)) = (finite().min_by(by), finite().max_by(by)) else {
            out.extend(chunk.first());
            continue;
        };
        let (first, second) = if low.0 <= high.0 {
            (low, high)
        } else {
            (high, low)
        };
        out.push(*first);
        if first.0 < second.0 {
            out.push(*second);
        }
    }
    out.extend(
        all.last()
            .filter(|last| out.last().is_none_or(|o| o.0 < last.0)),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_curve_keeps_its_peaks_and_its_end() {
        let mut curve: Curve = (0..10_000u64).map(|i| (i, (i % 7) as f64)).collect();
        curve.insert(4321, 99.0);
        curve.insert(77, f64::NAN);
        let points = thinned(&curve);
        assert!(points.len() <= POINTS + 1);
        assert!(points.contains(&(4321.0, 99.0)));
        assert_eq!(points.last(), Some(&(9999.0, (9999 % 7) as f64)));
        assert!(points.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn a_moving_mean_keeps_steps_and_leaves_out_what_is_no_number() {
        let curve: Curve = [(1, 1.0), (2, f64::NAN), (5, 3.0), (6, 5.0)].into();
        let mean = moving_mean(&curve, 3);
        assert_eq!(mean, [(1, 1.0), (2, 2.0), (5, 4.0), (6, 4.0)].into());
    }

    #[test]
    fn flat_lonely_and_broken_curves_are_no_trouble() {
        let flat: Curve = [(1, 2.0), (2, 2.0)].into();
        let svg = lines("train/loss <x>", &[(0, &flat)]).expect("a plot");
        assert!(
            svg.contains("train/loss &lt;x&gt;") && !svg.contains("NaN"),
            "{svg}"
        );
        assert!(lines("one", &[(0, &[(1, 2.0)].into())]).is_none());
        let broken: Curve = [(1, 2.0), (2, f64::NAN), (3, f64::INFINITY), (4, 1.0)].into();
        let svg = lines("train/loss", &[(0, &broken)]).expect("a plot");
        assert_eq!(svg.matches("class=\"nan\"").count(), 2);
        // told as a value, never as a coordinate
        assert!(
            !svg.contains("=\"NaN") && !svg.contains(" NaN ") && !svg.contains("inf\""),
            "{svg}"
        );
        assert!(lines("none", &[(0, &[(1, f64::NAN), (2, f64::NAN)].into())]).is_none());
    }
}
