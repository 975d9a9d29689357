//! Stages that wait for room.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

use crate::slots::Need;

/// What waits, by what it needs: of those that need the same only the first in line has to be looked at.
pub struct Ready<T> {
    lines: BTreeMap<Need, BinaryHeap<Waiting<T>>>,
}

struct Waiting<T> {
    /// Seconds to the end of the longest chain below: the longest way goes first.
    path: f64,
    /// Among equals, in plan order.
    index: Reverse<usize>,
    what: T,
}

impl<T> Ready<T> {
    pub fn new() -> Ready<T> {
        Ready {
            lines: BTreeMap::new(),
        }
    }

    pub fn push(&mut self, need: Need, path: f64, index: usize, what: T) {
        let index = Reverse(index);
        let line = self.lines.entry(need).or_default();
        line.push(Waiting { path, index, what });
    }

    /// The first in line of those whose need `takes` grants, with its index.
    pub fn pop<R>(
        &mut self,
        mut takes: impl FnMut(&Need) -> Option<R>,
    ) -> Option<(usize, Need, R, T)> {
        let mut lines: Vec<(&Need, &mut BinaryHeap<Waiting<T>>)> = self
            .lines
            .iter_mut()
            .filter(|(_, line)| !line.is_empty())
            .collect();
        lines.sort_by(|(_, a), (_, b)| b.peek().cmp(&a.peek()));
        for (need, line) in lines {
            if let Some(taken) = takes(need)
                && let Some(Waiting { index, what, .. }) = line.pop()
            {
                return Some((index.0, need.clone(), taken, what));
            }
        }
        None
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.path
            .total_cmp(&other.path)
            .then(self.index.cmp(&other.index))
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Waiting<T> {}
