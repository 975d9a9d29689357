//! Fresh values as a function of (seed, parameter name, element), with no state between draws.
//!
//! The key of a parameter is SplitMix64 run over the seed and the name; element pairs are drawn
//! with Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") under
//! that key, four uniforms to four normals by Box-Muller. A shard draws its slice alone and gets
//! what the whole would have held there.

/// Draws of one parameter.
#[derive(Debug, Clone, Copy)]
pub struct Normals {
    key: [u32; 2],
}

impl Normals {
    /// The draws of the parameter `name` under `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut state = mix(seed ^ 0x6d6f_6465_6c5f_696e);
        for byte in name.bytes() {
            state = mix(state ^ u64::from(byte));
        }
        Self {
            key: [state as u32, (state >> 32) as u32],
        }
    }

    /// Fills `out` with standard normals times `std`: elements `first..first + out.len()` of the
    /// parameter, counted in row-major order.
    pub fn fill(&self, first: u64, std: f64, out: &mut [f32]) {
        let mut at = 0;
        while at < out.len() {
            let element = first + at as u64;
            let lane = (element % 4) as usize;
            let four = self.four(element / 4);
            let n = (4 - lane).min(out.len() - at);
            for (slot, x) in out[at..at + n].iter_mut().zip(&four[lane..]) {
                *slot = (x * std) as f32;
            }
            at += n;
        }
    }

    fn four(&self, block: u64) -> [f64; 4] {
        let bits = philox([block as u32, (block >> 32) as u32, 0, 0], self.key);
        let (a, b) = normal_pair(bits[0], bits[1]);
        let (c, d) = normal_pair(bits[2], bits[3]);
        [a, b, c, d]
    }
}

fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xd251_1f53;
        let b = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [
            key[0].wrapping_add(0x9e37_79b9),
            key[1].wrapping_add(0xbb67_ae85),
        ];
    }
    counter
}

fn normal_pair(a: u32, b: u32) -> (f64, f64) {
    // in (0, 1): the logarithm is finite
    let u = (f64::from(a) + 0.5) / 4_294_967_296.0;
    let angle = std::f64::consts::TAU * (f64::from(b) + 0.5) / 4_294_967_296.0;
    let radius = (-2.0 * u.ln()).sqrt();
    (radius * angle.cos(), radius * angle.sin())
}
