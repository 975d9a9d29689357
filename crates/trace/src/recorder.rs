//! What is seen between [`start`] and [`stop`].

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tch::Device;
use torch::stream::Event;

use crate::ON;
use crate::device::{self, Clock};
use crate::span::{Args, Category, Mark};

/// Slices that a recording holds at most, some 150 bytes each: more are counted and left out.
const MOST: usize = 1_000_000;
/// Slices of a GPU whose times are read at once; the device is waited for then.
const UNREAD: usize = 20_000;
/// A libtorch operator that took less nanoseconds is left out: most are views.
const BRIEF: u64 = 2_000;

/// Where a slice is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    /// The thread that adds it.
    Thread,
    /// Beside all threads.
    Beside,
}

/// A row, or several, of the trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    /// A thread of the host, by its number here.
    Host(u32),
    /// What goes on beside the host's threads.
    Beside,
    /// The GPU.
    Device,
    /// The GPU's streams for collectives.
    DeviceCollectives,
}

/// Something that lasted, in nanoseconds of the recording.
#[derive(Debug)]
pub struct Slice {
    pub category: Category,
    pub name: Cow<'static, str>,
    pub args: Args,
    pub row: Row,
    pub start: u64,
    pub duration: u64,
}

/// A slice of a GPU whose times are not known yet.
struct Unread {
    category: Category,
    name: Cow<'static, str>,
    args: Args,
    start: Arc<Event>,
    end: Arc<Event>,
}

struct Recorder {
    since: Instant,
    /// The same in nanoseconds of the machine's monotonic clock, which its ranks share.
    monotonic: u64,
    clock: Option<Clock>,
    slices: Vec<Slice>,
    unread: Vec<Unread>,
    threads: BTreeMap<u32, String>,
    left_out: u64,
}

/// Slices from [`start`] to [`stop`].
#[derive(Debug)]
pub struct Recording {
    pub(crate) monotonic: u64,
    pub(crate) slices: Vec<Slice>,
    pub(crate) threads: BTreeMap<u32, String>,
    left_out: u64,
}

impl Recording {
    /// How many slices it has.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether nothing was seen.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Slices that it had no room for.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

fn recorder() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// Operators of libtorch that this thread is in.
    static INSIDE: Cell<u32> = const { Cell::new(0) };
    static OPERATOR: Cell<Option<Mark>> = const { Cell::new(None) };
    static NUMBER: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// Records from now on what this process does, and on a GPU when `device` does it. Forgets what was recorded before and
/// not taken.
///
/// # Errors
/// libtorch's.
pub fn start(device: Device) -> Result<(), torch::Error> {
    let since = Instant::now();
    let monotonic = monotonic();
    let clock = Clock::start(device, since)?;
    *recorder() = Some(Recorder {
        since,
        monotonic,
        clock,
        slices: Vec::new(),
        unread: Vec::new(),
        threads: BTreeMap::new(),
        left_out: 0,
    });
    torch::observe::start(operator_begins, operator_ends)?;
    ON.store(true, Ordering::Relaxed);
    Ok(())
}

/// Records no more; what was seen. None where nothing was started.
pub fn stop() -> Option<Recording> {
    ON.store(false, Ordering::Relaxed);
    torch::observe::stop();
    let mut recorder = recorder().take()?;
    recorder.read();
    device::stop();
    Some(Recording {
        monotonic: recorder.monotonic,
        slices: recorder.slices,
        threads: recorder.threads,
        left_out: recorder.left_out,
    })
}

/// Adds what has ended.
pub(crate) fn add(
    category: Category,
    name: Cow<'static, str>,
    args: Args,
    between: (&Mark, &Mark),
    track: Track,
) {
    if let Some(recorder) = &mut *recorder() {
        recorder.add(category, name, args, between, track);
    }
}

impl Recorder {
    fn add(
        &mut self,
        category: Category,
        name: Cow<'static, str>,
        args: Args,
        (start, end): (&Mark, &Mark),
        track: Track,
    ) {
        let since = |at: Instant| at.saturating_duration_since(self.since).as_nanos() as u64;
        let (from, to) = (since(start.at), since(end.at));
        let duration = to.saturating_sub(from);
        let brief = category == Category::Operator && duration < BRIEF;
        let row = match track {
            Track::Thread => Row::Host(self.thread()),
            Track::Beside => Row::Beside,
        };
        if let (Some(first), Some(last)) = (&start.event, &end.event) {
            self.unread.push(Unread {
                category,
                name: name.clone(),
                args: args.clone(),
                start: first.clone(),
                end: last.clone(),
            });
            if self.unread.len() >= UNREAD {
                self.read();
            }
        }
        if !brief {
            self.push(Slice {
                category,
                name,
                args,
                row,
                start: from,
                duration,
            });
        }
    }

    fn push(&mut self, slice: Slice) {
        match self.slices.len() < MOST {
            true => self.slices.push(slice),
            false => self.left_out += 1,
        }
    }

    /// Reads the times of the GPU's slices.
    fn read(&mut self) {
        let Some(clock) = self.clock.take() else {
            return;
        };
        for unread in std::mem::take(&mut self.unread) {
            let times = clock.read(&unread.start).zip(clock.read(&unread.end));
            let Some((start, end)) = times else {
                self.left_out += 1;
                continue;
            };
            let duration = end.saturating_sub(start);
            if unread.category == Category::Operator && duration < BRIEF {
                continue;
            }
            self.push(Slice {
                category: unread.category,
                name: unread.name,
                args: unread.args,
                row: match unread.category {
                    Category::Collective => Row::DeviceCollectives,
                    _ => Row::Device,
                },
                start,
                duration,
            });
        }
        self.clock = Some(clock);
    }

    /// The calling thread's number, under which its name is kept.
    fn thread(&mut self) -> u32 {
        let number = NUMBER.with(|number| *number);
        self.threads.entry(number).or_insert_with(|| {
            let name = std::thread::current().name().map(str::to_owned);
            name.unwrap_or_else(system_name)
        });
        number
    }
}

/// What the system calls the calling thread, which is not one of Rust's: libtorch's have names, such as
/// `pt_gloo_runloop`.
fn system_name() -> String {
    let mut name = [0u8; 16];
    // SAFETY: writes at most 16 bytes, the last of them 0.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

/// An operator of libtorch begins on this thread; those inside of another are not seen.
fn operator_begins() {
    let inside = INSIDE.get();
    INSIDE.set(inside + 1);
    if inside == 0 {
        OPERATOR.set(Some(Mark::now()));
    }
}

fn operator_ends(name: &str) {
    let inside = INSIDE.get().saturating_sub(1);
    INSIDE.set(inside);
    if inside > 0 {
        return;
    }
    if let Some(start) = OPERATOR.take() {
        // a node of a graph that is walked back: what it runs lies within it
        let name = name.trim_start_matches("autograd::engine::evaluate_function: ");
        let name = Cow::Owned(name.to_owned());
        let end = Mark::now();
        add(
            Category::Operator,
            name,
            Vec::new(),
            (&start, &end),
            Track::Thread,
        );
    }
}

/// Nanoseconds of the machine's monotonic clock.
fn monotonic() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one value.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
