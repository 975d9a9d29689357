//! What stands between a run and a tracker: a bounded queue and the thread that empties it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Failure, Record, Tracker};

/// Records that wait at most; a server that is away for an hour of one-second steps loses none.
const ROOM: usize = 8192;
/// Records that are sent together, and how long the first of them waits for others.
const BATCH: usize = 512;
const LINGER: Duration = Duration::from_millis(500);
/// Between tries: the first pause and the longest.
const PAUSE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];
/// At the end of a run: how long a try may have gone on, and how long one that gets on is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(15);

/// A tracker's queue, as the run's thread sees it.
pub struct Queue {
    name: &'static str,
    records: Option<SyncSender<Arc<Record>>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
    state: Arc<State>,
    pushed: u64,
}

#[derive(Default)]
struct State {
    /// Records that were sent.
    sent: AtomicU64,
    /// The tries that failed since the last that did not.
    failures: AtomicU64,
    /// The run has ended: a try that fails now is the last.
    closed: AtomicBool,
    /// When the try that goes on began.
    trying: Mutex<Option<Instant>>,
    /// What went wrong last.
    error: Mutex<Option<String>>,
}

impl State {
    fn set_trying(&self, since: Option<Instant>) {
        *self.trying.lock().unwrap_or_else(|e| e.into_inner()) = since;
    }
}

impl Queue {
    pub fn start(name: &'static str, tracker: Box<dyn Tracker>) -> std::io::Result<Queue> {
        let (records, queue) = sync_channel(ROOM);
        let (ending, ended) = sync_channel(0);
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::Builder::new()
            .name(format!("track {name}"))
            .spawn(move || {
                let _ending: SyncSender<()> = ending;
                empty(tracker, &queue, &shared);
            })?;
        Ok(Queue {
            name,
            records: Some(records),
            ended,
            state,
            pushed: 0,
        })
    }

    /// Adds a record, or drops it where there is no room.
    pub fn push(&mut self, record: &Arc<Record>) {
        self.pushed += 1;
        if let Some(records) = &self.records {
            // what does not fit is among those that were pushed and not sent
            let _ = records.try_send(Arc::clone(record));
        }
    }

    /// Nothing is added any more.
    pub fn close(&mut self) {
        self.state.closed.store(true, Ordering::SeqCst);
        self.records = None;
    }

    /// Waits for the thread as long as it gets on; what was not sent, in words. One that has waited
    /// for its server all along is not waited for.
    pub fn end(self) -> Option<String> {
        let (begun, state) = (Instant::now(), &self.state);
        loop {
            match self.ended.recv_timeout(Duration::from_millis(20)) {
                Err(RecvTimeoutError::Disconnected) | Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let trying = *state.trying.lock().unwrap_or_else(|e| e.into_inner());
            let stuck = trying.is_some_and(|since| since.elapsed() > PATIENCE);
            if stuck || begun.elapsed() > LONGEST {
                break;
            }
        }
        let missing = self.pushed - state.sent.load(Ordering::SeqCst);
        if missing == 0 {
            return None;
        }
        let error = state.error.lock().unwrap_or_else(|e| e.into_inner()).take();
        let why = error.unwrap_or_else(|| "it does not answer".to_owned());
        Some(format!(
            "{}: {missing} of {} records were not tracked: {why}; the run's own record has them",
            self.name, self.pushed
        ))
    }
}

/// The thread: until the queue is closed and empty, or closed and the tracker fails.
fn empty(mut tracker: Box<dyn Tracker>, queue: &Receiver<Arc<Record>>, state: &State) {
    let mut batch: Vec<Arc<Record>> = Vec::new();
    loop {
        if batch.is_empty() {
            fill(&mut batch, queue);
            if batch.is_empty() {
                return;
            }
        }
        let last = state.closed.load(Ordering::SeqCst);
        state.set_trying(Some(Instant::now()));
        let sent = tracker.send(&batch);
        state.set_trying(None);
        match sent {
            Ok(()) => {
                state.sent.fetch_add(batch.len() as u64, Ordering::SeqCst);
                state.failures.store(0, Ordering::SeqCst);
                batch.clear();
            }
            Err(failure) => {
                let (Failure::Later(why) | Failure::Never(why)) = &failure;
                *state.error.lock().unwrap_or_else(|e| e.into_inner()) = Some(why.clone());
                match failure {
                    Failure::Never(_) => batch.clear(),
                    Failure::Later(_) if last => return,
                    Failure::Later(_) => {
                        let failures = state.failures.fetch_add(1, Ordering::SeqCst).min(8);
                        let time = PAUSE[0] * (1 << failures);
                        pause(&mut batch, queue, state, time.min(PAUSE[1]));
                    }
                }
            }
        }
    }
}

/// Takes a batch from the queue; nothing when it is closed and empty.
fn fill(batch: &mut Vec<Arc<Record>>, queue: &Receiver<Arc<Record>>) {
    let Ok(first) = queue.recv() else { return };
    batch.push(first);
    let until = Instant::now() + LINGER;
    while batch.len() < BATCH {
        match queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(record) => batch.push(record),
            Err(_) => return,
        }
    }
}

