//! What a wrapper asks of its tensors before it launches anything.

use tch::{Kind, Tensor};

use super::{Error, Machine};

/// Floating kinds that kernels are compiled for.
pub const FLOATS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

/// Checks the tensors of one kernel on one machine.
#[derive(Clone, Copy)]
pub struct Check<'a> {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Where it shall run.
    pub machine: &'a dyn Machine,
}

impl<'a> Check<'a> {
    pub fn new(kernel: &'static str, machine: &'a dyn Machine) -> Self {
        Self { kernel, machine }
    }

    /// A tensor that does not fit.
    pub fn refuse(&self, what: String) -> Error {
        Error::Argument {
            kernel: self.kernel,
            what,
        }
    }

    /// A size that is too much.
    pub fn unsupported(&self, what: String) -> Error {
        Error::Unsupported {
            kernel: self.kernel,
            what,
        }
    }

    /// On the machine's device, of one of these kinds, of this size (-1: any), contiguous, and lying at a multiple of
    /// its element's size.
    pub fn tensor(
        &self,
        name: &str,
        t: &Tensor,
        kinds: &[Kind],
        size: &[i64],
    ) -> Result<(), Error> {
        let device = self.machine.device();
        if t.device() != device {
            let is = t.device();
            return Err(self.refuse(format!("{name} is on {is:?}: move it to {device:?}")));
        }
        let kind = t.kind();
        if !kinds.contains(&kind) {
            return Err(self.refuse(format!("{name} is {kind:?}: make it one of {kinds:?}")));
        }
        let is = t.size();
        let fits = is.len() == size.len() && is.iter().zip(size).all(|(a, b)| *b == -1 || a == b);
        if !fits {
            return Err(self.refuse(format!("{name} has shape {is:?}: it must be {size:?}")));
        }
        if !t.is_contiguous() {
            let strides = t.stride();
            return Err(self.refuse(format!(
                "{name} of shape {is:?} has strides {strides:?}: make it contiguous"
            )));
        }
        if !aligned(t, kind.elt_size_in_bytes()) {
            return Err(self.refuse(format!(
                "{name} lies at address {:#x}, no multiple of its elements' {} bytes",
                t.data_ptr() as usize,
                kind.elt_size_in_bytes()
            )));
        }
        Ok(())
    }

    /// A size as a kernel's `int`.
    pub fn int(&self, name: &str, n: i64) -> Result<u32, Error> {
        match i32::try_from(n) {
            Ok(n) if n >= 0 => Ok(n as u32),
            _ => Err(self.unsupported(format!("{name} = {n}: at most {}", i32::MAX))),
        }
    }
}

/// Whether a tensor lies at a multiple of so many bytes.
pub fn aligned(t: &Tensor, bytes: usize) -> bool {
    (t.data_ptr() as usize).is_multiple_of(bytes)
}

/// The name of a kind in kernels' names.
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        _ => "f32",
    }
}

/// Elements that a thread moves at once: 16 bytes where rows of `n` elements and all tensors allow it, else one. The
/// second is the end of the kernel's name for it.
pub fn width(n: i64, tensors: &[&Tensor]) -> (i64, &'static str) {
    let wide = 16 / tensors[0].kind().elt_size_in_bytes() as i64;
    match n % wide == 0 && tensors.iter().all(|t| aligned(t, 16)) {
        true => (wide, ""),
        false => (1, "_odd"),
    }
}
