//! What a collective has started and the caller's stream is not yet behind.

use std::sync::Arc;

use tch::{Device, Tensor};
use torch::stream::{Event, Stream};

use crate::Error;
use crate::collective::Pending;

/// Elements of a result that the host waits for.
const SMALL: usize = 1024;

/// A collective on its way to the caller's stream.
pub(super) struct Arrival {
    end: Arc<Event>,
    device: Device,
    /// Alive until the caller's stream is behind the collective.
    _tensors: Vec<Tensor>,
    small: bool,
    ordered: bool,
}

impl Arrival {
    /// A collective over `tensors` that has come when `end` has; `what` it carries says whether the
    /// host will read it.
    pub fn new(end: Arc<Event>, device: Device, tensors: &[&Tensor], what: &Tensor) -> Arrival {
        Arrival {
            end,
            device,
            _tensors: tensors.iter().map(|t| t.shallow_clone()).collect(),
            small: what.numel() <= SMALL,
            ordered: false,
        }
    }

    /// Its end, where the host decides by what comes.
    pub fn read_by_host(&self) -> Option<Arc<Event>> {
        self.small.then(|| self.end.clone())
    }

    /// What the caller's stream does next comes after it.
    pub fn order(mut self) -> Result<(), Error> {
        self.ordered = true;
        Ok(Stream::current(self.device)?.wait(&self.end)?)
    }

    pub fn pending(self) -> Pending {
        Pending::new(move || self.order())
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.ordered {
            // its tensors' memory is handed out again in the order of that stream
            let _ = Stream::current(self.device).and_then(|here| here.wait(&self.end));
        }
    }
}
