//! Replicas whose group is judged together, and what must wait for that.
//!
//! An assertion that compares with a baseline is judged once all replicas have ended. What says `needs_assert` below any
//! of them waits for the others, whose results it does not read.

use std::collections::HashMap;

use spec::Plan;
use spec::plan::Part;

pub struct Replicas {
    /// For each stage, the others that are judged together with it.
    pub others: Vec<Vec<usize>>,
}

impl Replicas {
    pub fn of(plan: &Plan) -> Replicas {
        let mut groups: HashMap<String, Vec<usize>> = HashMap::new();
        for (i, planned) in plan.order.iter().enumerate() {
            let stage = &planned.stage;
            let cell = plan.cell(&stage.name).filter(|c| c.replica.is_some());
            let together = stage.assertions.iter().any(|a| a.baseline.is_some());
            if let Some(cell) = cell.filter(|_| together && planned.part != Part::Out) {
                groups.entry(cell.group()).or_default().push(i);
            }
        }
        let mut others = vec![Vec::new(); plan.order.len()];
        for group in groups.into_values() {
            for &i in &group {
                others[i] = group.iter().copied().filter(|j| *j != i).collect();
            }
        }
        Replicas { others }
    }

    /// Replicas that each stage waits for besides what it reads.
    pub fn waits(&self, plan: &Plan) -> Vec<(usize, usize)> {
        let mut waits = Vec::new();
        if self.others.iter().all(Vec::is_empty) {
            return waits;
        }
        let upstream = |i: usize| plan.order[i].upstream.as_slice();
        let downstream = |i: usize| plan.order[i].downstream.as_slice();
        for (i, planned) in plan.order.iter().enumerate() {
            if !planned.stage.needs_assert || planned.part == Part::Out {
                continue;
            }
            let above = reached(plan.order.len(), i, upstream);
            let below = reached(plan.order.len(), i, downstream);
            let replicas = (0..above.len()).filter(|j| above[*j]);
            let mut for_these: Vec<usize> = replicas
                .flat_map(|j| self.others[j].iter().copied())
                // what it reads it waits for anyway; what reads it cannot be waited for
                .filter(|j| !above[*j] && !below[*j])
                .collect();
            for_these.sort_unstable();
            for_these.dedup();
            waits.extend(for_these.into_iter().map(|j| (j, i)));
        }
        waits
    }
}

/// The stages that can be reached from one, itself among them.
fn reached<'p>(count: usize, from: usize, next: impl Fn(usize) -> &'p [usize]) -> Vec<bool> {
    let mut seen = vec![false; count];
    seen[from] = true;
    let mut stack = vec![from];
    while let Some(i) = stack.pop() {
        for &j in next(i) {
            if !std::mem::replace(&mut seen[j], true) {
                stack.push(j);
            }
        }
    }
    seen
}
