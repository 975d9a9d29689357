//! What a rank does, and when: phases of a step, kernels, collectives and libtorch's operators, as slices of a trace in
//! the Chrome trace-event format, which Perfetto opens.
//!
//! ```text
//! let _forward = trace::phase("forward").with("rows", rows);   // until it is dropped
//! ```
//!
//! | module | what |
//! |---|---|
//! | `span` | [`Span`]: something that begins and ends; [`Mark`]: a point in time |
//! | `recorder` | [`start`], [`stop`]: what was seen in between |
//! | `device` | when a GPU did what the host gave it |
//! | `chrome` | [`Recording::write`] |
//!
//! Nothing is recorded until [`start`]; until then a span is one relaxed load of an atomic. While it records, a slice costs
//! about a microsecond, on a GPU two events of the current stream more. On the host a slice lasts as long as the call
//! does; where a GPU computes there is a second slice on the device's track, from when the stream came to the work to when
//! it had done it. The two kinds do not disturb one another: no slice waits for the device.

mod chrome;
mod device;
mod recorder;
mod span;

pub use recorder::{Recording, start, stop};
pub use span::{Arg, Beside, Category, Mark, Span, lap};

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

static ON: AtomicBool = AtomicBool::new(false);

/// Whether slices are recorded now.
#[inline]
pub fn on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// A phase of a step, such as `forward`, on the calling thread.
#[inline]
pub fn phase(name: &'static str) -> Span {
    span(Category::Phase, name)
}

/// A kernel of ours, such as `rms_norm`.
#[inline]
pub fn kernel(name: &'static str) -> Span {
    span(Category::Kernel, name)
}

/// Anything else; on a GPU its time there is seen too.
#[inline]
pub fn span(category: Category, name: &'static str) -> Span {
    match on() {
        true => Span::begin(category, Cow::Borrowed(name)),
        false => Span::none(),
    }
}

/// As [`span`], with a name that is made only while slices are recorded.
#[inline]
pub fn span_named(category: Category, name: impl FnOnce() -> String) -> Span {
    match on() {
        true => Span::begin(category, Cow::Owned(name())),
        false => Span::none(),
    }
}
