//! What a step sends, by formula, against what the collectives counted: bytes of all ranks together,
//! as `parallel::Count` counts them.
//!
//! With `R` rows and `K` kept rows of a microbatch, hidden size `h`, `L` layers, and sums over
//! microbatches (a segment after the last attention sees `K`, the others `R`):
//!
//! - `dp_replicate`: every parameter once, in an all-reduce;
//! - `shard`: a segment's parameters in an all-gather on the way there and one on the way back (the
//!   embedding there only, the LM matrix once), and its gradients in one reduce-scatter;
//! - `tp`: `2 h` per row and segment in all-reduces, with sequence parallelism in all-gathers and
//!   reduce-scatters alike, and what the embedding and the head add;
//! - `cp`: keys and values of every layer, gathered there and scattered back;
//! - `pp`: `h` per row and cut, there and back, counted where it is sent and where it arrives;
//! - `ep`: `h` per row and chosen expert, to the expert and back, twice.
//!
//! A balancing loss, which looks at a batch once more beforehand, is left out.

use std::collections::BTreeMap;

use arch::mesh::DENSE_SHARD;
use arch::{Mesh, ModelConfig};

use crate::job::{Case, Seen};

/// Largest departure from the formula: what the head's reductions, padding and prefetching of what
/// is not used after all add to such tiny models.
const SLACK: f64 = 0.15;

/// Bytes counted and bytes by formula.
pub type Volumes = BTreeMap<&'static str, (f64, f64)>;

/// Volumes of all ranks' first step by group.
pub fn volumes(case: &Case, mesh: &Mesh, ranks: &[&Seen]) -> Volumes {
    let config = case.model.config();
    let bytes = if case.double { 8.0 } else { 4.0 };
    let mut out = Volumes::new();
    for group in ["dp_replicate", "shard", "tp", "cp", "pp", "ep"] {
        let counted = |seen: &&Seen| -> u64 {
            let of_group = seen.traffic.iter().filter(|(name, _)| {
                let (of, _) = name.split_once(' ').expect("group and collective");
                of == group
            });
            of_group.map(|(_, (_, bytes))| bytes).sum()
        };
        let counted: u64 = ranks.iter().map(counted).sum();
        if counted > 0 {
            let each = ranks.iter().enumerate();
            let formula: f64 = each
                .map(|(r, seen)| elements(group, &config, mesh, r, seen))
                .sum();
            out.insert(group, (counted as f64, formula * bytes));
        }
    }
    out
}

/// The groups whose volume is not what the formula says.
pub fn wrong(volumes: &Volumes) -> Vec<String> {
    let context = volumes.contains_key("cp");
    let bad = volumes.iter().filter(|(group, (counted, formula))| {
        // few kept rows fall unevenly on the ranks of a context, and are padded
        if context && **group == "tp" {
            return false;
        }
        let off = (counted / formula - 1.0).abs();
        off.is_nan() || off > SLACK
    });
    bad.map(|(group, (counted, formula))| {
        format!("{group} moved {counted} bytes, the formula says {formula}")
    })
    .collect()
}

/// Elements that one rank counts in a group.
fn elements(group: &str, c: &ModelConfig, mesh: &Mesh, rank: usize, seen: &Seen) -> f64 {
    let place = mesh.coord(rank);
    let pieces = arch::stages::stages(c, mesh.pp, mesh.pp_chunks);
    let mine = |segment: usize| {
        let piece = pieces.iter().position(|p| p.contains(&segment));
        piece.is_some_and(|i| i % mesh.pp == place.pp)
    };
    let (h, last) = (c.hidden_size as f64, c.segment_count() - 1);
    let first_kept = last - 1;
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        seen.batches
            .iter()
            .map(|&(rows, kept)| of(rows as f64 / mesh.cp as f64, kept as f64 / mesh.cp as f64))
            .sum()
    };
    let microbatches = seen.batches.len() as f64;
    let held = arch::held(c, mesh, rank);
    match group {
        "dp_replicate" => held.iter().map(|h| h.shard.numel() as f64).sum(),
        "shard" => {
            let ranks = mesh.place(rank, DENSE_SHARD).1;
            let mut total = 0.0;
            for h in held.iter().filter(|h| h.def.expert.is_none()) {
                let rows = h.local.size[0].div_ceil(ranks) * ranks;
                let whole = (rows * h.local.numel() / h.local.size[0]) as f64;
                let is_head = h.def.name == c.lm_head_name();
                let segment = mine(h.def.segment);
                let mut uses = 0.0;
                if segment && h.def.segment > 0 {
                    // there, back, gradient
                    uses += 3.0 * microbatches;
                }
                if segment && h.def.segment == 0 {
                    // there, gradient, and once for a step that does not come
                    uses += 2.0 * microbatches + 1.0;
                }
                if is_head && mine(last) {
                    uses += 2.0 * microbatches;
                }
                total += uses * whole;
            }
            total
        }
        "tp" => {
            let inner = (1..last).filter(|&s| mine(s));
            let rows_of = |s: usize| -> f64 {
                let both = if mesh.splits_rows() { 4.0 } else { 2.0 };
                both * h * sum(&|r, k| if s >= first_kept { k } else { r })
            };
            let mut total: f64 = inner.map(rows_of).sum();
            if mine(0) {
                let back = if mesh.splits_rows() { 2.0 } else { 1.0 };
                total += back * h * sum(&|r, _| r);
            }
            if mine(last) {
                let both = if mesh.splits_rows() { 2.0 } else { 1.0 };
                total += both * h * sum(&|_, k| k);
            }
            if mesh.splits_rows() && mine(first_kept) {
                // the choice of kept rows looks at all, there and back
                total += h * sum(&|r, k| r + k);
            }
            total
        }
        "cp" => {
            let layers = (0..c.layers).filter(|layer| mine(1 + 2 * layer)).count() as f64;
            let kv = arch::slice::heads(c, mesh.tp, place.tp).kv.len() * c.head_dim;
            2.0 * 2.0 * layers * kv as f64 * sum(&|r, _| r) * mesh.cp as f64
        }
        "pp" => {
            let cut = |i: usize| {
                let ends = [i - 1, i].map(|piece| f64::from(u8::from(piece % mesh.pp == place.pp)));
                let rows = sum(&|r, k| if pieces[i].start > first_kept { k } else { r });
                let rows = if mesh.splits_rows() {
                    rows / mesh.tp as f64
                } else {
                    rows
                };
                2.0 * ends.iter().sum::<f64>() * h * rows
            };
            (1..pieces.len()).map(cut).sum()
        }
        _ => {
            let Some(experts) = &c.experts else {
                return 0.0;
            };
            let layer = |layer: usize| -> f64 {
                let segment = 2 + 2 * layer;
                let rows = sum(&|r, k| if segment >= first_kept { k } else { r });
                4.0 * experts.per_token as f64 * h * rows * f64::from(u8::from(mine(segment)))
            };
            experts.sparse_layers().map(layer).sum()
        }
    }
}
