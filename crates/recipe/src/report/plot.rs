//! Plots as SVG text: lines over steps and histograms. Colours come from the page's style.

use std::fmt::Write;

use super::escape;
use crate::format::number;
use crate::past::Curve;

/// Size of a plot and its margins in user units; the page scales it to its column.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
/// Most points that a line is drawn with; of more, the least and the largest of each part stay.
const POINTS: usize = 400;
/// Colours that the style has for runs.
const COLOURS: usize = 6;
const BARS: usize = 24;

/// From data to the plot's user units.
struct Scale {
    x: [f64; 2],
    y: [f64; 2],
}

impl Scale {
    fn new(x: [f64; 2], y: [f64; 2]) -> Scale {
        // a value that never changes stands in the middle of a range of its own size
        let wide = |[low, high]: [f64; 2]| match high - low > (low.abs() + high.abs()) * 1e-12 {
            true => [low, high],
            false if low == 0.0 => [-1.0, 1.0],
            false => [low - 0.5 * low.abs(), low + 0.5 * low.abs()],
        };
        Scale {
            x: wide(x),
            y: wide(y),
        }
    }

    fn x(&self, x: f64) -> f64 {
        LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, y: f64) -> f64 {
        TOP + (self.y[1] - y) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
    }

    /// Grid lines and numbers of both axes.
    fn axes(&self, out: &mut String) {
        let (ticks, decimals) = ticks(self.y);
        for y in ticks {
            let at = self.y(y);
            let _ = write!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 5.0,
                at + 3.5,
                label(y, decimals)
            );
        }
        let (ticks, decimals) = self::ticks(self.x);
        for x in ticks {
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                self.x(x).min(WIDTH - RIGHT - 8.0),
                HEIGHT - 6.0,
                label(x, decimals)
            );
        }
    }
}

/// Round numbers inside a range, two to six of them, and the decimals that tell them apart.
fn ticks([low, high]: [f64; 2]) -> (Vec<f64>, i32) {
    let rough = (high - low) / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|s| *s >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    let ticks = (first..=last).map(|i| i as f64 * step).collect();
    (ticks, -(step * 1.001).log10().floor() as i32)
}

fn label(value: f64, decimals: i32) -> String {
    match value.abs() {
        big if big >= 1e6 => number(value),
        _ if decimals > 6 => format!("{value:.1e}"),
        _ => format!("{value:.*}", decimals.max(0) as usize),
    }
}

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
    let y = ends(&mut all().map(|(_, value)| *value));
    if x[1] <= x[0] {
        return None;
    }
    let scale = Scale::new(x, y);
    let mut inner = String::new();
    scale.axes(&mut inner);
    for (colour, curve) in curves {
        let mut points = String::new();
        for (step, value) in thinned(curve) {
            let _ = write!(points, "{:.1},{:.1} ", scale.x(step), scale.y(value));
        }
        let _ = write!(
            inner,
            "<polyline class=\"line c{}\" points=\"{}\"/>",
            colour % COLOURS,
            points.trim_end()
        );
    }
    let last: Vec<String> = curves
        .iter()
        .filter_map(|(colour, curve)| {
            let (_, value) = curve.last_key_value()?;
            let class = colour % COLOURS;
            Some(format!("<b class=\"c{class}\">{}</b>", number(*value)))
        })
        .collect();
    Some(figure(title, &last.join(" "), &inner))
}

