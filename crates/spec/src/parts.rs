//! Work on many equal things, shared among threads.

use std::panic::resume_unwind;
use std::thread::{ScopedJoinHandle, available_parallelism, scope};

/// From so many things on a thread pays: the stages of a large recipe, at microseconds each.
const MANY: usize = 500;

/// `each` of consecutive parts of `items`, one part to a core, in their order; of all at once where they are few.
pub fn in_parts<T: Sync, R: Send>(items: &[T], each: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    if items.len() < MANY {
        return vec![each(items)];
    }
    let parts: Vec<&[T]> = items.chunks(items.len().div_ceil(cores())).collect();
    side_by_side(&parts, |part| each(part))
}

/// Threads that work is shared among.
pub fn cores() -> usize {
    available_parallelism().map_or(1, |n| n.get()).min(8)
}

/// `each` of a few large items, on a thread of its own, in their order.
pub fn side_by_side<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let each = &each;
    let join = |thread: ScopedJoinHandle<'_, R>| thread.join().unwrap_or_else(|e| resume_unwind(e));
    scope(|scope| {
        let threads: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(move || each(item)))
            .collect();
        threads.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn parts_are_in_order_and_whole() {
        for n in [0, 1, 499, 500, 501, 5000] {
            let items: Vec<usize> = (0..n).collect();
            let parts = super::in_parts(&items, <[usize]>::to_vec);
            assert_eq!(parts.concat(), items);
        }
    }
}
