//! How often values fall into each of some equal parts of their range.

use std::fmt::Write;

use super::scale::{BOTTOM, HEIGHT, LEFT, RIGHT, Scale, WIDTH};
use super::{COLOURS, figure};
use crate::format::number;

const BARS: usize = 24;

/// One row of bars per colour, as shares of its values. None where there is no number.
pub fn histogram(title: &str, groups: &[(usize, Vec<f64>)]) -> Option<String> {
    let finite: Vec<(usize, Vec<f64>)> = groups
        .iter()
        .map(|(colour, values)| {
            (
                *colour,
                values.iter().copied().filter(|v| v.is_finite()).collect(),
            )
        })
        .collect();
    let all = || finite.iter().flat_map(|(_, values)| values).copied();
    let low = all().fold(f64::INFINITY, f64::min);
    let high = all().fold(f64::NEG_INFINITY, f64::max);
    if low > high {
        return None;
    }
    let whole = all().all(|v| v == v.trunc());
    // whole numbers of a small range have a bar each
    let bars = match whole && high - low < BARS as f64 {
        true => (high - low) as usize + 1,
        false => BARS,
    };
    let width = match whole && high - low < BARS as f64 {
        true => 1.0,
        false => ((high - low) / bars as f64).max(f64::MIN_POSITIVE),
    };
    let counted: Vec<(usize, Vec<f64>)> = finite
        .iter()
        .map(|(colour, values)| {
            let mut counts = vec![0.0; bars];
            for v in values {
                counts[(((v - low) / width) as usize).min(bars - 1)] += 1.0 / values.len() as f64;
            }
            (*colour, counts)
        })
        .collect();
    let most = counted
        .iter()
        .flat_map(|(_, c)| c)
        .copied()
        .fold(0.0, f64::max);
    // a bar of a whole number stands around it
    let begin = if width == 1.0 { low - 0.5 } else { low };
    let mut scale = Scale::new([begin, begin + width * bars as f64], [0.0, most]);
    scale.whole = width == 1.0;
    let mut inner = String::new();
    scale.axes(&mut inner);
    let share = (WIDTH - LEFT - RIGHT) / (bars * groups.len().max(1)) as f64;
    for (row, (colour, counts)) in counted.iter().enumerate() {
        for (i, part) in counts.iter().enumerate().filter(|(_, c)| **c > 0.0) {
            let top = scale.y(*part);
            let x = LEFT + share * (i * groups.len() + row) as f64;
            let from = low + width * i as f64;
            let range = match width == 1.0 {
                true => number(from),
                false => format!("{} to {}", number(from), number(from + width)),
            };
            let _ = write!(
                inner,
                "<g class=\"at\"><rect class=\"bar c{}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" \
                 height=\"{:.1}\" rx=\"1\"/><g><text x=\"{LEFT}\" y=\"12\">{range}: {:.1}%</text></g></g>",
                colour % COLOURS,
                x + share * 0.06,
                share * 0.88,
                HEIGHT - BOTTOM - top,
                part * 100.0,
            );
        }
    }
    let means: Vec<(usize, String)> = finite
        .iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(colour, values)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            (*colour, format!("mean {}", number(mean)))
        })
        .collect();
    Some(figure(title, &means, &inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_none_and_whole_numbers() {
        let svg = histogram("reward", &[(0, vec![1.0; 5])]).expect("a plot");
        assert!(!svg.contains("NaN") && svg.contains(">1: 100.0%<"), "{svg}");
        assert!(histogram("none", &[(0, Vec::new())]).is_none());
        assert!(histogram("none", &[(0, vec![f64::NAN])]).is_none());
        let svg = histogram("length", &[(0, vec![2.0, 2.0, 4.0, 2.0])]).expect("a plot");
        assert!(
            svg.contains(">2: 75.0%<") && svg.contains(">4: 25.0%<"),
            "{svg}"
        );
        let svg = histogram("reward", &[(0, vec![0.0, 0.25, 1.0])]).expect("a plot");
        assert_eq!(svg.matches("<rect").count(), 3);
    }
}
