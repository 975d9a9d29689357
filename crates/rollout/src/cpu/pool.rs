//! A few threads that take the pieces of one small job at a time.
//!
//! A decode step is some hundred operations of 5 to 100 microseconds, so workers spin briefly for
//! the next job before they sleep. Pieces are claimed one by one: a thread that is descheduled
//! delays the job by one piece at most. Which thread runs a piece never changes a result.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// The most pieces one published job has; longer ranges are published in parts.
const MOST: usize = u16::MAX as usize;
/// How long an idle worker spins before it sleeps, in polls (about 150 microseconds): longer than
/// what lies between two steps, as waking up takes as long.
const SPINS: u32 = 8000;

type Work<'a> = &'a (dyn Fn(usize) + Sync + 'a);

/// `state` is (epoch: 32, pieces: 16, next piece: 16). A successful compare-and-swap of `next`
/// proves that the epoch is still current, so `job` read before it is that epoch's job, and its
/// owner waits for the claimed piece.
struct Shared {
    state: AtomicU64,
    job: AtomicPtr<Work<'static>>,
    done: AtomicUsize,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<Option<Box<dyn Any + Send>>>,
    wake: Condvar,
}

impl Shared {
    /// Claims pieces of the current job until none is left.
    fn take(&self) {
        loop {
            let state = self.state.load(Acquire);
            let (pieces, next) = ((state >> 16) & 0xffff, state & 0xffff);
            if next >= pieces {
                return;
            }
            let job = self.job.load(Acquire);
            if self
                .state
                .compare_exchange_weak(state, state + 1, AcqRel, Relaxed)
                .is_err()
            {
                continue;
            }
            // SAFETY: the claim succeeded, so `job` is alive until `done` counts this piece.
            let work = unsafe { *job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(next as usize))) {
                *self.lock.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
            }
            self.done.fetch_add(1, Release);
        }
    }

    fn has_work(&self) -> bool {
        let state = self.state.load(SeqCst);
        (state & 0xffff) < ((state >> 16) & 0xffff)
    }

    fn work_for_ever(&self) {
        loop {
            self.take();
            let mut spins = 0;
            while !self.has_work() {
                if self.stop.load(Relaxed) {
                    return;
                }
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                    continue;
                }
                let mut guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
                self.sleepers.fetch_add(1, SeqCst);
                while !self.has_work() && !self.stop.load(SeqCst) {
                    guard = self.wake.wait(guard).unwrap_or_else(|e| e.into_inner());
                }
                self.sleepers.fetch_sub(1, SeqCst);
                spins = 0;
            }
        }
    }
}

/// Threads that share a job with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool that computes on `threads` threads, the caller's included.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            done: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(None),
            wake: Condvar::new(),
        });
        let workers = (1..threads)
            .map_while(|i| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("rollout-{i}"))
                    .spawn(move || shared.work_for_ever())
                    .ok() // fewer threads are slower, not wrong
            })
            .collect();
        Self { shared, workers }
    }

    /// Threads that compute, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(0..pieces)`, each once, in any order and on any thread; returns when all are
    /// done. A panic of a piece is raised again here. Not to be called from within a piece.
    pub fn run(&mut self, pieces: usize, work: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || pieces == 1 {
            return (0..pieces).for_each(work);
        }
        let mut from = 0;
        while from < pieces {
            let part = (pieces - from).min(MOST);
            self.publish(part, &|i| work(from + i));
            from += part;
        }
    }

    fn publish(&mut self, pieces: usize, work: Work) {
        let shared = &*self.shared;
        shared.done.store(0, Relaxed);
        // SAFETY: only the lifetime changes; `work` outlives every use, see `Shared`.
        let mut work: Work<'static> = unsafe { std::mem::transmute(work) };
        shared.job.store(&mut work, Release);
        let epoch = (shared.state.load(Relaxed) >> 32).wrapping_add(1);
        shared
            .state
            .store(epoch << 32 | (pieces as u64) << 16, SeqCst);
        if shared.sleepers.load(SeqCst) > 0 {
            let _guard = shared.lock.lock().unwrap_or_else(|e| e.into_inner());
            shared.wake.notify_all();
        }
        shared.take();
        let mut spins = 0u32;
        while shared.done.load(Acquire) < pieces {
            spins += 1;
            if spins.is_multiple_of(1000) {
                std::thread::yield_now()
            } else {
                std::hint::spin_loop()
            }
        }
        let panic = shared.lock.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        drop(self.shared.lock.lock().unwrap_or_else(|e| e.into_inner()));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // its panics were raised where the job ran
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once_also_after_sleeping() {
        let mut pool = Pool::new(3);
        for round in 0..2000usize {
            let pieces = round % 67 + 1;
            let hits: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run(pieces, |i| {
                hits[i].fetch_add(1, Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Relaxed) == 1), "round {round}");
            if round % 500 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        let hits = AtomicUsize::new(0);
        pool.run(MOST + 10, |_| {
            hits.fetch_add(1, Relaxed);
        });
        assert_eq!(hits.load(Relaxed), MOST + 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(2);
        let died = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, |i| assert!(i != 5, "piece five"))
        }));
        assert!(died.is_err());
        let hits = AtomicUsize::new(0);
        pool.run(8, |_| {
            hits.fetch_add(1, Relaxed);
        });
        assert_eq!(hits.load(Relaxed), 8);
    }
}
