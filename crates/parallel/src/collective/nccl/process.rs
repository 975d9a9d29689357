//! NCCL in this process: the library, the device, and who looks after what has not ended.

use std::ffi::c_int;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::ncclUniqueId;
use tch::{Device, Kind, Tensor};
use torch::stream::{self, Stream};

use super::comm::Comm;
use super::library::Library;
use super::watch::Watch;
use crate::Error;
use crate::collective::Collective;
use crate::collective::gloo::Gloo;

/// NCCL in this process.
pub struct Process {
    library: &'static Library,
    pub(super) device: Device,
    pub(super) watch: Watch,
    pub(super) deadline: Duration,
}

impl Process {
    /// Loads NCCL for `device`. Every wait ends after `deadline`.
    ///
    /// # Errors
    /// Why it cannot be loaded, and what to do.
    pub fn new(device: Device, deadline: Duration) -> Result<Rc<Process>, String> {
        let library = Library::get()?;
        stream::select(device).map_err(|e| e.to_string())?;
        let watch = Watch::new(move || {
            // a device that this thread could select, another can
            let _ = stream::select(device);
        });
        Ok(Rc::new(Process {
            library,
            device,
            watch,
            deadline,
        }))
    }

    /// NCCL's version, such as 22809 for 2.28.9.
    pub fn version(&self) -> Result<i32, String> {
        let mut version: c_int = 0;
        // SAFETY: `version` is written.
        let code = unsafe { (self.library.version)(&mut version) };
        self.library.check(code, std::ptr::null_mut())?;
        Ok(version)
    }

    /// A communicator of these places of a group, the first of which names it; none where this rank
    /// is not among them. All of the group call this.
    pub(super) fn lane(&self, gloo: &Gloo, places: &[usize]) -> Result<Option<Lane>, Error> {
        let failure = |e: String| gloo.0.failure("joining NCCL".into(), "join", "start", &e);
        let mut name = Tensor::zeros([128], (Kind::Uint8, Device::Cpu));
        if gloo.rank() == places[0] {
            let id = self.library.new_id().map_err(failure)?;
            name = Tensor::from_slice(&id.internal.map(|c| c as u8));
        }
        gloo.broadcast(&mut name, places[0], "start")?;
        let Some(rank) = places.iter().position(|&place| place == gloo.rank()) else {
            return Ok(None);
        };
        let mut bytes = [0u8; 128];
        name.copy_data(&mut bytes, 128);
        let id = ncclUniqueId {
            internal: bytes.map(|b| b as _),
        };
        let until = Instant::now() + self.deadline;
        let comm = Comm::join(self.library, id, rank, places.len(), until).map_err(failure)?;
        Ok(Some(Lane {
            comm: Arc::new(comm),
            stream: Stream::side(self.device)?,
        }))
    }
}

/// A communicator and the stream that its work runs on.
pub(super) struct Lane {
    pub(super) comm: Arc<Comm>,
    pub(super) stream: Stream,
}
