//! Inputs, machines, and the measure of agreement.

use std::sync::OnceLock;

use emulate::{Emulator, Guard};
use kernels::cuda::launch::Launch;
use kernels::cuda::{Error, Machine};
use tch::{Device, Kind, Tensor};

/// The kinds that kernels are compiled for.
pub const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

/// Emulators that differ in which side of a tensor is guarded and in the order of threads and blocks. With
/// `RECIPE_GPU_DEVICE=cuda` (ci/gpu.sh) it is the GPU instead.
pub fn machines() -> [&'static dyn Machine; 3] {
    static ALL: OnceLock<[&'static dyn Machine; 3]> = OnceLock::new();
    *ALL.get_or_init(|| match std::env::var("RECIPE_GPU_DEVICE").as_deref() {
        Ok("cuda") => {
            torch::cuda::load().expect("libtorch's CUDA library");
            let gpu = kernels::cuda::machine(Device::Cuda(0)).expect("a GPU with our kernels");
            [Box::leak(Box::new(Poisoned(gpu))) as &dyn Machine; 3]
        }
        _ => [
            Emulator::leak(Guard::End, 0),
            Emulator::leak(Guard::Start, 1),
            Emulator::leak(Guard::End, 7),
        ],
    })
}

/// A GPU whose memory of undefined content is NaN.
struct Poisoned(&'static dyn Machine);

impl Machine for Poisoned {
    fn device(&self) -> Device {
        self.0.device()
    }

    fn empty(&self, size: &[i64], kind: Kind) -> Tensor {
        let mut t = self.0.empty(size, kind);
        match kind {
            Kind::Float | Kind::BFloat16 | Kind::Double => t.fill_(f64::NAN),
            _ => t.fill_(-1),
        }
    }

    fn run(&self, launch: &Launch) -> Result<(), Error> {
        self.0.run(launch)
    }
}

/// Added to every seed: `RECIPE_KERNEL_SEED`, so that other inputs can be tried; ci/gpu.sh prints it.
fn fresh() -> u64 {
    let text = std::env::var("RECIPE_KERNEL_SEED").unwrap_or_default();
    text.parse().unwrap_or(0)
}

/// Normal values by a seed, fp64, on the CPU.
pub fn noise(size: &[i64], seed: u64) -> Tensor {
    let seed = seed.wrapping_add(fresh().wrapping_mul(1_000_003));
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut uniform = || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let n: i64 = size.iter().product();
    let values: Vec<f64> = (0..n)
        .map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0)
        .collect();
    Tensor::from_slice(&values).reshape(size)
}

/// A copy of `x` in the machine's memory.
pub fn copy(machine: &dyn Machine, x: &Tensor) -> Tensor {
    let mut to = machine.empty(&x.size(), x.kind());
    to.copy_(x);
    to
}

/// The machine's tensor of `kind` with the values of `x`, and the same rounded values in fp64 on the CPU.
pub fn given(machine: &dyn Machine, x: &Tensor, kind: Kind) -> (Tensor, Tensor) {
    let rounded = x.to_kind(kind);
    (copy(machine, &rounded), rounded.to_kind(Kind::Double))
}

/// In fp64 on the CPU.
pub fn exact(x: &Tensor) -> Tensor {
    x.detach().to_device(Device::Cpu).to_kind(Kind::Double)
}

/// `|a - b| / |b|` in fp64.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (exact(a), exact(b));
    assert_eq!(a.size(), b.size());
    (a - &b).norm().double_value(&[]) / b.norm().double_value(&[]).max(1e-30)
}

/// Holds a result to fp64's: 1e-5 for fp32, 1e-2 for bf16, by norm. A NaN fails.
#[track_caller]
pub fn close(what: &str, ours: &Tensor, exact: &Tensor) {
    let limit = match ours.kind() {
        Kind::BFloat16 => 1e-2,
        _ => 1e-5,
    };
    let apart = distance(ours, exact);
    assert!(
        apart < limit,
        "{what} {:?} of {:?}: {apart}",
        ours.size(),
        ours.kind()
    );
}

/// A leaf.
pub fn leaf(x: &Tensor) -> Tensor {
    x.copy().set_requires_grad(true)
}

/// Whole numbers on the machine.
pub fn ints(machine: &dyn Machine, values: &[i64], kind: Kind) -> Tensor {
    copy(machine, &Tensor::from_slice(values).to_kind(kind))
}
