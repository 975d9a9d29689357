//! AVX-512 building blocks of kernels that keep whole matrices in registers' order: loads and
//! stores of either element type, transposition, 2^x, and small matrix products.

use std::arch::x86_64::*;

use half::bf16;

use crate::elem::{Elem, Isa, LANES, isa};

/// Whether this machine has what this module's functions need.
pub fn available() -> bool {
    isa() >= Isa::Avx512
}

/// Elements that are loaded and stored as 16 lanes of f32.
pub trait Lanes: Elem {
    /// The lanes of `mask`, zeros elsewhere.
    ///
    /// # Safety
    /// [`available`]; the elements of `mask` are readable at `at`.
    unsafe fn load(at: *const Self, mask: __mmask16) -> __m512;
    /// Stores the lanes of `mask`, rounded as [`Elem::from_f32`] does.
    ///
    /// # Safety
    /// [`available`]; the elements of `mask` are writable at `at`.
    unsafe fn store(at: *mut Self, mask: __mmask16, x: __m512);
}

impl Lanes for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load(at: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: masked to what may be read.
        unsafe { _mm512_maskz_loadu_ps(mask, at) }
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn store(at: *mut f32, mask: __mmask16, x: __m512) {
        // SAFETY: masked to what may be written.
        unsafe { _mm512_mask_storeu_ps(at, mask, x) }
    }
}

impl Lanes for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load(at: *const bf16, mask: __mmask16) -> __m512 {
        // SAFETY: masked to what may be read.
        let halves = unsafe { _mm256_maskz_loadu_epi16(mask, at.cast()) };
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn store(at: *mut bf16, mask: __mmask16, x: __m512) {
        let bits = _mm512_castps_si512(x);
        let high = _mm512_srli_epi32::<16>(bits);
        let odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
        let rounded = _mm512_mask_mov_epi32(_mm512_srli_epi32::<16>(up), nan, quiet);
        // SAFETY: masked to what may be written.
        unsafe { _mm256_mask_storeu_epi16(at.cast(), mask, _mm512_cvtepi32_epi16(rounded)) }
    }
}

/// Elements that stand in 32-bit cells, one or two that follow one another.
pub trait Cell: Lanes {
    /// Elements of a cell.
    const PER: usize;
    /// Whether this machine multiplies them.
    fn available() -> bool;
    /// Up to 16 cells of the first `n` elements, zeros beyond.
    ///
    /// # Safety
    /// AVX-512; `n` elements, or 16 cells of them, are readable at `at`.
    unsafe fn cells(at: *const Self, n: usize) -> __m512;
    /// As [`f32s::product`].
    ///
    /// # Safety
    /// As there.
    #[allow(clippy::too_many_arguments)]
    unsafe fn product(
        count: usize,
        vectors: usize,
        depth: usize,
        a: Broadcast,
        b: Rows<*const f32>,
        c: Rows<*mut f32>,
        add: bool,
    );
}

impl Cell for f32 {
    const PER: usize = 1;
    fn available() -> bool {
        available()
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn cells(at: *const f32, n: usize) -> __m512 {
        // SAFETY: masked to what may be read.
        unsafe { _mm512_maskz_loadu_ps(first(n), at) }
    }
    #[inline(always)]
    unsafe fn product(
        count: usize,
        vectors: usize,
        depth: usize,
        a: Broadcast,
        b: Rows<*const f32>,
        c: Rows<*mut f32>,
        add: bool,
    ) {
        // SAFETY: as the caller promises.
        unsafe { f32s::product(count, vectors, depth, a, b, c, add) }
    }
}

impl Cell for bf16 {
    const PER: usize = 2;
    fn available() -> bool {
        isa() >= Isa::Avx512Bf16
    }
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn cells(at: *const bf16, n: usize) -> __m512 {
        let mask = if n >= 32 { !0 } else { (1u32 << n) - 1 };
        // SAFETY: masked to what may be read.
        _mm512_castsi512_ps(unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) })
    }
    #[inline(always)]
    unsafe fn product(
        count: usize,
        vectors: usize,
        depth: usize,
        a: Broadcast,
        b: Rows<*const f32>,
        c: Rows<*mut f32>,
        add: bool,
    ) {
        // SAFETY: as the caller promises.
        unsafe { bf16s::product(count, vectors, depth, a, b, c, add) }
    }
}

/// The first `n` lanes; all from 16 on.
#[inline(always)]
pub fn first(n: usize) -> __mmask16 {
    if n >= LANES { !0 } else { (1 << n) - 1 }
}

/// 2^x within 2 units in the last place for x in -126..=126; about 2^-126 below. Cephes'
/// polynomial.
///
/// # Safety
/// AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exp2(x: __m512) -> __m512 {
    // of a number and a NaN this takes the second
    let x = _mm512_max_ps(_mm512_set1_ps(-126.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let r = _mm512_sub_ps(x, n);
    let mut p = _mm512_set1_ps(1.535_336_2e-4);
    for c in [
        1.339_887_4e-3,
        9.618_437e-3,
        5.550_332_5e-2,
        2.402_264_8e-1,
        6.931_472e-1,
        1.0,
    ] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, n)
}

