//! y = x w^T + bias where a row of y depends on its row of x alone, bit for bit, on any machine;
//! [`super::packed`] is for those with AVX-512.
//!
//! Rows of x stand in the lanes of registers (x is packed transposed) and elements of w, read
//! where they are, are broadcast: each output is one chain of fused multiply-adds over k in
//! ascending order, whatever the number of rows, the tile and the thread. BLAS libraries choose
//! kernels by the number of rows and give other bits for other batches.

use super::pool::Pool;
use kernels::elem::{Elem, LANES};

/// Registers of rows in a block: 64 rows.
const MAX_VECTORS: usize = 4;
/// Columns of a tile.
const COLUMNS: usize = 8;
/// Least columns of a piece.
const LEAST: usize = 24;

/// Reusable memory for packed rows.
#[derive(Default)]
pub struct Scratch {
    packed: Vec<f32>,
}

/// A linear layer's parameters: `w` `[n, k]`, `bias` `[n]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a, E> {
    pub w: &'a [E],
    pub bias: Option<&'a [E]>,
    pub n: usize,
    pub k: usize,
}

/// `y[rows, n] = x[rows, k] w[n, k]^T (+ bias[n])`; sums in f32, rounded once into `E`.
///
/// # Panics
/// If the slices' lengths do not fit `n` and `k`.
pub fn linear<E: Elem>(
    pool: &mut Pool,
    scratch: &mut Scratch,
    matrix: Matrix<E>,
    x: &[E],
    y: &mut [E],
) {
    let Matrix { w, bias, n, k } = matrix;
    if n == 0 || y.is_empty() {
        return;
    }
    let rows = y.len() / n;
    assert!(
        y.len() == rows * n && x.len() == rows * k && w.len() == n * k,
        "shapes of a linear"
    );
    assert!(bias.is_none_or(|b| b.len() == n), "shape of a bias");

    // 1. pack blocks of up to 64 rows: [block][k][rows of the block]
    let blocks = rows.div_ceil(MAX_VECTORS * LANES);
    let stride = k * MAX_VECTORS * LANES;
    scratch
        .packed
        .resize(scratch.packed.len().max(blocks * stride), 0.0);
    let packed = Shared(scratch.packed.as_mut_ptr());
    let block_rows = |b: usize| (rows - b * MAX_VECTORS * LANES).min(MAX_VECTORS * LANES);
    pool.run(blocks, |b| {
        let from = b * MAX_VECTORS * LANES;
        let x = &x[from * k..(from + block_rows(b)) * k];
        // SAFETY: blocks are disjoint.
        let panel = unsafe { std::slice::from_raw_parts_mut(packed.get().add(b * stride), stride) };
        pack(x, k, panel);
    });

    // 2. tiles: (block, range of columns), about four per thread and never too thin
    let want = (pool.threads() * 4).div_ceil(blocks);
    let columns = n.div_ceil(want).next_multiple_of(LEAST).min(n);
    let chunks = n.div_ceil(columns);
    let out = Shared(y.as_mut_ptr());
    pool.run(blocks * chunks, |piece| {
        let (chunk, b) = (piece / blocks, piece % blocks);
        // SAFETY: packing is finished; pieces write disjoint parts of y.
        unsafe {
            let panel = std::slice::from_raw_parts(packed.get().add(b * stride), stride);
            let y = out.get().add(b * MAX_VECTORS * LANES * n);
            let cols = chunk * columns..((chunk + 1) * columns).min(n);
            columns_of(panel, matrix, y, cols, block_rows(b));
        }
    });
}

/// A pointer that pieces of one job share.
pub struct Shared<T>(pub *mut T);
// SAFETY: whoever dereferences it keeps to a part of its own.
unsafe impl<T: Send> Sync for Shared<T> {}
impl<T> Shared<T> {
    pub fn get(&self) -> *mut T {
        self.0
    }
}

/// Packs up to 64 rows as [k][vectors * 16], absent rows as zeros.
fn pack<E: Elem>(x: &[E], k: usize, panel: &mut [f32]) {
    let rows = x.len() / k.max(1);
    let width = rows.div_ceil(LANES) * LANES;
    for r in 0..width {
        for i in 0..k {
            panel[i * width + r] = if r < rows { x[r * k + i].to_f32() } else { 0.0 };
        }
    }
}