/// Waits for the next try, but not when the run ends meanwhile. Goes on taking records as long as
/// a batch has room; then the queue itself fills up.
fn pause(
    batch: &mut Vec<Arc<Record>>,
    queue: &Receiver<Arc<Record>>,
    state: &State,
    time: Duration,
) {
    let until = Instant::now() + time;
    while !state.closed.load(Ordering::SeqCst) {
        let left = until.saturating_duration_since(Instant::now());
        let look = left.min(Duration::from_millis(50));
        if left.is_zero() {
            return;
        }
        if batch.len() >= BATCH {
            std::thread::sleep(look);
        } else if let Ok(record) = queue.recv_timeout(look) {
            batch.push(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::track::What;

    /// Fails as often as it is told to, then remembers what it gets.
    struct Flaky {
        fails: u32,
        got: Arc<Mutex<Vec<f64>>>,
    }

    impl Tracker for Flaky {
        fn send(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
            if self.fails > 0 {
                self.fails -= 1;
                return Err(Failure::Later("away".into()));
            }
            self.got
                .lock()
                .unwrap()
                .extend(records.iter().map(|r| r.time));
            Ok(())
        }
    }

    fn record(time: f64) -> Arc<Record> {
        Arc::new(Record {
            time,
            stage: "sft".into(),
            what: What::RunFinished { exit_code: 0 },
        })
    }

    #[test]
    fn nothing_is_lost_while_there_is_room_and_order_is_kept() {
        let got = Arc::default();
        let tracker = Flaky {
            fails: 2,
            got: Arc::clone(&got),
        };
        let mut queue = Queue::start("flaky", Box::new(tracker)).unwrap();
        for i in 0..2000 {
            queue.push(&record(f64::from(i)));
        }
        // the tries that fail are over before the queue is closed
        while queue.state.sent.load(Ordering::SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        queue.close();
        assert_eq!(queue.end(), None);
        assert_eq!(
            *got.lock().unwrap(),
            (0..2000).map(f64::from).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_does_not_fit_is_counted_and_pushing_never_waits() {
        struct Hangs(Receiver<()>);
        impl Tracker for Hangs {
            fn send(&mut self, _: &[Arc<Record>]) -> Result<(), Failure> {
                let _ = self.0.recv();
                Err(Failure::Never("gone".into()))
            }
        }
        let (hold, held) = sync_channel(0);
        let mut queue = Queue::start("hangs", Box::new(Hangs(held))).unwrap();
        let pushed = ROOM * 3;
        for i in 0..pushed {
            queue.push(&record(i as f64));
        }
        queue.close();
        let told = queue.end().expect("something is missing");
        let wanted = format!("hangs: {pushed} of {pushed} records were not tracked");
        assert!(told.starts_with(&wanted), "{told}");
        drop(hold);
    }
}
