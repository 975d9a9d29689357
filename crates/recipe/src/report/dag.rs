//! The stages of a run as a graph, by what they read from each other.

use std::fmt::Write;

use super::escape;
use crate::format::duration;
use crate::past::Run;

/// A box and the room between boxes, in pixels.
const BOX: [f64; 2] = [150.0, 44.0];
const GAP: [f64; 2] = [36.0, 14.0];

/// `reads[i]` are the places in `run.stages` of what stage `i` reads, all before `i`.
pub fn draw(run: &Run, reads: &[Vec<usize>]) -> String {
    let mut column = vec![0; reads.len()];
    for (i, from) in reads.iter().enumerate() {
        column[i] = from.iter().map(|f| column[*f] + 1).max().unwrap_or(0);
    }
    let mut filled = vec![0; column.iter().max().map_or(0, |c| c + 1)];
    let place: Vec<[f64; 2]> = column
        .iter()
        .map(|c| {
            filled[*c] += 1;
            let row = filled[*c] - 1;
            [
                1.0 + *c as f64 * (BOX[0] + GAP[0]),
                1.0 + f64::from(row) * (BOX[1] + GAP[1]),
            ]
        })
        .collect();
    let width = filled.len() as f64 * (BOX[0] + GAP[0]) - GAP[0] + 2.0;
    let rows = filled.iter().max().copied().unwrap_or(0);
    let height = f64::from(rows) * (BOX[1] + GAP[1]) - GAP[1] + 2.0;
    let mut inner = String::new();
    for (i, from) in reads.iter().enumerate() {
        for f in from {
            let (x1, y1) = (place[*f][0] + BOX[0], place[*f][1] + BOX[1] / 2.0);
            let (x2, y2) = (place[i][0], place[i][1] + BOX[1] / 2.0);
            let middle = f64::midpoint(x1, x2);
            let _ = write!(
                inner,
                "<path d=\"M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}\"/>"
            );
        }
    }
    for (stage, [x, y]) in run.stages.iter().zip(&place) {
        let class = super::class(&stage.status);
        let cost = stage.cost_seconds.map(duration).unwrap_or_default();
        let _ = write!(
            inner,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"5\"/>\
             <text x=\"{}\" y=\"{}\">{}</text>\
             <text class=\"small\" x=\"{}\" y=\"{}\">{} · {} {cost}</text>",
            BOX[0],
            BOX[1],
            x + 8.0,
            y + 18.0,
            escape(&stage.stage),
            x + 8.0,
            y + 34.0,
            escape(&stage.kind),
            stage.status.replace('_', " "),
        );
    }
    format!(
        "<div class=\"scroll dag\"><svg width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"stages\">{inner}</svg></div>\n"
    )
}
