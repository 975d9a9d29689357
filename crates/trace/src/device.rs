//! When a GPU did what the host gave it: timed events in its streams, read when the device has passed them.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use tch::Device;
use torch::stream::{Event, Stream};

/// The GPU that is recorded, if any.
static GPU: RwLock<Option<usize>> = RwLock::new(None);

/// A timed event in the calling thread's current stream; none where no GPU is recorded.
pub fn event() -> Option<Arc<Event>> {
    let gpu = (*GPU.read().unwrap_or_else(PoisonError::into_inner))?;
    let stream = Stream::current(Device::Cuda(gpu)).ok()?;
    stream.mark().ok().map(Arc::new)
}

/// The device's clock beside the host's.
pub struct Clock {
    zero: Event,
    /// When the device was at `zero`, in nanoseconds of the recording.
    at: u64,
}

impl Clock {
    /// For a GPU, whose events are wanted from now on; waits for what it was given. None for a CPU.
    ///
    /// # Errors
    /// libtorch's.
    pub fn start(device: Device, since: Instant) -> Result<Option<Clock>, torch::Error> {
        let Device::Cuda(index) = device else {
            return Ok(None);
        };
        let zero = Stream::current(device)?.mark()?;
        zero.synchronize()?;
        *GPU.write().unwrap_or_else(PoisonError::into_inner) = Some(index);
        Ok(Some(Clock {
            zero,
            at: since.elapsed().as_nanos() as u64,
        }))
    }

    /// When the device came to this event, in nanoseconds of the recording; waits until it has.
    pub fn read(&self, event: &Event) -> Option<u64> {
        event.synchronize().ok()?;
        let milliseconds = event.since(&self.zero).ok()?;
        Some((self.at as f64 + milliseconds * 1e6).max(0.0) as u64)
    }
}

/// Events are no longer wanted.
pub fn stop() {
    *GPU.write().unwrap_or_else(PoisonError::into_inner) = None;
}
