//! The threads that attempts run on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use crate::error::Error;

type Work = Box<dyn FnOnce() + Send>;

/// As many threads as there was work at once; an idle one takes the next, since to make a thread takes as long as the
/// bookkeeping of a short stage.
pub struct Crew {
    work: Sender<Work>,
    queue: Arc<Mutex<Receiver<Work>>>,
    idle: Arc<AtomicUsize>,
}

impl Crew {
    pub fn new() -> Crew {
        let (work, queue) = channel();
        Crew {
            work,
            queue: Arc::new(Mutex::new(queue)),
            idle: Arc::default(),
        }
    }

    /// Runs `work`, which must not panic, on a thread that does nothing else meanwhile.
    pub fn start(&self, work: Work) -> Result<(), Error> {
        let take = |idle: usize| idle.checked_sub(1);
        let taken = self
            .idle
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        let work = match taken {
            Ok(_) => match self.work.send(work) {
                Ok(()) => return Ok(()),
                // no thread is left to take it
                Err(returned) => returned.0,
            },
            Err(_) => work,
        };
        let (queue, idle) = (self.queue.clone(), self.idle.clone());
        let live = move |first: Work| {
            let mut work = Some(first);
            while let Some(now) = work.take() {
                now();
                idle.fetch_add(1, Ordering::SeqCst);
                work = queue.lock().unwrap_or_else(|e| e.into_inner()).recv().ok();
            }
        };
        std::thread::Builder::new()
            .name("attempt".into())
            .spawn(move || live(work))
            .map(drop)
            .map_err(|source| Error::System {
                what: "cannot start a thread",
                source,
            })
    }
}
