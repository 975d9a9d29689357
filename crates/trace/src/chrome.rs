//! The Chrome trace-event format: a JSON object with `traceEvents`, of which ours are complete events (`"ph": "X"`, a
//! begin and a duration in microseconds) and the names of processes and threads (`"ph": "M"`).
//!
//! A process is a rank. Slices of one row lie beside or within one another; where they cross, as collectives under way
//! do, the row gets further lanes. Times are those of the machine's monotonic clock, so that the traces of ranks on one
//! machine fit together.
//!
//! Format: <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>

use std::cmp::Reverse;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::recorder::{Recording, Row, Slice};
use crate::span::Arg;

/// Numbers of threads that each rank has for itself: Perfetto finds a thread's name by its number alone.
const THREADS: usize = 1000;

/// Slices of one thread of the trace: any two lie apart, or one within the other.
struct Lane<'a> {
    name: String,
    slices: Vec<&'a Slice>,
    /// Ends of the slices that the next may lie within, outermost first.
    open: Vec<u64>,
}

impl Recording {
    /// Writes the trace of a rank; `about` goes to its `otherData`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(
        &self,
        out: &mut impl Write,
        rank: usize,
        about: &[(&str, String)],
    ) -> io::Result<()> {
        let mut other: Map<String, Value> = about
            .iter()
            .map(|(name, text)| ((*name).to_owned(), text.as_str().into()))
            .collect();
        other.insert("slices".into(), self.len().into());
        other.insert("slices_left_out".into(), self.left_out().into());
        let other = Value::Object(other);
        write!(
            out,
            r#"{{"displayTimeUnit":"ms","otherData":{other},"traceEvents":["#
        )?;
        let name = json!({ "name": format!("rank {rank}") });
        write!(out, "\n{}", metadata("process_name", rank, None, name))?;
        let order = json!({ "sort_index": rank });
        write!(
            out,
            ",\n{}",
            metadata("process_sort_index", rank, None, order)
        )?;
        for (at, lane) in self.lanes().iter().enumerate() {
            let thread = rank * THREADS + at + 1;
            let name = json!({ "name": lane.name });
            write!(
                out,
                ",\n{}",
                metadata("thread_name", rank, Some(thread), name)
            )?;
            let order = json!({ "sort_index": at });
            write!(
                out,
                ",\n{}",
                metadata("thread_sort_index", rank, Some(thread), order)
            )?;
            for slice in &lane.slices {
                self.event(out, slice, rank, thread)?;
            }
        }
        out.write_all(b"\n]}\n")
    }

    fn event(
        &self,
        out: &mut impl Write,
        slice: &Slice,
        rank: usize,
        thread: usize,
    ) -> io::Result<()> {
        write!(
            out,
            ",\n{{\"ph\":\"X\",\"name\":{},\"cat\":\"{}\",\"pid\":{rank},\"tid\":{thread},\"ts\":{},\"dur\":{}",
            Value::from(&*slice.name),
            slice.category.name(),
            Micros(self.monotonic + slice.start),
            Micros(slice.duration),
        )?;
        if !slice.args.is_empty() {
            let value = |arg: &Arg| match arg {
                Arg::Int(x) => Value::from(*x),
                Arg::Text(text) => Value::from(text.as_str()),
            };
            let args = slice.args.iter();
            let args: Map<String, Value> = args.map(|(k, v)| ((*k).to_owned(), value(v))).collect();
            write!(out, ",\"args\":{}", Value::Object(args))?;
        }
        out.write_all(b"}")
    }

    /// The threads of the trace, row by row.
    fn lanes(&self) -> Vec<Lane<'_>> {
        // what holds others ends after them, and so was added after them
        let mut slices: Vec<&Slice> = self.slices.iter().rev().collect();
        slices.sort_by_key(|s| (s.row, s.start, Reverse(s.duration)));
        let mut lanes = Vec::new();
        for row in slices.chunk_by(|a, b| a.row == b.row) {
            let first = lanes.len();
            for &slice in row {
                let fitting = lanes[first..]
                    .iter_mut()
                    .find_map(|lane: &mut Lane| lane.takes(slice).then_some(lane));
                match fitting {
                    Some(lane) => lane.push(slice),
                    None => {
                        let name = self.name(slice.row, lanes.len() - first);
                        let mut lane = Lane {
                            name,
                            slices: Vec::new(),
                            open: Vec::new(),
                        };
                        lane.push(slice);
                        lanes.push(lane);
                    }
                }
            }
        }
        lanes
    }

    /// What a row's lane is called; `further` of the same row come before it.
    fn name(&self, row: Row, further: usize) -> String {
        let name = match row {
            Row::Host(number) => self.threads.get(&number).map_or("host", String::as_str),
            Row::Beside => "collectives",
            Row::Device => "gpu",
            Row::DeviceCollectives => "gpu collectives",
        };
        match further {
            0 => name.to_owned(),
            n => format!("{name} ({})", n + 1),
        }
    }
}

impl Lane<'_> {
    /// Whether a slice that begins no sooner than those before crosses none of them.
    fn takes(&mut self, slice: &Slice) -> bool {
        while self.open.last().is_some_and(|&end| end <= slice.start) {
            self.open.pop();
        }
        let end = slice.start + slice.duration;
        self.open.last().is_none_or(|&around| end <= around)
    }
}

impl<'a> Lane<'a> {
    fn push(&mut self, slice: &'a Slice) {
        self.open.push(slice.start + slice.duration);
        self.slices.push(slice);
    }
}

fn metadata(what: &str, rank: usize, thread: Option<usize>, args: Value) -> Value {
    let mut event = json!({ "ph": "M", "name": what, "pid": rank });
    if let Some(thread) = thread {
        event["tid"] = thread.into();
    }
    event["args"] = args;
    event
}

/// Nanoseconds, written as microseconds.
struct Micros(u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}
