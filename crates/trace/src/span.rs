//! Things that begin and end.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use torch::stream::{Event, Stream};

use crate::device;
use crate::recorder::{self, Track};

/// What kind of thing a slice is: Perfetto filters by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// A whole training step.
    Step,
    /// A part of one.
    Phase,
    /// A kernel of ours.
    Kernel,
    /// What ranks do together.
    Collective,
    /// An operator of libtorch.
    Operator,
}

impl Category {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Category::Step => "step",
            Category::Phase => "phase",
            Category::Kernel => "kernel",
            Category::Collective => "collective",
            Category::Operator => "operator",
        }
    }
}

/// A value that a slice carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    Int(i64),
    Text(String),
}

impl From<i64> for Arg {
    fn from(x: i64) -> Arg {
        Arg::Int(x)
    }
}

impl From<usize> for Arg {
    fn from(x: usize) -> Arg {
        Arg::Int(x as i64)
    }
}

impl From<u64> for Arg {
    fn from(x: u64) -> Arg {
        Arg::Int(x as i64)
    }
}

impl From<&str> for Arg {
    fn from(x: &str) -> Arg {
        Arg::Text(x.to_owned())
    }
}

/// Names and values, in the order they were given.
pub(crate) type Args = Vec<(&'static str, Arg)>;

/// A point in time, on the host and, while a GPU is recorded, in the work of its current stream.
pub struct Mark {
    pub(crate) at: Instant,
    pub(crate) event: Option<Arc<Event>>,
}

impl Mark {
    /// Now.
    pub fn now() -> Mark {
        Mark {
            at: Instant::now(),
            event: if crate::on() { device::event() } else { None },
        }
    }

    /// Now, and where the work given to this stream ends.
    fn of(stream: Stream) -> Mark {
        Mark {
            at: Instant::now(),
            event: stream.mark().ok().map(Arc::new),
        }
    }

    /// Now, on the host alone.
    pub(crate) fn host() -> Mark {
        Mark {
            at: Instant::now(),
            event: None,
        }
    }

    /// Seconds of the host since then.
    pub fn elapsed(&self) -> f64 {
        self.at.elapsed().as_secs_f64()
    }

    /// Seconds of the host from `earlier` to this.
    pub fn since(&self, earlier: &Mark) -> f64 {
        self.at.duration_since(earlier.at).as_secs_f64()
    }
}

/// Something of the calling thread, from when it was made to when it is dropped. Spans of a thread end in the opposite
/// order of their beginnings.
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Open>>);

struct Open {
    category: Category,
    name: Cow<'static, str>,
    start: Mark,
    args: Args,
    /// Where a GPU does it, unless on the current stream.
    stream: Option<Stream>,
}

impl Open {
    fn end(self, end: &Mark, track: Track) {
        recorder::add(
            self.category,
            self.name,
            self.args,
            (&self.start, end),
            track,
        );
    }
}

impl Span {
    #[inline]
    pub(crate) fn none() -> Span {
        Span(None)
    }

    pub(crate) fn begin(category: Category, name: Cow<'static, str>) -> Span {
        let start = Mark::now();
        Span(Some(Box::new(Open {
            category,
            name,
            start,
            args: Vec::new(),
            stream: None,
        })))
    }

    /// A GPU does it on this stream, not on the current one: it begins there with what the stream is given next.
    #[inline]
    pub fn on(mut self, stream: Stream) -> Span {
        if let Some(open) = &mut self.0 {
            open.start = Mark::of(stream);
            open.stream = Some(stream);
        }
        self
    }

    /// Carries a value, which is looked at only while slices are recorded.
    #[inline]
    pub fn with(mut self, key: &'static str, value: impl Into<Arg>) -> Span {
        self.note(key, value);
        self
    }

    /// As [`Span::with`], of what is known later.
    #[inline]
    pub fn note(&mut self, key: &'static str, value: impl Into<Arg>) {
        if let Some(open) = &mut self.0 {
            open.args.push((key, value.into()));
        }
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let end = open.stream.map_or_else(Mark::now, Mark::of);
            open.end(&end, Track::Thread);
        }
    }
}

/// A slice from `start` to `end`, which are kept for something else anyway: the parts of a step follow one another.
pub fn lap(category: Category, name: impl Into<Cow<'static, str>>, start: &Mark, end: &Mark) {
    if crate::on() {
        recorder::add(
            category,
            name.into(),
            Vec::new(),
            (start, end),
            Track::Thread,
        );
    }
}

/// Something that goes on beside the calling thread's work, such as a collective under way, from when it was made to when
/// it is dropped. It has a track of its own.
#[must_use = "it ends when it is dropped"]
pub struct Beside(Option<Box<Open>>);

impl Beside {
    /// Begins now.
    #[inline]
    pub fn new(category: Category, name: &'static str) -> Beside {
        if !crate::on() {
            return Beside(None);
        }
        Beside(Some(Box::new(Open {
            category,
            name: Cow::Borrowed(name),
            start: Mark::host(),
            args: Vec::new(),
            stream: None,
        })))
    }

    /// As [`Span::with`].
    #[inline]
    pub fn with(mut self, key: &'static str, value: impl Into<Arg>) -> Beside {
        if let Some(open) = &mut self.0 {
            open.args.push((key, value.into()));
        }
        self
    }
}

impl Drop for Beside {
    #[inline]
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            open.end(&Mark::host(), Track::Beside);
        }
    }
}
