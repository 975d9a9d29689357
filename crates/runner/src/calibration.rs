//! How fast this machine is right now, so that a stage's speed can be judged as a ratio to it.
//!
//! The unit is GFLOP/s of fp32 products of 192 x 192 matrices in this program's own loop (2 x 192^3 operations each), on
//! as many threads as the stage has: each thread works for 20 ms and counts its fastest product, and the threads' rates
//! are added. It lies in L2, so it follows clock and core, neither memory nor the wider instructions that kernels use.

use std::hint::black_box;
use std::time::{Duration, Instant};

const SIZE: usize = 192;
const LASTS: Duration = Duration::from_millis(20);

/// GFLOP/s of so many threads together.
pub fn gflops(threads: usize) -> f64 {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(fastest)).collect();
        let rates = threads.into_iter().filter_map(|thread| thread.join().ok());
        rates.sum()
    })
}

/// GFLOP/s of this thread's fastest product.
fn fastest() -> f64 {
    let a = vec![0.5f32; SIZE * SIZE];
    let b = vec![0.25f32; SIZE * SIZE];
    let mut c = vec![0.0f32; SIZE * SIZE];
    let began = Instant::now();
    let mut best = f64::INFINITY;
    while began.elapsed() < LASTS {
        let start = Instant::now();
        product(black_box(&a), black_box(&b), &mut c);
        black_box(&mut c);
        best = best.min(start.elapsed().as_secs_f64());
    }
    2.0 * (SIZE as f64).powi(3) / best.max(1e-9) / 1e9
}

fn product(a: &[f32], b: &[f32], c: &mut [f32]) {
    for (a, c) in a.chunks_exact(SIZE).zip(c.chunks_exact_mut(SIZE)) {
        c.fill(0.0);
        for (x, b) in a.iter().zip(b.chunks_exact(SIZE)) {
            for (c, y) in c.iter_mut().zip(b) {
                *c += x * y;
            }
        }
    }
}