/// Computes columns `cols` for the rows of one panel; `y` points at its first row.
///
/// # Safety
/// `y` has `rows` rows of `n`, and nobody else touches these columns of them.
unsafe fn columns_of<E: Elem>(
    panel: &[f32],
    matrix: Matrix<E>,
    y: *mut E,
    cols: std::ops::Range<usize>,
    rows: usize,
) {
    let Matrix { w, bias, n, k } = matrix;
    let width = rows.div_ceil(LANES) * LANES;
    let mut tile = [0f32; COLUMNS * MAX_VECTORS * LANES];
    let mut j = cols.start;
    while j < cols.end {
        let count = COLUMNS.min(cols.end - j);
        portable_tile(panel, &w[j * k..(j + count) * k], k, width, &mut tile);
        if let Some(bias) = bias {
            for (t, column) in tile.chunks_exact_mut(width).take(count).enumerate() {
                let b = bias[j + t].to_f32();
                column.iter_mut().for_each(|v| *v += b);
            }
        }
        for r in 0..rows {
            for t in 0..count {
                // SAFETY: r < rows, j + t < n.
                unsafe { *y.add(r * n + j + t) = E::from_f32(tile[t * width + r]) };
            }
        }
        j += count;
    }
}

kernels::multiversion! {
    /// `tile[t][lane] = sum over i of panel[i][lane] * w[t][i]`.
    pub fn portable_tile[E: Elem][E](panel: &[f32], w: &[E], k: usize, width: usize, tile: &mut [f32]) = portable_tile_body
}

#[inline(always)]
fn portable_tile_body<E: Elem>(panel: &[f32], w: &[E], k: usize, width: usize, tile: &mut [f32]) {
    let count = w.len() / k.max(1);
    for from in (0..width).step_by(LANES) {
        let mut t = 0;
        while t + 4 <= count {
            lanes::<E, 4>(panel, &w[t * k..], k, width, from, &mut tile[t * width..]);
            t += 4;
        }
        while t < count {
            lanes::<E, 1>(panel, &w[t * k..], k, width, from, &mut tile[t * width..]);
            t += 1;
        }
    }
}

#[inline(always)]
fn lanes<E: Elem, const N: usize>(
    panel: &[f32],
    w: &[E],
    k: usize,
    width: usize,
    from: usize,
    tile: &mut [f32],
) {
    let mut sums = [[0f32; LANES]; N];
    for i in 0..k {
        let x: &[f32; LANES] = panel[i * width + from..][..LANES]
            .try_into()
            .expect("a lane");
        for (t, sum) in sums.iter_mut().enumerate() {
            let b = w[t * k + i].to_f32();
            for l in 0..LANES {
                sum[l] = x[l].mul_add(b, sum[l]);
            }
        }
    }
    for (t, sum) in sums.iter().enumerate() {
        tile[t * width + from..][..LANES].copy_from_slice(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut s = seed;
        (0..n)
            .map(|_| {
                s = s
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (s >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn check<E: Elem + PartialEq + std::fmt::Debug>(
        n: usize,
        k: usize,
        most: usize,
        tolerance: f64,
    ) {
        let of = |v: Vec<f32>| v.into_iter().map(E::from_f32).collect::<Vec<E>>();
        let (x, w, b) = (
            of(numbers(most * k, 1)),
            of(numbers(n * k, 2)),
            of(numbers(n, 3)),
        );
        let mut scratch = Scratch::default();
        let mut run = |threads, x: &[E]| {
            let mut y = vec![E::default(); x.len() / k * n];
            let matrix = Matrix {
                w: &w,
                bias: Some(&b),
                n,
                k,
            };
            linear(&mut Pool::new(threads), &mut scratch, matrix, x, &mut y);
            y
        };
        let all = run(2, &x);
        for r in 0..most {
            for j in 0..n {
                let exact = (0..k)
                    .map(|i| x[r * k + i].to_f32() as f64 * w[j * k + i].to_f32() as f64)
                    .sum::<f64>()
                    + b[j].to_f32() as f64;
                let found = all[r * n + j].to_f32() as f64;
                assert!(
                    (exact - found).abs() < tolerance * (k as f64).sqrt(),
                    "{r} {j}: {exact} {found}"
                );
            }
        }
        for rows in [1, 2, 15, 16, 17, 31, 33, 48, 50, 64, 65] {
            for from in [0, 1, most.saturating_sub(rows)] {
                if from + rows <= most {
                    let y = run(1 + rows % 3, &x[from * k..(from + rows) * k]);
                    assert_eq!(
                        y,
                        all[from * n..(from + rows) * n],
                        "{rows} rows from {from}"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_have_the_same_bits_in_any_company_and_are_right() {
        for (n, k) in [(1, 1), (7, 3), (50, 33), (96, 64), (131, 100)] {
            check::<f32>(n, k, 150, 2e-6);
            check::<bf16>(n, k, 150, 8e-3);
        }
    }
}
