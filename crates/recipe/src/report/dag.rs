//! The stages of a run as a graph, by what they read from each other: from left to right on a wide
//! screen, from top to bottom on a narrow one.
//!
//! Layers by longest path; an edge over several layers passes through a place of its own in each;
//! places in a layer are ordered by the mean of what they are tied to (Sugiyama, Tagawa and Toda).

use std::fmt::Write;

use super::html::{class, escape, short};

/// More stages than this are no picture any more; the table has them all.
const MOST: usize = 150;
/// Passes over the layers that order them.
const SWEEPS: usize = 6;
/// A box, and what an edge takes that passes by.
const BOX: [f64; 2] = [164.0, 46.0];
const PASS: f64 = 8.0;
/// Between layers, and between neighbours in one.
const GAPS: [f64; 2] = [38.0, 12.0];

/// A stage as it is drawn.
pub struct Node {
    pub name: String,
    /// Below the name: kind, state, time.
    pub detail: String,
    pub status: String,
    /// Places in the list of nodes of what it reads, all before its own.
    pub reads: Vec<usize>,
}

/// Where the layers go.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Right,
    Down,
}

/// The graph; nothing where there is none to see.
pub fn draw(nodes: &[Node]) -> String {
    if nodes.is_empty() || nodes.len() > MOST {
        return String::new();
    }
    let layers = Layers::new(nodes);
    format!(
        "<div class=\"scroll dag\">{}{}</div>\n",
        picture(nodes, &layers, Way::Right),
        picture(nodes, &layers, Way::Down)
    )
}

/// What stands in a layer: a stage, or an edge that passes.
struct Layers {
    /// Places by layer, in order.
    rows: Vec<Vec<usize>>,
    /// The stage of a place; none of an edge.
    stages: Vec<Option<usize>>,
    layer: Vec<usize>,
    /// Pairs of places in neighbouring layers.
    edges: Vec<[usize; 2]>,
}

impl Layers {
    fn new(nodes: &[Node]) -> Layers {
        let mut layer = vec![0; nodes.len()];
        for (i, node) in nodes.iter().enumerate() {
            layer[i] = node.reads.iter().map(|f| layer[*f] + 1).max().unwrap_or(0);
        }
        let mut layers = Layers {
            rows: vec![Vec::new(); layer.iter().max().map_or(0, |l| l + 1)],
            stages: (0..nodes.len()).map(Some).collect(),
            layer,
            edges: Vec::new(),
        };
        for place in 0..nodes.len() {
            layers.rows[layers.layer[place]].push(place);
        }
        for (to, node) in nodes.iter().enumerate() {
            for from in &node.reads {
                let mut at = *from;
                for between in layers.layer[*from] + 1..layers.layer[to] {
                    let place = layers.stages.len();
                    layers.stages.push(None);
                    layers.layer.push(between);
                    layers.rows[between].push(place);
                    layers.edges.push([at, place]);
                    at = place;
                }
                layers.edges.push([at, to]);
            }
        }
        layers.order();
        layers
    }

    /// Orders each layer by the mean place of its neighbours in the one before, then after, it.
    fn order(&mut self) {
        for sweep in 0..SWEEPS {
            let mut position = vec![0.0; self.stages.len()];
            for row in &self.rows {
                for (i, place) in row.iter().enumerate() {
                    position[*place] = (i as f64 + 0.5) / row.len() as f64;
                }
            }
            let back = sweep % 2 == 1;
            let edges = &self.edges;
            let mean = |place: usize| {
                let tied = edges.iter().filter_map(|[from, to]| match back {
                    false if *to == place => Some(position[*from]),
                    true if *from == place => Some(position[*to]),
                    _ => None,
                });
                let (sum, n) = tied.fold((0.0, 0), |(sum, n), p| (sum + p, n + 1));
                if n == 0 {
                    position[place]
                } else {
                    sum / f64::from(n)
                }
            };
            for row in &mut self.rows {
                let mut keyed: Vec<(f64, usize)> = row.iter().map(|p| (mean(*p), *p)).collect();
                // a stable sort: ties stay as they were
                keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
                *row = keyed.into_iter().map(|(_, place)| place).collect();
            }
        }
    }
}