/// Transposes 16 rows of 16 lanes.
///
/// # Safety
/// AVX-512.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn transpose(m: &mut [__m512; LANES]) {
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

/// Cells that a product broadcasts: (n, i) is at `at + n * by_n + i * by_i`.
#[derive(Clone, Copy)]
pub struct Broadcast {
    pub at: *const f32,
    pub by_n: usize,
    pub by_i: usize,
}

/// Rows of registers: row i starts at `at + i * stride`.
#[derive(Clone, Copy)]
pub struct Rows<P> {
    pub at: P,
    pub stride: usize,
}

/// Defines a module with a product of 32-bit cells of one kind.
macro_rules! products {
    ($module:ident, $features:literal, $doc:literal, $madd:expr) => {
        #[doc = $doc]
        pub mod $module {
            use super::*;

            /// `c[n][lane] (+)= sum over i of a(n, i) * b[i][lane]` for `count` n's,
            /// `vectors * 16` lanes and `depth` i's, in ascending i; `add` begins with what `c`
            /// holds. An element of `c` has the same bits whatever else is computed along with it.
            ///
            /// # Safety
            /// The instruction set; the operands hold that many cells, and `c` is its caller's
            /// alone.
            #[target_feature(enable = $features)]
            #[allow(clippy::too_many_arguments)]
            pub unsafe fn product(
                count: usize,
                vectors: usize,
                depth: usize,
                a: Broadcast,
                b: Rows<*const f32>,
                c: Rows<*mut f32>,
                add: bool,
            ) {
                let mut v = 0;
                while v < vectors {
                    // SAFETY: within the lanes promised.
                    let (b, c) = unsafe {
                        (
                            Rows {
                                at: b.at.add(v * LANES),
                                ..b
                            },
                            Rows {
                                at: c.at.add(v * LANES),
                                ..c
                            },
                        )
                    };
                    let take = (vectors - v).min(4);
                    // SAFETY: as the caller promises.
                    unsafe {
                        match take {
                            4 => columns::<4>(count, depth, a, b, c, add),
                            3 => columns::<3>(count, depth, a, b, c, add),
                            2 => columns::<2>(count, depth, a, b, c, add),
                            _ => columns::<1>(count, depth, a, b, c, add),
                        }
                    }
                    v += take;
                }
            }

            /// [`product`] for `V` registers of lanes.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn columns<const V: usize>(
                count: usize,
                depth: usize,
                a: Broadcast,
                b: Rows<*const f32>,
                c: Rows<*mut f32>,
                add: bool,
            ) {
                let mut n = 0;
                while n < count {
                    // SAFETY: within what the caller of `product` promises.
                    unsafe {
                        let a = Broadcast {
                            at: a.at.add(n * a.by_n),
                            ..a
                        };
                        let c = Rows {
                            at: c.at.add(n * c.stride),
                            ..c
                        };
                        n += match count - n {
                            6.. => tile::<V, 6>(depth, a, b, c, add),
                            4.. => tile::<V, 4>(depth, a, b, c, add),
                            2.. => tile::<V, 2>(depth, a, b, c, add),
                            _ => tile::<V, 1>(depth, a, b, c, add),
                        };
                    }
                }
            }

            /// `N` rows of `V` registers of sums; returns `N`.
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn tile<const V: usize, const N: usize>(
                depth: usize,
                a: Broadcast,
                b: Rows<*const f32>,
                c: Rows<*mut f32>,
                add: bool,
            ) -> usize {
                let mut sums = [[_mm512_setzero_ps(); V]; N];
                // SAFETY: within what the caller of `product` promises.
                unsafe {
                    if add {
                        for (n, sums) in sums.iter_mut().enumerate() {
                            for (v, sum) in sums.iter_mut().enumerate() {
                                *sum = _mm512_loadu_ps(c.at.add(n * c.stride + v * LANES));
                            }
                        }
                    }
                    for i in 0..depth {
                        let mut row = [_mm512_setzero_ps(); V];
                        for (v, r) in row.iter_mut().enumerate() {
                            *r = _mm512_loadu_ps(b.at.add(i * b.stride + v * LANES));
                        }
                        for (n, sums) in sums.iter_mut().enumerate() {
                            let at = a.at.add(n * a.by_n + i * a.by_i);
                            let x = _mm512_set1_ps(at.read_unaligned());
                            for (sum, r) in sums.iter_mut().zip(row) {
                                *sum = $madd(r, x, *sum);
                            }
                        }
                    }
                    for (n, sums) in sums.iter().enumerate() {
                        for (v, sum) in sums.iter().enumerate() {
                            _mm512_storeu_ps(c.at.add(n * c.stride + v * LANES), *sum);
                        }
                    }
                }
                N
            }
        }
    };
}
products!(f32s, "avx512f", "Products of f32.", |a, b, sum| {
    _mm512_fmadd_ps(a, b, sum)
});
products!(
    bf16s,
    "avx512f,avx512bf16",
    "Products of pairs of bf16 that follow one another in the inner dimension.",
    |a: __m512, b: __m512, sum| _mm512_dpbf16_ps(
        sum,
        std::mem::transmute::<__m512, __m512bh>(a),
        std::mem::transmute::<__m512, __m512bh>(b)
    )
);
