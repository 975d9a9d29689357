//! The order in which rows are taken: a fresh seeded permutation per epoch, addressed by a cursor.

use crate::rng::Draw;
use std::sync::Mutex;

/// Row order over `n` rows. The cursor counts rows taken since the start of training; row
/// `at(cursor)` depends on nothing but (n, seed, cursor), so a resumed run skips and repeats none.
pub struct Order {
    n: usize,
    seed: u64,
    shuffled: bool,
    /// The epoch asked for last and its permutation: only a cache.
    epoch: Mutex<Option<(u64, Vec<u32>)>>,
}

impl Order {
    /// Permutes the rows anew in each epoch. `n` must not be 0 (datasets refuse to be empty) and
    /// fit in u32.
    pub fn new(n: usize, seed: u64) -> Order {
        assert!(n > 0 && u32::try_from(n).is_ok(), "order over {n} rows");
        Order {
            n,
            seed,
            shuffled: true,
            epoch: Mutex::new(None),
        }
    }

    /// The rows as they come, over and over.
    pub fn sequential(n: usize) -> Order {
        Order {
            shuffled: false,
            ..Order::new(n, 0)
        }
    }

    /// The row at a cursor.
    pub fn at(&self, cursor: u64) -> usize {
        let (epoch, position) = (cursor / self.n as u64, (cursor % self.n as u64) as usize);
        if !self.shuffled {
            return position;
        }
        let mut cached = self.epoch.lock().unwrap_or_else(|e| e.into_inner());
        match &*cached {
            Some((at, rows)) if *at == epoch => rows[position] as usize,
            _ => {
                let mut rows: Vec<u32> = (0..self.n as u32).collect();
                Draw::new(self.seed, "order", epoch, 0).shuffle(&mut rows);
                let row = rows[position] as usize;
                *cached = Some((epoch, rows));
                row
            }
        }
    }

    /// The `count` rows from a cursor on; an epoch boundary may lie inside.
    pub fn take(&self, cursor: u64, count: usize) -> Vec<usize> {
        (cursor..cursor + count as u64)
            .map(|c| self.at(c))
            .collect()
    }

    /// Rows per epoch.
    pub fn epoch_len(&self) -> usize {
        self.n
    }
}
