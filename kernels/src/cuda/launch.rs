//! A launch, and who carries it out.

use tch::{Device, Kind, Tensor};

use super::Error;
use super::source::File;

/// Carries out launches in the order they are given, on tensors of one device.
pub trait Machine: Sync {
    /// Where its tensors lie.
    fn device(&self) -> Device;

    /// Memory of undefined content.
    fn empty(&self, size: &[i64], kind: Kind) -> Tensor {
        Tensor::empty(size, (kind, self.device()))
    }

    /// Gives the launch to the device; on a GPU returns before it has run.
    ///
    /// # Errors
    /// A source that does not compile, or the driver's.
    fn launch(&self, launch: &Launch) -> Result<(), Error> {
        let seen = trace::span_named(trace::Category::Kernel, || launch.kernel.clone());
        let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
        let _kernel = seen
            .with("blocks", blocks)
            .with("threads", u64::from(launch.threads));
        self.run(launch)
    }

    /// [`Machine::launch`] as this machine does it.
    ///
    /// # Errors
    /// As there.
    fn run(&self, launch: &Launch) -> Result<(), Error>;
}

/// One launch of a kernel.
#[derive(Debug)]
pub struct Launch {
    /// The source that has the kernel.
    pub file: &'static File,
    /// Its name there.
    pub kernel: String,
    /// Blocks; none is 0.
    pub grid: [u32; 3],
    /// Threads of a block: whole warps.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared: u32,
    /// What the kernel is called with.
    pub args: Args,
}

/// Arguments of a kernel, each in a word of its own, lowest bytes first.
#[derive(Debug, Default)]
pub struct Args(Vec<u64>);

impl Args {
    /// The address of a tensor's elements.
    pub fn tensor(self, t: &Tensor) -> Self {
        self.word(t.data_ptr() as u64)
    }

    /// As [`Args::tensor`], or null.
    pub fn optional(self, t: Option<&Tensor>) -> Self {
        self.word(t.map_or(0, |t| t.data_ptr() as u64))
    }

    /// An `int`. Sizes are checked to fit before.
    pub fn int(self, x: i64) -> Self {
        self.word(x as i32 as u32 as u64)
    }

    /// A `long long`.
    pub fn long(self, x: i64) -> Self {
        self.word(x as u64)
    }

    /// A `float`.
    pub fn float(self, x: f64) -> Self {
        self.word((x as f32).to_bits() as u64)
    }

    fn word(mut self, x: u64) -> Self {
        self.0.push(x);
        self
    }

    /// The addresses of the arguments, as `cuLaunchKernel` takes them; good while `self` lives.
    pub fn pointers(&self) -> Vec<*mut std::ffi::c_void> {
        let word = |x: &u64| std::ptr::from_ref(x).cast_mut().cast();
        self.0.iter().map(word).collect()
    }
}