/// How often values fall into each of some equal parts of their range, one row of bars per colour.
pub fn histogram(title: &str, groups: &[(usize, Vec<f64>)]) -> Option<String> {
    let all = || groups.iter().flat_map(|(_, values)| values);
    let low = all().copied().fold(f64::INFINITY, f64::min);
    let high = all().copied().fold(f64::NEG_INFINITY, f64::max);
    if !low.is_finite() || !high.is_finite() {
        return None;
    }
    let width = ((high - low) / BARS as f64).max(f64::MIN_POSITIVE);
    let counted: Vec<(usize, Vec<f64>)> = groups
        .iter()
        .map(|(colour, values)| {
            let mut counts = vec![0.0; BARS];
            for v in values {
                counts[(((v - low) / width) as usize).min(BARS - 1)] += 1.0 / values.len() as f64;
            }
            (*colour, counts)
        })
        .collect();
    let most = counted
        .iter()
        .flat_map(|(_, c)| c)
        .copied()
        .fold(0.0, f64::max);
    let scale = Scale::new([low, high.max(low + width * BARS as f64)], [0.0, most]);
    let mut inner = String::new();
    scale.axes(&mut inner);
    let share = (WIDTH - LEFT - RIGHT) / (BARS * groups.len().max(1)) as f64;
    for (row, (colour, counts)) in counted.iter().enumerate() {
        for (i, share_of) in counts.iter().enumerate().filter(|(_, c)| **c > 0.0) {
            let top = scale.y(*share_of);
            let _ = write!(
                inner,
                "<rect class=\"bar c{}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                colour % COLOURS,
                LEFT + share * (i * groups.len() + row) as f64,
                share * 0.9,
                HEIGHT - BOTTOM - top
            );
        }
    }
    let means: Vec<String> = groups
        .iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(colour, values)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let class = colour % COLOURS;
            format!("<b class=\"c{class}\">mean {}</b>", number(mean))
        })
        .collect();
    Some(figure(title, &means.join(" "), &inner))
}

fn figure(title: &str, values: &str, inner: &str) -> String {
    let title = escape(title);
    format!(
        "<figure><figcaption>{title} {values}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         role=\"img\" aria-label=\"{title}\">{inner}</svg></figure>\n"
    )
}

/// At most about [`POINTS`] points of a curve that keep its outline.
fn thinned(curve: &Curve) -> Vec<(f64, f64)> {
    let all: Vec<(f64, f64)> = curve.iter().map(|(s, v)| (*s as f64, *v)).collect();
    if all.len() <= POINTS {
        return all;
    }
    let part = all.len().div_ceil(POINTS / 2);
    let mut out = Vec::with_capacity(POINTS);
    for chunk in all.chunks(part) {
        let by = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let ends = chunk.iter().min_by(by).zip(chunk.iter().max_by(by));
        if let Some((low, high)) = ends {
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
    }
    out.extend(all.last().filter(|last| out.last() != Some(last)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks([0.0, 1.0]), (vec![0.0, 0.5, 1.0], 1));
        assert_eq!(ticks([0.0, 100.0]), (vec![0.0, 50.0, 100.0], -1));
        assert_eq!(label(0.5, 1), "0.5");
        assert_eq!(label(1.000_002, 6), "1.000002");
        for range in [[-3.1, 7.7], [1e-8, 3e-8], [1e6, 1.3e6]] {
            let (ticks, _) = ticks(range);
            assert!((2..=6).contains(&ticks.len()), "{range:?}: {ticks:?}");
            assert!(ticks.iter().all(|t| (range[0]..=range[1]).contains(t)));
        }
    }

    #[test]
    fn a_thinned_curve_keeps_its_peaks_and_its_end() {
        let mut curve: Curve = (0..10_000u64).map(|i| (i, (i % 7) as f64)).collect();
        curve.insert(4321, 99.0);
        let points = thinned(&curve);
        assert!(points.len() <= POINTS + 1);
        assert!(points.contains(&(4321.0, 99.0)));
        assert_eq!(points.last(), Some(&(9999.0, (9999 % 7) as f64)));
        assert!(points.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn flat_and_lonely_curves_are_no_trouble() {
        let flat: Curve = [(1, 2.0), (2, 2.0)].into();
        let svg = lines("train/loss <x>", &[(0, &flat)]).expect("a plot");
        assert!(
            svg.contains("train/loss &lt;x&gt;") && !svg.contains("NaN"),
            "{svg}"
        );
        assert!(lines("one", &[(0, &[(1, 2.0)].into())]).is_none());
        let svg = histogram("reward", &[(0, vec![1.0; 5])]).expect("a plot");
        assert!(!svg.contains("NaN"), "{svg}");
        assert!(histogram("none", &[(0, Vec::new())]).is_none());
    }
}
