//! Context parallelism: ranks that share the rows of a microbatch.
//!
//! Every span is cut in `2 * ranks` pieces, and rank `r` gets pieces `r` and `2 * ranks - 1 - r`:
//! under a causal mask an early piece with few keys and a late one with many, so that all ranks
//! have the same work. Attention gathers all keys and values and asks with the rank's own queries,
//! which is exact under any mask; the gradient of the keys is scattered back. Everything else is by
//! row.

use model::{Attend, AttendSpec, Layout, Packed, Share};
use tch::{Device, Tensor};

use crate::Error;
use crate::crossing::Crossing;

/// Rows of a layout for each of `ranks`, ascending. Counts are as even as the pieces allow.
pub(crate) fn deal(layout: &Layout, ranks: usize) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = vec![Vec::new(); ranks];
    let mut end = 0;
    for span in &layout.spans {
        // rows between spans attend to nothing: whoever has the fewest takes them
        for row in end..span.start {
            lightest(&mut parts).push(row);
        }
        end = span.start + span.len;
        let mut at = span.start;
        for (piece, size) in pieces(span.len, &parts).into_iter().enumerate() {
            parts[piece.min(2 * ranks - 1 - piece)].extend(at..at + size);
            at += size;
        }
    }
    parts
}

/// Sizes of the pieces of a span of `len` rows, after what the ranks have already. Rows that do
/// not divide go one by one to the rank with the fewest, or short spans would all be one rank's.
fn pieces(len: usize, parts: &[Vec<usize>]) -> Vec<usize> {
    let ranks = parts.len();
    let (least, more) = (len / (2 * ranks), len % (2 * ranks));
    let mut sizes = vec![least; 2 * ranks];
    let mut given = vec![0; ranks];
    for _ in 0..more {
        let rank = (0..ranks)
            .filter(|&r| given[r] < 2)
            .min_by_key(|&r| parts[r].len() + given[r])
            .expect("fewer rows are left over than two for each rank");
        let piece = [rank, 2 * ranks - 1 - rank][given[rank]];
        sizes[piece] += 1;
        given[rank] += 1;
    }
    sizes
}

fn lightest(parts: &mut [Vec<usize>]) -> &mut Vec<usize> {
    let part = parts.iter_mut().min_by_key(|p| p.len());
    part.expect("at least one rank")
}

/// Attention of a rank's own queries over all ranks' keys and values.
pub(crate) struct Across {
    ranks: Crossing,
    packed: Packed,
    /// Some row here belongs to a span.
    asks: bool,
}

impl Across {
    /// For the ranks' rows of a layout, each padded to `rows`.
    pub fn new(
        layout: &Layout,
        parts: &[Vec<usize>],
        rows: usize,
        ranks: Crossing,
        device: Device,
    ) -> Result<Self, Error> {
        let padded = |part: &Vec<usize>| {
            let mut out: Vec<Option<usize>> = part.iter().map(|&row| Some(row)).collect();
            out.resize(rows, None);
            out
        };
        let share = Share {
            queries: padded(&parts[ranks.rank()]),
            keys: parts.iter().flat_map(padded).collect(),
        };
        let spanned = |row: &usize| {
            let mut spans = layout.spans.iter();
            spans.any(|s| (s.start..s.start + s.len).contains(row))
        };
        Ok(Self {
            asks: parts[ranks.rank()].iter().any(spanned),
            packed: Packed::shared(layout, share, device)?,
            ranks,
        })
    }
}

impl Attend for Across {
    fn attend(
        &self,
        layer: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttendSpec,
    ) -> Tensor {
        let heads = k.size()[1];
        let both = Tensor::cat(&[k, v], 1);
        let all = self.ranks.gather_node(both, "keys and values");
        let parts = all.split(heads, 1);
        let seen = self.packed.attend(layer, q, &parts[0], &parts[1], spec);
        if self.asks {
            return seen;
        }
        // nothing was asked, but the others' gradients of these keys must be waited for
        seen + all.narrow(0, 0, 1).sum(all.kind()) * 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(layout: &Layout, ranks: usize) -> Vec<Vec<usize>> {
        let parts = deal(layout, ranks);
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..layout.rows()).collect::<Vec<_>>(), "each row once");
        assert!(parts.iter().all(|p| p.is_sorted()));
        let sizes = parts.iter().map(Vec::len);
        let (least, most) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
        assert!(most - least <= 1, "{layout:?}: {parts:?}");
        parts
    }

    #[test]
    fn pairs_of_pieces_balance_causal_work() {
        let parts = check(&Layout::sequences(&[16]), 2);
        assert_eq!(parts[0], [0, 1, 2, 3, 12, 13, 14, 15]);
        for ranks in [2, 3, 4] {
            let parts = check(&Layout::sequences(&[240]), ranks);
            let pairs = |part: &Vec<usize>| part.iter().map(|row| row + 1).sum::<usize>();
            let work: Vec<usize> = parts.iter().map(pairs).collect();
            assert!(work.iter().all(|&w| w == work[0]), "{work:?}");
        }
    }

    #[test]
    fn rows_that_do_not_divide_are_spread() {
        let mut state = 3u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(99);
            ((state >> 33) % n) as usize
        };
        for _ in 0..200 {
            let mut layout = Layout::default();
            for _ in 0..draw(9) {
                let last = layout.spans.len().checked_sub(1);
                let prefix = last.filter(|&p| layout.spans[p].prefix.is_none());
                layout.push(draw(14), prefix.filter(|_| draw(2) == 0));
            }
            check(&layout, 1 + draw(5));
        }
        check(&Layout::sequences(&[1; 40]), 4);
    }
}
