//! Streams of a device, and events on them. Work of one stream runs in the order it was given; what
//! one stream must see of another goes through an event.

use std::ffi::c_void;

use tch::Device;

use crate::{Error, ffi};

/// A stream of a device; a small handle.
#[derive(Debug, Clone, Copy)]
pub struct Stream(ffi::StreamId);

/// A place in a stream's work.
pub struct Event(ffi::Raw);

// SAFETY: an event may be asked and waited for by any thread; it is recorded once, when made.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

/// Makes `device` the one that this thread's calls mean. New threads start with the first.
pub fn select(device: Device) -> Result<(), Error> {
    let (kind, index) = place(device)?;
    // SAFETY: plain values.
    ffi::check(unsafe { ffi::rt_device_select(kind, index) })
}

impl Stream {
    /// The stream that libtorch's operators run on.
    pub fn current(device: Device) -> Result<Stream, Error> {
        Stream::made(device, ffi::rt_stream_current)
    }

    /// A stream beside it, of high priority: one of a few that libtorch keeps.
    pub fn side(device: Device) -> Result<Stream, Error> {
        Stream::made(device, ffi::rt_stream_side)
    }

    fn made(
        device: Device,
        make: unsafe extern "C" fn(i32, i32, *mut ffi::StreamId) -> *mut std::ffi::c_char,
    ) -> Result<Stream, Error> {
        let (kind, index) = place(device)?;
        let mut id = ffi::StreamId::default();
        // SAFETY: `id` is written on success.
        ffi::check(unsafe { make(kind, index, &mut id) })?;
        Ok(Stream(id))
    }

    /// What the device's own libraries call it (`cudaStream_t`).
    pub fn native(self) -> Result<*mut c_void, Error> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` is written on success.
        ffi::check(unsafe { ffi::rt_stream_native(&self.0, &mut out) })?;
        Ok(out)
    }

    /// The end of the work given so far.
    pub fn record(self) -> Result<Event, Error> {
        self.event(false)
    }

    /// As [`Stream::record`], for [`Event::since`].
    pub fn mark(self) -> Result<Event, Error> {
        self.event(true)
    }

    fn event(self, timed: bool) -> Result<Event, Error> {
        let mut out = std::ptr::null_mut();
        // SAFETY: `out` receives an owned handle on success.
        ffi::check(unsafe { ffi::rt_stream_record(&self.0, timed.into(), &mut out) })?;
        Ok(Event(out))
    }

    /// Holds back the work given from now on until `event` is reached; the caller goes on.
    pub fn wait(self, event: &Event) -> Result<(), Error> {
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_stream_wait(&self.0, event.0) })
    }
}

impl Event {
    /// Whether the stream has reached it.
    pub fn ended(&self) -> Result<bool, Error> {
        let mut out = 0;
        // SAFETY: a live handle.
        ffi::check(unsafe { ffi::rt_event_ended(self.0, &mut out) })?;
        Ok(out != 0)
    }

    /// Returns when the stream has reached it.
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: a live handle.
        ffi::check(unsafe { ffi::rt_event_synchronize(self.0) })
    }

    /// Milliseconds of the device from `earlier` to this, both of [`Stream::mark`] and reached.
    pub fn since(&self, earlier: &Event) -> Result<f64, Error> {
        let mut out = 0.0;
        // SAFETY: live handles.
        ffi::check(unsafe { ffi::rt_event_between(earlier.0, self.0, &mut out) })?;
        Ok(out)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { ffi::rt_event_free(self.0) }
    }
}

/// `c10::DeviceType` and index.
pub(crate) fn place(device: Device) -> Result<(i32, i32), Error> {
    match device {
        Device::Cpu => Ok((0, -1)),
        Device::Cuda(index) => Ok((1, index as i32)),
        other => Err(Error::Libtorch(format!("no streams of {other:?}"))),
    }
}
