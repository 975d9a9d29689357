//! The batch plan: which units in which microbatch on which rank.
//!
//! A pure function of sizes, so that every rank computes the same. Placement changes rounding and
//! speed, never the mathematics.

use data::pack::best_fit_decreasing;

use crate::Unit;

/// Units by rank and microbatch. Every rank has the same number of microbatches (some empty where
/// there is less to do), so that no collective inside one waits for a rank that has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// `ranks[r][m]`: indices of the units in microbatch m of rank r, longest first.
    pub ranks: Vec<Vec<Vec<usize>>>,
}

impl Plan {
    /// Spreads `units` over `ranks` in microbatches of at most `budget` rows. A unit longer than
    /// the budget gets a microbatch of its own.
    pub fn new(units: &[Unit], ranks: usize, budget: usize, share_prefix: bool) -> Plan {
        let rows: Vec<usize> = units.iter().map(|u| rows(u, share_prefix)).collect();
        Plan::of_rows(&rows, ranks, budget)
    }

    /// The plan for units of these row counts.
    pub fn of_rows(rows: &[usize], ranks: usize, budget: usize) -> Plan {
        let ranks = ranks.max(1);
        let budget = budget.max(1);
        let packed = best_fit_decreasing(rows, budget);
        let per_rank = packed.len().div_ceil(ranks).max(1);
        // The same number of microbatches filled evenly is faster than some full and some not;
        // when that overfills one, the packing as it is is spread over ranks.
        let even = spread(rows, per_rank * ranks);
        let fits = even
            .iter()
            .all(|bin| bin.len() <= 1 || total(rows, bin) <= budget);
        let bins = if fits { even } else { packed };
        assign(rows, bins, ranks, per_rank)
    }
}

/// Rows that a unit needs: a prefix shared by its branches counts once; what follows the last
/// masked token is not computed.
pub(crate) fn rows(unit: &Unit, share_prefix: bool) -> usize {
    let live = unit.branches.iter().filter(|b| b.masked() > 0);
    let (n, own) = live.fold((0, 0), |(n, own), b| (n + 1, own + b.inputs()));
    match (n, share_prefix) {
        (0, _) => 0,
        (_, true) => unit.prefix.len() + own,
        (n, false) => n * unit.prefix.len() + own,
    }
}

fn total(rows: &[usize], bin: &[usize]) -> usize {
    bin.iter().map(|&u| rows[u]).sum()
}

/// Longest first, each into the bin with the fewest rows (the first of equals).
fn spread(rows: &[usize], bins: usize) -> Vec<Vec<usize>> {
    let mut out = vec![(0, Vec::new()); bins];
    for unit in by_length(rows) {
        let (load, bin) = out
            .iter_mut()
            .min_by_key(|(load, _)| *load)
            .expect("at least one bin");
        *load += rows[unit];
        bin.push(unit);
    }
    out.into_iter().map(|(_, bin)| bin).collect()
}

fn by_length(rows: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&u| (std::cmp::Reverse(rows[u]), u));
    order
}

/// Gives each bin, fullest first, to the rank with the fewest rows that has a microbatch left.
fn assign(rows: &[usize], mut bins: Vec<Vec<usize>>, ranks: usize, per_rank: usize) -> Plan {
    for bin in &mut bins {
        bin.sort_by_key(|&u| (std::cmp::Reverse(rows[u]), u));
    }
    let loads: Vec<usize> = bins.iter().map(|bin| total(rows, bin)).collect();
    let mut out: Vec<(usize, Vec<Vec<usize>>)> = vec![(0, Vec::new()); ranks];
    for index in by_length(&loads) {
        let (load, mine) = out
            .iter_mut()
            .filter(|(_, mine)| mine.len() < per_rank)
            .min_by_key(|(load, _)| *load)
            .expect("there are at most ranks * per_rank bins");
        *load += loads[index];
        mine.push(std::mem::take(&mut bins[index]));
    }
    let mut ranks: Vec<Vec<Vec<usize>>> = out.into_iter().map(|(_, mine)| mine).collect();
    for mine in &mut ranks {
        mine.resize(per_rank, Vec::new());
    }
    Plan { ranks }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Branch;

    fn check(rows: &[usize], ranks: usize, budget: usize) -> Plan {
        let plan = Plan::of_rows(rows, ranks, budget);
        assert_eq!(plan.ranks.len(), ranks);
        let mut seen: Vec<usize> = plan.ranks.iter().flatten().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..rows.len()).collect::<Vec<_>>(), "each unit once");
        let count = plan.ranks[0].len();
        for rank in &plan.ranks {
            assert_eq!(rank.len(), count, "as many microbatches on every rank");
            for bin in rank {
                assert!(
                    bin.len() <= 1 || total(rows, bin) <= budget,
                    "{rows:?} {plan:?}"
                );
            }
        }
        plan
    }

    #[test]
    fn every_unit_once_within_the_budget() {
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        for _ in 0..300 {
            let n = draw(40) as usize;
            let rows: Vec<usize> = (0..n).map(|_| draw(60) as usize).collect();
            check(&rows, 1 + draw(4) as usize, 1 + draw(120) as usize);
        }
    }

    #[test]
    fn ranks_get_even_loads_and_empty_microbatches() {
        let plan = check(&[10, 10, 10, 10], 2, 1000);
        assert_eq!(plan.ranks, vec![vec![vec![0, 2]], vec![vec![1, 3]]]);
        let plan = check(&[50], 2, 16);
        assert_eq!(plan.ranks, vec![vec![vec![0]], vec![vec![]]]);
        assert_eq!(check(&[], 2, 16).ranks, [[[0usize; 0]], [[0; 0]]]);
    }

    #[test]
    fn rows_count_a_prefix_once_and_stop_at_the_last_masked_token() {
        let branch = |mask: &[bool]| Branch {
            tokens: vec![1; mask.len()],
            mask: mask.to_vec(),
        };
        let unit = Unit {
            prefix: vec![1; 5],
            branches: vec![
                branch(&[true, true, true]),
                branch(&[true, false]),
                branch(&[false]),
            ],
            ..Unit::default()
        };
        assert_eq!(rows(&unit, true), 5 + 2);
        assert_eq!(rows(&unit, false), 7 + 5);
        assert_eq!(
            rows(
                &Unit {
                    prefix: vec![1; 5],
                    ..Unit::default()
                },
                true
            ),
            0
        );
    }
}