fn picture(nodes: &[Node], layers: &Layers, way: Way) -> String {
    // along the layers, and across them
    let (deep, broad) = match way {
        Way::Right => (BOX[0], BOX[1]),
        Way::Down => (BOX[1], BOX[0]),
    };
    let extent = |place: &usize| layers.stages[*place].map_or(PASS, |_| broad);
    let length = |row: &Vec<usize>| {
        row.iter().map(extent).sum::<f64>() + GAPS[1] * (row.len().max(1) - 1) as f64
    };
    let most = layers.rows.iter().map(length).fold(0.0, f64::max);
    let step = deep + GAPS[0];
    let mut at = vec![[0.0; 2]; layers.stages.len()];
    for (l, row) in layers.rows.iter().enumerate() {
        let mut across = (most - length(row)) / 2.0;
        for place in row {
            at[*place] = [l as f64 * step, across + extent(place) / 2.0];
            across += extent(place) + GAPS[1];
        }
    }
    // (along, across the middle) to (x, y)
    let xy = |along: f64, across: f64| match way {
        Way::Right => [along + 1.0, across + 1.0],
        Way::Down => [across + 1.0, along + 1.0],
    };
    let mut inner = String::new();
    for [from, to] in &layers.edges {
        let ([a, p], [b, q]) = (at[*from], at[*to]);
        let middle = f64::midpoint(a + deep, b);
        let [[x1, y1], [x2, y2], [x3, y3], [x4, y4]] =
            [xy(a + deep, p), xy(middle, p), xy(middle, q), xy(b, q)];
        let _ = write!(
            inner,
            "<path d=\"M{x1:.1} {y1:.1}C{x2:.1} {y2:.1} {x3:.1} {y3:.1} {x4:.1} {y4:.1}"
        );
        if layers.stages[*to].is_none() {
            let [x, y] = xy(b + deep, q);
            let _ = write!(inner, "L{x:.1} {y:.1}");
        }
        inner.push_str("\"/>");
    }
    for (place, stage) in layers.stages.iter().enumerate() {
        let Some(node) = stage.map(|i| &nodes[i]) else {
            continue;
        };
        let [along, across] = at[place];
        let [x, y] = xy(along, across - broad / 2.0);
        let class = class(&node.status);
        let _ = write!(
            inner,
            "<a href=\"#{}\"><title>{}: {}</title>\
             <rect class=\"box\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{}\" height=\"{}\" rx=\"7\"/>\
             <rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"3\" height=\"{}\" rx=\"1.5\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text><text class=\"small\" x=\"{:.1}\" y=\"{:.1}\">{}</text></a>",
            super::stages::anchor(&node.name),
            escape(&node.name),
            escape(&node.detail),
            BOX[0],
            BOX[1],
            x + 7.0,
            y + 9.0,
            BOX[1] - 18.0,
            x + 18.0,
            y + 20.0,
            escape(&short(&node.name, 20)),
            x + 18.0,
            y + 35.0,
            escape(&short(&node.detail, 26)),
        );
    }
    let [width, height] = {
        let [w, h] = xy(layers.rows.len() as f64 * step - GAPS[0], most);
        [w + 1.0, h + 1.0]
    };
    let name = if way == Way::Right { "right" } else { "down" };
    format!(
        "<svg class=\"{name}\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"stages\">{inner}</svg>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, reads: &[usize]) -> Node {
        Node {
            name: name.into(),
            detail: "command · ran".into(),
            status: "ran".into(),
            reads: reads.to_vec(),
        }
    }

    #[test]
    fn long_edges_pass_between_stages_and_crossings_are_sorted_out() {
        // c reads b, d reads a: as they come, their edges would cross
        let nodes = [
            node("a", &[]),
            node("b", &[]),
            node("c", &[1]),
            node("d", &[0]),
        ];
        let layers = Layers::new(&nodes);
        assert_eq!(layers.rows, [vec![0, 1], vec![3, 2]]);
        // e reads a over a layer of b: a place of its own beside b
        let nodes = [node("a", &[]), node("b", &[0]), node("e", &[1, 0])];
        let layers = Layers::new(&nodes);
        assert_eq!(layers.rows[1].len(), 2);
        assert_eq!(layers.edges.len(), 4);
        let svg = draw(&nodes);
        assert_eq!(svg.matches("<svg").count(), 2);
        assert_eq!(svg.matches("class=\"box\"").count(), 6);
        assert!(draw(&[]).is_empty());
    }
}
