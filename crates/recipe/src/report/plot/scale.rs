//! From data to a plot's user units, and its axes.

use std::fmt::Write;

use crate::format::{count, number};

/// Size of a plot and its margins in user units; the page scales it to its column.
pub const WIDTH: f64 = 360.0;
pub const HEIGHT: f64 = 200.0;
pub const LEFT: f64 = 46.0;
pub const RIGHT: f64 = 10.0;
/// Room above for what the pointer shows.
pub const TOP: f64 = 20.0;
pub const BOTTOM: f64 = 22.0;

pub struct Scale {
    x: [f64; 2],
    y: [f64; 2],
    /// Only whole numbers mean something along x.
    pub whole: bool,
}

impl Scale {
    pub fn new(x: [f64; 2], y: [f64; 2]) -> Scale {
        // a value that never changes stands in the middle of a range of its own size
        let wide = |[low, high]: [f64; 2]| match high - low > (low.abs() + high.abs()) * 1e-12 {
            true => [low, high],
            false if low == 0.0 => [-1.0, 1.0],
            false => [low - 0.5 * low.abs(), low + 0.5 * low.abs()],
        };
        Scale {
            x: wide(x),
            y: wide(y),
            whole: false,
        }
    }

    /// The same with a little room above and below what is drawn.
    pub fn with_room(x: [f64; 2], y: [f64; 2]) -> Scale {
        let mut scale = Scale::new(x, y);
        let [low, high] = scale.y;
        let room = (high - low) * 0.04;
        // nothing that cannot be negative begins below zero
        let floor = if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        scale.y = [(low - room).max(floor), high + room];
        scale
    }

    pub fn x(&self, x: f64) -> f64 {
        LEFT + (x - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
    }

    pub fn y(&self, y: f64) -> f64 {
        TOP + (self.y[1] - y) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
    }

    /// Grid lines and numbers of both axes.
    pub fn axes(&self, out: &mut String) {
        let (all, decimals) = ticks(self.y);
        for y in all {
            let at = self.y(y);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {at:.1}H{}\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 3.5,
                label(y, decimals)
            );
        }
        let (all, decimals) = ticks(self.x);
        for x in all.into_iter().filter(|x| !self.whole || x.fract() == 0.0) {
            let decimals = if self.whole { 0 } else { decimals };
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
        0.0 => "0".to_owned(),
        big if big >= 1e12 => number(value),
        big if big >= 1e4 => count(value),
        small if decimals > 4 && small < 0.01 => {
            let digits = decimals + small.log10().floor() as i32;
            format!("{value:.*e}", digits.max(0) as usize)
        }
        _ => format!("{value:.*}", decimals.max(0) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks([0.0, 1.0]), (vec![0.0, 0.5, 1.0], 1));
        assert_eq!(ticks([0.0, 100.0]), (vec![0.0, 50.0, 100.0], -1));
        assert_eq!(label(0.5, 1), "0.5");
        assert_eq!(label(1.002, 3), "1.002");
        assert_eq!(label(2e-5, 5), "2e-5");
        assert_eq!(label(1.25e-3, 5), "1.25e-3");
        assert_eq!(label(1.00002, 5), "1.00002");
        for range in [[-3.1, 7.7], [1e-8, 3e-8], [1e6, 1.3e6]] {
            let (ticks, _) = ticks(range);
            assert!((2..=6).contains(&ticks.len()), "{range:?}: {ticks:?}");
            assert!(ticks.iter().all(|t| (range[0]..=range[1]).contains(t)));
        }
    }
}
