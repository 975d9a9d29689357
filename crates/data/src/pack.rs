//! Packing sequences into bins of a fixed capacity.

use std::collections::BTreeSet;

/// Best-fit decreasing: items by falling length, each into the fullest bin that still holds it.
///
/// Returns bins of item indices (ascending inside a bin). An item longer than `capacity` gets a
/// bin of its own. Ties are broken by index, so the result is a function of the arguments alone.
/// O(n log n) time.
pub fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Open bins as (room left, bin): the first at or above a length is the best fit.
    let mut room: BTreeSet<(usize, usize)> = BTreeSet::new();
    for item in by_length {
        let length = lengths[item];
        let found = room.range((length, 0)..).next().copied();
        let (left, bin) = match found {
            Some(open) => {
                room.remove(&open);
                open
            }
            None => {
                bins.push(Vec::new());
                (capacity.max(length), bins.len() - 1)
            }
        };
        bins[bin].push(item);
        if left > length {
            room.insert((left - length, bin));
        }
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins
}
