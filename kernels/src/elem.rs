//! Element types and instruction sets of the CPU kernels. All arithmetic is in f32.

use half::bf16;

/// An element of weights, activations and cached keys and values.
pub trait Elem: Copy + Send + Sync + Default + 'static {
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Elem for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Elem for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    // Without `half`'s branch on NaN: a branch per element would keep loops from vectorising.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

/// Lanes that loops are written in: one 512-bit register, or several smaller ones.
pub const LANES: usize = 16;

/// Instruction sets that have code of their own. Every set gives the same bits, except that bf16
/// products are summed in pairs by `Avx512Bf16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    Avx2,
    Avx512,
    Avx512Bf16,
}

/// The best set that this machine has.
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        // all that `multiversion!` enables
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq");
        if avx512 {
            let bf16 = is_x86_feature_detected!("avx512bf16");
            return if bf16 { Isa::Avx512Bf16 } else { Isa::Avx512 };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
    }
    Isa::Portable
}

/// `multiversion!(pub fn name[E: Elem][E](args) = body)` defines `name`, generic in the first
/// brackets, which calls the `#[inline(always)]` function `body` compiled for the best instruction
/// set at hand; the second brackets repeat the generics' names.
#[macro_export]
macro_rules! multiversion {
    ($(#[$doc:meta])* $vis:vis fn $name:ident [$($gen:tt)*] [$($use:tt)*] ($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$($gen)*>($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
                #[allow(clippy::too_many_arguments)]
                fn avx512<$($gen)*>($($arg: $ty),*) { $body::<$($use)*>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<$($gen)*>($($arg: $ty),*) { $body::<$($use)*>($($arg),*) }
                // SAFETY: the features were detected.
                match $crate::elem::isa() {
                    i if i >= $crate::elem::Isa::Avx512 => return unsafe { avx512::<$($use)*>($($arg),*) },
                    $crate::elem::Isa::Avx2 => return unsafe { avx2::<$($use)*>($($arg),*) },
                    _ => {}
                }
            }
            $body::<$($use)*>($($arg),*)
        }
    };
}

/// e^x for x <= 0 (a softmax after its maximum is taken off), within 2 units in the last place;
/// 0 below -87.3. Cephes' polynomial, in a form that vectorises: no branches, no table.
#[inline(always)]
pub fn exp_neg(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    // adding 1.5 * 2^23 rounds to an integer that stands in the low mantissa bits
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.max(-87.3);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LO, n.mul_add(-LN2_HI, clamped));
    let mut p = 1.987_569_1e-4f32;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        5e-1,
    ] {
        p = p.mul_add(r, c);
    }
    let frac = (p * r).mul_add(r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    if x < -87.3 { 0.0 } else { frac * scale }
}

/// 1 / (1 + e^-x), without overflow on either side.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp_neg(-x.abs());
    let upper = 1.0 / (1.0 + e);
    if x >= 0.0 { upper } else { e * upper }
}

/// The sum of lanes, in a fixed order.
#[inline(always)]
pub fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulps() {
        let mut worst = 0f64;
        for i in 0..=1_000_000 {
            let x = -87.3 * (i as f32 / 1e6);
            let exact = (x as f64).exp();
            let ulp = f32::EPSILON as f64 * exact;
            worst = worst.max((exp_neg(x) as f64 - exact).abs() / ulp);
        }
        assert!(worst < 2.0, "{worst} ulps");
        assert_eq!(exp_neg(0.0), 1.0);
        assert_eq!(exp_neg(f32::NEG_INFINITY), 0.0);
    }

    #[test]
    fn sigmoid_is_even_about_a_half() {
        for i in -2000..=2000 {
            let x = i as f32 * 0.05;
            let exact = 1.0 / (1.0 + (-(x as f64)).exp());
            assert!(
                (sigmoid(x) as f64 - exact).abs() <= 3e-7 * exact + 1e-37,
                "{x}"
            );
        }
    }

    #[test]
    fn bf16_rounds_as_half_does() {
        for i in 0..2_000_000u32 {
            let x = f32::from_bits(i.wrapping_mul(2_654_435_761));
            let (ours, theirs) = (<bf16 as Elem>::from_f32(x), bf16::from_f32(x));
            assert!(
                ours.to_bits() == theirs.to_bits() || x.is_nan() && ours.is_nan(),
                "{x}"
            );
        }
    }

    #[test]
    fn a_total_takes_every_lane_once() {
        assert_eq!(total(std::array::from_fn(|l| (1 << l) as f32)), 65535.0);
    }
}
