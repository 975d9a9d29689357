//! Counter-based randomness: every draw is a pure function of (seed, purpose, step, index).
//!
//! There is no global state to save or to forget. The stream of a [`Draw`] is the extended output
//! (XOF) of BLAKE3 in key-derivation mode with the context string [`CONTEXT`] over
//!
//! ```text
//! seed: u64 LE | step: u64 LE | index: u64 LE | purpose: UTF-8 bytes
//! ```
//!
//! read as little-endian u64 words. Golden tests hold this definition: it never changes, because
//! results in stores and checkpoints depend on it.

/// BLAKE3 derive-key context of every stream.
pub const CONTEXT: &str = "recipe data::rng 1";

/// Words fetched from the XOF at a time: one BLAKE3 output block.
const BLOCK: usize = 8;

/// A stream of draws for one (seed, purpose, step, index).
pub struct Draw {
    reader: blake3::OutputReader,
    block: [u64; BLOCK],
    next: usize,
}

impl Draw {
    /// `purpose` separates uses that share a step and an index: `"order"`, `"init"`, `"sample"`..
    pub fn new(seed: u64, purpose: &str, step: u64, index: u64) -> Draw {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        let mut head = [0u8; 24];
        head[..8].copy_from_slice(&seed.to_le_bytes());
        head[8..16].copy_from_slice(&step.to_le_bytes());
        head[16..].copy_from_slice(&index.to_le_bytes());
        hasher.update(&head);
        hasher.update(purpose.as_bytes());
        Draw {
            reader: hasher.finalize_xof(),
            block: [0; BLOCK],
            next: BLOCK,
        }
    }

    /// The next 64 uniform bits.
    pub fn u64(&mut self) -> u64 {
        if self.next == BLOCK {
            let mut bytes = [0u8; BLOCK * 8];
            self.reader.fill(&mut bytes);
            for (word, chunk) in self.block.iter_mut().zip(bytes.chunks_exact(8)) {
                *word = u64::from_le_bytes(chunk.try_into().expect("chunks of eight bytes"));
            }
            self.next = 0;
        }
        self.next += 1;
        self.block[self.next - 1]
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn f64(&mut self) -> f64 {
        (self.u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in 0..n without bias (Lemire's multiply and reject). `below(0)` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.u64()) * u128::from(n);
            if wide as u64 >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// Uniform in low..=high.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        debug_assert!(low <= high);
        let span = (high.wrapping_sub(low) as u64).wrapping_add(1);
        let offset = if span == 0 {
            self.u64()
        } else {
            self.below(span)
        };
        low.wrapping_add(offset as i64)
    }

    /// Standard normal (Box-Muller, two words per draw; the sine branch is not kept).
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.f64()).cos()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.f64() < p
    }

    /// Uniform permutation in place (Fisher-Yates, from the end).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// An index drawn in proportion to `weights` (non-negative, not all zero).
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        let mut at = self.f64() * total;
        let mut last = 0;
        for (i, &weight) in weights.iter().enumerate() {
            if weight > 0.0 {
                if at < weight {
                    return i;
                }
                at -= weight;
                last = i;
            }
        }
        last
    }
}
