//! How a layout's attention is cut into few dense calls: torch-free arithmetic on row numbers.
//!
//! Every span is a sequence of rows, its prefix's and its own, of which the own ones ask. A
//! window cuts a long sequence into chunks of queries that each see a bounded range of keys.
//! Pieces of similar size are padded to one another inside a group, and a group is one call.
//! Where ranks share the rows, a rank's runs of neighbouring rows ask instead of whole spans.

use super::{Layout, Share};
use std::ops::Range;

/// One dense call: `batch` pieces of `lq` queries and `lk` keys, padded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Group {
    pub batch: usize,
    pub lq: usize,
    pub lk: usize,
    /// Rows of the queries, `batch * lq`; padding repeats a row of the piece.
    pub q_rows: Vec<i64>,
    /// Rows of the keys, `batch * lk`.
    pub k_rows: Vec<i64>,
    /// Query `i` of a piece is at key `offset + i`; one value per piece.
    pub offsets: Vec<usize>,
    /// Plainly causal: every offset is zero and no window cuts.
    pub causal: bool,
}

/// The calls for one layout and window.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plan {
    pub groups: Vec<Group>,
    /// For every query row, where its result lies in the groups' results laid end to end; one past the
    /// end for a row that no span holds.
    pub places: Vec<i64>,
    /// Rows of the groups' results laid end to end, padding included.
    pub computed: usize,
}

/// Queries and keys of a sequence `prefix ++ own`, by position in it.
#[derive(Debug, Clone)]
struct Piece {
    /// Rows of the sequence.
    prefix: Range<usize>,
    own: Range<usize>,
    /// Positions that ask.
    queries: Range<usize>,
    /// Positions seen.
    keys: Range<usize>,
    causal: bool,
}

impl Piece {
    fn row(&self, position: usize) -> usize {
        if position < self.prefix.len() {
            self.prefix.start + position
        } else {
            self.own.start + position - self.prefix.len()
        }
    }

    fn offset(&self) -> usize {
        self.queries.start - self.keys.start
    }
}

/// Shorter windows than this are not worth a call's chunk of their own size.
const MIN_CHUNK: usize = 64;
/// What a further call costs, in query-key pairs.
const CALL: f64 = 4096.0;
/// What moving a row costs, in query-key pairs.
const ROW: f64 = 16.0;

impl Plan {
    /// The calls for a layout that has been checked.
    ///
    /// With a share, `places` and the rows of queries are of its queries, the rows of keys are of
    /// its keys.
    pub fn new(layout: &Layout, window: Option<usize>, share: Option<&Share>) -> Self {
        let places = share.map(|s| {
            let rows = layout.rows();
            (inverse(&s.queries, rows), inverse(&s.keys, rows))
        });
        let mut pieces = Vec::new();
        for span in &layout.spans {
            let own = span.start..span.start + span.len;
            let prefix = span.prefix.map_or(0..0, |p| {
                let p = layout.spans[p];
                p.start..p.start + p.len
            });
            match &places {
                None => cut(&mut pieces, prefix, own, window),
                Some((asking, _)) => {
                    for run in runs(&asking[own.clone()]) {
                        let asked = prefix.len() + run.start..prefix.len() + run.end;
                        cut_run(&mut pieces, &prefix, &own, asked, window);
                    }
                }
            }
        }
        pieces.sort_by_key(|p| (!p.causal, p.offset(), p.keys.len(), p.queries.len()));
        let mut plan = Self {
            groups: Vec::new(),
            places: vec![-1; layout.rows()],
            computed: 0,
        };
        let mut groups = grouped(&pieces);
        groups.sort_by_key(|r| pieces[r.clone()].iter().map(|p| p.own.start).min());
        for range in groups {
            plan.add(&mut pieces[range]);
        }
        if let (Some(share), Some((asking, keys))) = (share, &places) {
            plan.rename(share, asking, keys);
        }
        for place in plan.places.iter_mut().filter(|p| **p < 0) {
            *place = plan.computed as i64;
        }
        plan
    }

    /// From rows of the layout to rows of the share.
    fn rename(&mut self, share: &Share, asking: &[i64], keys: &[i64]) {
        for group in &mut self.groups {
            for row in &mut group.q_rows {
                *row = asking[*row as usize];
            }
            for row in &mut group.k_rows {
                *row = keys[*row as usize];
            }
        }
        let place = |row: &Option<usize>| row.map_or(-1, |r| self.places[r]);
        self.places = share.queries.iter().map(place).collect();
    }

