//! y = x w^T + bias where a row of y depends on its row of x alone, bit for bit.
//!
//! Rows of x stand in the lanes of registers (x is packed transposed) and elements of w, read
//! where they are, are broadcast: each output is one chain of fused multiply-adds over k in
//! ascending order, whatever the number of rows, the tile and the thread. BLAS libraries choose
//! kernels by the number of rows and give other bits for other batches. Rate on one core of
//! FACTS' machine: about 95 GFLOP/s in f32, the rate of its BLAS library.

use std::any::TypeId;

use super::pool::Pool;
use half::bf16;
use kernels::elem::{Elem, Isa, LANES, isa};

/// Registers of rows in a full tile: 64 rows.
const MAX_VECTORS: usize = 4;
/// Registers of sums; a tile has up to 8 columns, since rows of w often lie a multiple of 4 KiB
/// apart, where a first-level cache of 8 ways holds no more of them.
const ACCUMULATORS: usize = 24;
/// Columns of a tile by its registers of rows.
const COLUMNS: [usize; MAX_VECTORS + 1] = [0, 8, 8, 8, 6];

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
    let kernel = Kernel::of::<E>(k);

    // 1. pack blocks of up to 64 rows: [block][k][rows of the block]
    let blocks = rows.div_ceil(MAX_VECTORS * LANES);
    let depth = kernel.depth(k);
    let stride = depth * MAX_VECTORS * LANES;
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
        kernel.pack(x, k, panel);
    });

    // 2. tiles: (block, range of columns), about four per thread and never too thin
    let want = (pool.threads() * 4).div_ceil(blocks);
    let columns = n.div_ceil(want).next_multiple_of(ACCUMULATORS).min(n);
    let chunks = n.div_ceil(columns);
    let out = Shared(y.as_mut_ptr());
    pool.run(blocks * chunks, |piece| {
        let (chunk, b) = (piece / blocks, piece % blocks);
        // SAFETY: packing is finished; pieces write disjoint parts of y.
        unsafe {
            let panel = std::slice::from_raw_parts(packed.get().add(b * stride), stride);
            let y = out.get().add(b * MAX_VECTORS * LANES * n);
            let cols = chunk * columns..((chunk + 1) * columns).min(n);
            kernel.columns(panel, matrix, y, cols, block_rows(b));
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

#[derive(Clone, Copy, PartialEq)]
enum Kernel {
    Portable,
    F32Avx512,
    /// Two bf16 of consecutive k in one 32-bit lane.
    Bf16Avx512,
}

impl Kernel {
    fn of<E: Elem>(k: usize) -> Self {
        let (isa, f32s) = (isa(), TypeId::of::<E>() == TypeId::of::<f32>());
        let bf16s = TypeId::of::<E>() == TypeId::of::<bf16>();
        if f32s && isa >= Isa::Avx512 {
            Kernel::F32Avx512
        } else if bf16s && isa >= Isa::Avx512Bf16 && k.is_multiple_of(2) {
            Kernel::Bf16Avx512
        } else {
            Kernel::Portable
        }
    }

    /// 32-bit lanes of a packed row.
    fn depth(self, k: usize) -> usize {
        if self == Kernel::Bf16Avx512 { k / 2 } else { k }
    }

    /// Packs up to 64 rows as [depth][vectors * 16], absent rows as zeros.
    fn pack<E: Elem>(self, x: &[E], k: usize, panel: &mut [f32]) {
        let rows = x.len() / k.max(1);
        let width = rows.div_ceil(LANES) * LANES;
        #[cfg(target_arch = "x86_64")]
        if self != Kernel::Portable {
            // SAFETY: the features were detected; f32 elements, or even k of bf16, are
            // `depth` 32-bit lanes a row.
            return unsafe { avx512::pack(x.as_ptr().cast(), rows, self.depth(k), width, panel) };
        }
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
    unsafe fn columns<E: Elem>(
        self,
        panel: &[f32],
        matrix: Matrix<E>,
        y: *mut E,
        cols: std::ops::Range<usize>,
        rows: usize,
    ) {
        let Matrix { w, bias, n, k } = matrix;
        let vectors = rows.div_ceil(LANES);
        let width = vectors * LANES;
        let most = COLUMNS[vectors];
        let mut tile = [0f32; ACCUMULATORS * LANES];
        let mut j = cols.start;
        while j < cols.end {
            let count = most.min(cols.end - j);
            let weights = &w[j * k..(j + count) * k];
            match self {
                Kernel::Portable => portable_tile(panel, weights, k, width, &mut tile),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the features were detected; panel and weights hold depth(k) lanes a row.
                _ => unsafe {
                    let bf16 = self == Kernel::Bf16Avx512;
                    avx512::tile(
                        bf16,
                        panel,
                        weights.as_ptr().cast(),
                        self.depth(k),
                        vectors,
                        count,
                        &mut tile,
                    )
                },
                #[cfg(not(target_arch = "x86_64"))]
                _ => unreachable!("kernels of x86-64 are chosen there only"),
            }
            if let Some(bias) = bias {
                for (t, column) in tile.chunks_exact_mut(width).take(count).enumerate() {
                    let b = bias[j + t].to_f32();
                    column.iter_mut().for_each(|v| *v += b);
                }
            }
            for r in 0..rows {
                for t in 0..count {
                    // SAFETY: r < rows, j + t < n.
                    unsafe {
                        *y.add(r * n + j + t) = E::from_f32(*tile.get_unchecked(t * width + r))
                    };
                }
            }
            j += count;
        }
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

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{ACCUMULATORS, LANES};
    use std::arch::x86_64::*;

    /// # Safety
    /// AVX-512 F and BW (and BF16 if `bf16`); `panel` holds `depth * vectors` registers; `w`
    /// points at `count` rows of `depth` 32-bit lanes; `vectors * count <= 24`.
    pub unsafe fn tile(
        bf16: bool,
        panel: &[f32],
        w: *const f32,
        depth: usize,
        vectors: usize,
        count: usize,
        out: &mut [f32; ACCUMULATORS * LANES],
    ) {
        let mut done = 0;
        while done < count {
            let left = count - done;
            // SAFETY: as the caller promises.
            let step = unsafe {
                let (x, w) = (panel.as_ptr(), w.add(done * depth));
                let out = out.as_mut_ptr().add(done * vectors * LANES);
                macro_rules! go {
                    ($v:literal, $n:literal) => {{
                        if bf16 {
                            dot_bf16::<$v, $n>(x, w, depth, out)
                        } else {
                            dot_f32::<$v, $n>(x, w, depth, out)
                        }
                        $n
                    }};
                }
                match (vectors, left) {
                    (1, 8..) => go!(1, 8),
                    (2, 8..) => go!(2, 8),
                    (3, 8..) => go!(3, 8),
                    (4, 6..) => go!(4, 6),
                    (4, 4..) => go!(4, 4),
                    (1, _) => go!(1, 1),
                    (2, _) => go!(2, 1),
                    (3, _) => go!(3, 1),
                    _ => go!(4, 1),
                }
            };
            done += step;
        }
    }

    macro_rules! dot {
        ($name:ident, $features:literal, $zero:expr, $load:expr, $broadcast:expr, $fma:expr) => {
            #[target_feature(enable = $features)]
            unsafe fn $name<const V: usize, const N: usize>(
                x: *const f32,
                w: *const f32,
                depth: usize,
                out: *mut f32,
            ) {
                // SAFETY: as `tile` promises.
                unsafe {
                    let mut sums = [[_mm512_setzero_ps(); V]; N];
                    for i in 0..depth {
                        let mut row = [$zero; V];
                        for (v, r) in row.iter_mut().enumerate() {
                            *r = $load(x.add((i * V + v) * LANES));
                        }
                        for (t, sum) in sums.iter_mut().enumerate() {
                            let at = w.add(t * depth + i);
                            if i % LANES == 0 {
                                // rows of w are too many streams for the hardware to foresee
                                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(4 * LANES).cast());
                            }
                            let b = $broadcast(at);
                            for v in 0..V {
                                sum[v] = $fma(sum[v], row[v], b);
                            }
                        }
                    }
                    for (t, sum) in sums.iter().enumerate() {
                        for (v, s) in sum.iter().enumerate() {
                            _mm512_storeu_ps(out.add((t * V + v) * LANES), *s);
                        }
                    }
                }
            }
        };
    }
    dot!(
        dot_f32,
        "avx512f",
        _mm512_setzero_ps(),
        |p: *const f32| _mm512_loadu_ps(p),
        |p: *const f32| _mm512_set1_ps(*p),
        |s, a, b| _mm512_fmadd_ps(a, b, s)
    );
    dot!(
        dot_bf16,
        "avx512f,avx512bw,avx512bf16",
        std::mem::zeroed::<__m512bh>(),
        |p: *const f32| std::mem::transmute::<__m512, __m512bh>(_mm512_loadu_ps(p)),
        |p: *const f32| std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(
            p.cast::<i32>().read_unaligned()
        )),
        |s, a, b| _mm512_dpbf16_ps(s, a, b)
    );

    /// Transposes `rows` rows of `depth` 32-bit lanes into [depth][width], absent rows as zeros.
    ///
    /// # Safety
    /// AVX-512 F; `x` points at `rows * depth` lanes.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn pack(x: *const f32, rows: usize, depth: usize, width: usize, panel: &mut [f32]) {
        assert!(panel.len() >= depth * width && rows <= width);
        for r0 in (0..width).step_by(LANES) {
            for i0 in (0..depth).step_by(LANES) {
                let keep = (1u32 << (depth - i0).min(LANES)) - 1;
                let mut m = [_mm512_setzero_ps(); LANES];
                for (r, row) in m.iter_mut().enumerate().take(rows.saturating_sub(r0)) {
                    // SAFETY: masked to the row.
                    *row =
                        unsafe { _mm512_maskz_loadu_ps(keep as u16, x.add((r0 + r) * depth + i0)) };
                }
                transpose(&mut m);
                for (i, column) in m.iter().enumerate().take(depth - i0) {
                    // SAFETY: checked above.
                    unsafe {
                        _mm512_storeu_ps(panel.as_mut_ptr().add((i0 + i) * width + r0), *column)
                    };
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn transpose(m: &mut [__m512; LANES]) {
        let d = |x| _mm512_castps_pd(x);
        let s = |x| _mm512_castpd_ps(x);
        for q in m.chunks_exact_mut(4) {
            let (a, b) = (
                _mm512_unpacklo_ps(q[0], q[1]),
                _mm512_unpackhi_ps(q[0], q[1]),
            );
            let (c, e) = (
                _mm512_unpacklo_ps(q[2], q[3]),
                _mm512_unpackhi_ps(q[2], q[3]),
            );
            q[0] = s(_mm512_unpacklo_pd(d(a), d(c)));
            q[1] = s(_mm512_unpackhi_pd(d(a), d(c)));
            q[2] = s(_mm512_unpacklo_pd(d(b), d(e)));
            q[3] = s(_mm512_unpackhi_pd(d(b), d(e)));
        }
        // now m[4 * q + i] holds, in its 128-bit part p, column 4 * p + i of rows 4 * q..4 * q + 4
        for i in 0..4 {
            let (a, b, c, e) = (m[i], m[4 + i], m[8 + i], m[12 + i]);
            let low = _mm512_shuffle_f32x4::<0x44>(a, b);
            let high = _mm512_shuffle_f32x4::<0xee>(a, b);
            let low2 = _mm512_shuffle_f32x4::<0x44>(c, e);
            let high2 = _mm512_shuffle_f32x4::<0xee>(c, e);
            m[i] = _mm512_shuffle_f32x4::<0x88>(low, low2);
            m[4 + i] = _mm512_shuffle_f32x4::<0xdd>(low, low2);
            m[8 + i] = _mm512_shuffle_f32x4::<0x88>(high, high2);
            m[12 + i] = _mm512_shuffle_f32x4::<0xdd>(high, high2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn instruction_sets_agree_in_f32() {
        let (n, k, rows) = (21, 77, 19);
        let (x, w) = (numbers(rows * k, 1), numbers(n * k, 2));
        let mut y = vec![0f32; rows * n];
        let matrix = Matrix {
            w: &w,
            bias: None,
            n,
            k,
        };
        linear(
            &mut Pool::new(1),
            &mut Scratch::default(),
            matrix,
            &x,
            &mut y,
        );
        let mut panel = vec![0f32; k * 32];
        Kernel::Portable.pack(&x, k, &mut panel);
        for j in 0..n {
            let mut tile = vec![0f32; 32];
            portable_tile_body(&panel, &w[j * k..(j + 1) * k], k, 32, &mut tile);
            for r in 0..rows {
                assert_eq!(tile[r], y[r * n + j]);
            }
        }
    }
}
