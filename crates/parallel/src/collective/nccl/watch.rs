//! Deadlines of what runs on a device. The host goes on while a collective runs, so a thread looks
//! after those that have not ended: at a deadline, or when NCCL reports an error, it aborts the
//! communicator, which ends the collective on the device, and keeps what failed for the next call.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Something on the device that ends.
pub trait Ends: Send + Sync {
    /// Whether it has.
    fn ended(&self) -> Result<bool, String>;
}

impl Ends for torch::stream::Event {
    fn ended(&self) -> Result<bool, String> {
        torch::stream::Event::ended(self).map_err(|e| e.to_string())
    }
}

/// What carries it.
pub trait Health: Send + Sync {
    /// An error that was reported meanwhile.
    fn check(&self) -> Result<(), String>;
    /// Ends all that it carries.
    fn abort(&self);
}

/// A collective under way.
pub struct Flight {
    /// What it is, for messages.
    pub line: String,
    pub collective: &'static str,
    pub phase: String,
    pub end: Arc<dyn Ends>,
    pub carrier: Arc<dyn Health>,
    pub started: Instant,
    pub deadline: Duration,
}

/// The first collective of this process that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub line: String,
    pub collective: &'static str,
    pub phase: String,
    pub reason: String,
}

/// Looks after all flights of a process.
pub struct Watch(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Default)]
struct State {
    flights: Vec<Flight>,
    failed: Option<Failed>,
    stop: bool,
}

impl Watch {
    /// Starts the thread, which first runs `prepare` (it makes the device its own).
    pub fn new(prepare: impl FnOnce() + Send + 'static) -> Watch {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            news: Condvar::new(),
        });
        let watched = shared.clone();
        thread::spawn(move || {
            prepare();
            watched.look();
        });
        Watch(shared)
    }

    /// Looks after one more.
    pub fn follow(&self, flight: Flight) {
        self.0.lock().flights.push(flight);
        self.0.news.notify_one();
    }

    /// What failed, if something has.
    pub fn failed(&self) -> Option<Failed> {
        self.0.lock().failed.clone()
    }

    /// Waits until `end` has come, or something failed; its flight must be followed.
    pub fn land(&self, end: &dyn Ends) -> Result<(), Failed> {
        loop {
            // asked first: what was aborted ends as well
            let ended = end.ended();
            if let Some(failed) = self.failed() {
                return Err(failed);
            }
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => thread::sleep(Duration::from_micros(20)),
                // its flight is looked at too, and fails
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.news.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        loop {
            let mut flights = {
                let mut state = self.lock();
                while state.flights.is_empty() && !state.stop {
                    state = self
                        .news
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if state.stop {
                    return;
                }
                std::mem::take(&mut state.flights)
            };
            let mut wrong = None;
            flights.retain(|flight| match flight.state() {
                Ok(ended) => !ended,
                Err(reason) => {
                    wrong.get_or_insert(Failed {
                        line: flight.line.clone(),
                        collective: flight.collective,
                        phase: flight.phase.clone(),
                        reason,
                    });
                    true
                }
            });
            if let Some(failed) = wrong {
                // known before anything ends: whoever waits must not take an abort for an end
                self.lock().failed.get_or_insert(failed);
                for flight in flights.drain(..) {
                    flight.carrier.abort();
                }
            }
            self.lock().flights.append(&mut flights);
            thread::sleep(PAUSE);
        }
    }
}

impl Flight {
    /// Whether it has ended; or why it never will.
    fn state(&self) -> Result<bool, String> {
        if self.end.ended()? {
            return Ok(true);
        }
        self.carrier.check()?;
        match self.started.elapsed() > self.deadline {
            true => Err(format!("it did not end within {:?}", self.deadline)),
            false => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// A collective that ends when it is told to, or aborted.
    #[derive(Default)]
    struct Fake {
        ended: AtomicBool,
        aborted: AtomicBool,
        error: Mutex<Option<String>>,
    }

    impl Ends for Fake {
        fn ended(&self) -> Result<bool, String> {
            Ok(self.ended.load(Ordering::SeqCst))
        }
    }

    impl Health for Fake {
        fn check(&self) -> Result<(), String> {
            self.error.lock().unwrap().clone().map_or(Ok(()), Err)
        }
        fn abort(&self) {
            self.aborted.store(true, Ordering::SeqCst);
            self.ended.store(true, Ordering::SeqCst);
        }
    }

    fn flight(fake: &Arc<Fake>, phase: &str, deadline: Duration) -> Flight {
        Flight {
            line: format!("all_reduce_sum in phase '{phase}'"),
            collective: "all_reduce_sum",
            phase: phase.into(),
            end: fake.clone(),
            carrier: fake.clone(),
            started: Instant::now(),
            deadline,
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn what_ends_in_time_is_forgotten() {
        let watch = Watch::new(|| {});
        let fake = Arc::new(Fake::default());
        watch.follow(flight(&fake, "gradients", LONG));
        fake.ended.store(true, Ordering::SeqCst);
        assert_eq!(watch.land(&*fake), Ok(()));
        while Arc::strong_count(&fake) > 1 {
            thread::sleep(PAUSE);
        }
        assert!(!fake.aborted.load(Ordering::SeqCst));
    }

    #[test]
    fn what_does_not_end_is_aborted_at_its_deadline_and_named() {
        let watch = Watch::new(|| {});
        let (late, other) = (Arc::new(Fake::default()), Arc::new(Fake::default()));
        watch.follow(flight(&other, "weights", LONG));
        watch.follow(flight(&late, "gradients", Duration::from_millis(20)));
        let failed = watch.land(&*late).expect_err("it never ends");
        assert_eq!(
            (failed.collective, &*failed.phase),
            ("all_reduce_sum", "gradients")
        );
        assert!(failed.reason.contains("20ms"), "{}", failed.reason);
        while !other.aborted.load(Ordering::SeqCst) {
            thread::sleep(PAUSE);
        }
        assert!(late.aborted.load(Ordering::SeqCst));
        // the first failure stays the one that is told
        assert_eq!(watch.land(&*other), Err(failed));
    }

    #[test]
    fn an_error_that_is_reported_meanwhile_ends_it_before_its_deadline() {
        let watch = Watch::new(|| {});
        let fake = Arc::new(Fake::default());
        watch.follow(flight(&fake, "keys", LONG));
        *fake.error.lock().unwrap() = Some("NCCL: remote process exited".into());
        let failed = watch.land(&*fake).expect_err("an error");
        assert_eq!(failed.reason, "NCCL: remote process exited");
        while !fake.aborted.load(Ordering::SeqCst) {
            thread::sleep(PAUSE);
        }
    }
}