    fn add(&mut self, pieces: &mut [Piece]) {
        // in the order of rows, so that neighbours stay neighbours and need no moving
        pieces.sort_by_key(|p| (p.own.start, p.queries.start));
        let lq = longest(pieces, |p| &p.queries);
        let lk = longest(pieces, |p| &p.keys);
        let mut group = Group {
            batch: pieces.len(),
            lq,
            lk,
            q_rows: Vec::with_capacity(pieces.len() * lq),
            k_rows: Vec::with_capacity(pieces.len() * lk),
            offsets: pieces.iter().map(Piece::offset).collect(),
            causal: pieces[0].causal,
        };
        for p in pieces.iter() {
            for i in 0..lq {
                let position = (p.queries.start + i).min(p.queries.end - 1);
                group.q_rows.push(p.row(position) as i64);
                // a prefix that asks along with its branch has its result from its own piece
                if i < p.queries.len() && position >= p.prefix.len() {
                    self.places[p.row(position)] = (self.computed + i) as i64;
                }
            }
            for j in 0..lk {
                let position = (p.keys.start + j).min(p.keys.end - 1);
                group.k_rows.push(p.row(position) as i64);
            }
            self.computed += lq;
        }
        self.groups.push(group);
    }
}

/// Appends the pieces of one sequence.
fn cut(out: &mut Vec<Piece>, prefix: Range<usize>, own: Range<usize>, window: Option<usize>) {
    let (first, total) = (prefix.len(), prefix.len() + own.len());
    if own.is_empty() {
        return;
    }
    // A short prefix asks again with its branch: the causal call is cheaper than a mask.
    let whole = first <= own.len() && window.is_none_or(|w| w >= total);
    let asked = if whole { 0 } else { first }..total;
    cut_run(out, &prefix, &own, asked, window);
}

/// Appends the pieces of the positions `asked` of one sequence.
fn cut_run(
    out: &mut Vec<Piece>,
    prefix: &Range<usize>,
    own: &Range<usize>,
    asked: Range<usize>,
    window: Option<usize>,
) {
    let piece = |queries, keys, causal| Piece {
        prefix: prefix.clone(),
        own: own.clone(),
        queries,
        keys,
        causal,
    };
    match window.filter(|&w| w < asked.end) {
        Some(w) => {
            let mut at = asked.start;
            while at < asked.end {
                let end = (at + w.max(MIN_CHUNK)).min(asked.end);
                out.push(piece(at..end, (at + 1).saturating_sub(w)..end, false));
                at = end;
            }
        }
        None => {
            let causal = asked.start == 0;
            out.push(piece(asked.clone(), 0..asked.end, causal));
        }
    }
}

/// Where each of `rows` rows is listed; minus one where it is not.
fn inverse(listed: &[Option<usize>], rows: usize) -> Vec<i64> {
    let mut out = vec![-1; rows];
    for (at, row) in listed.iter().enumerate() {
        if let Some(row) = row {
            out[*row] = at as i64;
        }
    }
    out
}

/// Runs of neighbours that are listed.
fn runs(places: &[i64]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for (i, _) in places.iter().enumerate().filter(|(_, p)| **p >= 0) {
        match out.last_mut() {
            Some(run) if run.end == i => run.end = i + 1,
            _ => out.push(i..i + 1),
        }
    }
    out
}

fn longest(pieces: &[Piece], of: impl Fn(&Piece) -> &Range<usize>) -> usize {
    pieces.iter().map(|p| of(p).len()).max().unwrap_or(0)
}

/// Cuts sorted pieces into runs of least total cost: padding against calls.
fn grouped(pieces: &[Piece]) -> Vec<Range<usize>> {
    // equal sizes always share a group: choose among the places where the size changes
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (i, p) in pieces.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if size(&pieces[run.start]) == size(p) => run.end = i + 1,
            _ => runs.push(i..i + 1),
        }
    }
    // best[r]: cost of the runs before r, and where the last of their groups starts
    let mut best = vec![(0.0, 0); runs.len() + 1];
    for end in 1..=runs.len() {
        let (mut lq, mut lk, mut batch) = (0, 0, 0);
        let mut least = (f64::INFINITY, end - 1);
        for start in (0..end).rev() {
            let p = &pieces[runs[start].start];
            if p.causal != pieces[runs[end - 1].start].causal {
                break;
            }
            lq = lq.max(p.queries.len());
            lk = lk.max(p.keys.len());
            batch += runs[start].len();
            let pairs = if p.causal { 0.6 } else { 1.0 } * (lq * lk) as f64;
            let cost = best[start].0 + CALL + batch as f64 * (pairs + ROW * (lq + lk) as f64);
            if cost < least.0 {
                least = (cost, start);
            }
        }
        best[end] = least;
    }
    let mut out = Vec::new();
    let mut end = runs.len();
    while end > 0 {
        let start = best[end].1;
        out.push(runs[start].start..runs[end - 1].end);
        end = start;
    }
    out.reverse();
    out
}

fn size(p: &Piece) -> (bool, usize, usize, usize) {
    (p.causal, p.offset(), p.keys.len(), p.queries.len())
}
