//! A trace as Perfetto reads it: everything that it would drop, shift or misname is an error here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// A rank's trace that holds to the format.
pub struct Trace {
    pub whole: Value,
    /// In the order of the file.
    pub slices: Vec<Slice>,
    /// Names of threads by their number.
    pub threads: BTreeMap<u64, String>,
}

/// A complete event; times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Slice {
    pub name: String,
    pub category: String,
    pub thread: u64,
    pub start: i64,
    pub end: i64,
    pub args: Value,
}

impl Slice {
    /// Whether this lies within another, on the same thread.
    pub fn within(&self, other: &Slice) -> bool {
        self.thread == other.thread && other.start <= self.start && self.end <= other.end
    }
}

impl Trace {
    /// Reads the trace of a rank.
    ///
    /// # Panics
    /// Where it breaks a rule of the format: events of other kinds, of another process than the rank, of threads without
    /// a name, with times that are no numbers or negative, out of order, or that cross one another on one thread.
    #[track_caller]
    pub fn read(path: &Path, rank: u64) -> Trace {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let whole: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(whole["displayTimeUnit"], "ms");
        let keys: Vec<&String> = whole.as_object().expect("an object").keys().collect();
        // Perfetto reads no further than a key that it does not know
        assert_eq!(keys, ["displayTimeUnit", "otherData", "traceEvents"]);
        let mut trace = Trace {
            slices: Vec::new(),
            threads: BTreeMap::new(),
            whole: Value::Null,
        };
        let mut processes = BTreeSet::new();
        for event in whole["traceEvents"].as_array().expect("events") {
            assert_eq!(event["pid"], rank, "{event}");
            match event["ph"].as_str() {
                Some("M") => trace.metadata(event, &mut processes),
                Some("X") => trace.complete(event),
                _ => panic!("not of a kind that is written: {event}"),
            }
        }
        assert_eq!(
            processes.into_iter().collect::<Vec<_>>(),
            [format!("rank {rank}")]
        );
        trace.nested();
        trace.whole = whole;
        trace
    }

    fn metadata(&mut self, event: &Value, processes: &mut BTreeSet<String>) {
        let name = || event["args"]["name"].as_str().expect("a name").to_owned();
        match event["name"].as_str() {
            Some("process_name") => assert!(processes.insert(name())),
            Some("thread_name") => {
                let thread = event["tid"].as_u64().expect("a thread");
                assert!(thread > 0, "thread 0 is the idle one");
                assert!(self.threads.insert(thread, name()).is_none(), "{event}");
            }
            Some("process_sort_index" | "thread_sort_index") => {
                assert!(event["args"]["sort_index"].is_u64(), "{event}");
            }
            _ => panic!("metadata of no use: {event}"),
        }
    }

    fn complete(&mut self, event: &Value) {
        let nanoseconds = |field: &str| {
            let micros = event[field]
                .as_f64()
                .unwrap_or_else(|| panic!("'{field}': {event}"));
            assert!(micros.is_finite() && micros >= 0.0, "{event}");
            (micros * 1000.0).round() as i64
        };
        let text = |field: &str| {
            let text = event[field].as_str().unwrap_or_default();
            assert!(!text.is_empty(), "'{field}': {event}");
            text.to_owned()
        };
        let start = nanoseconds("ts");
        let slice = Slice {
            name: text("name"),
            category: text("cat"),
            thread: event["tid"].as_u64().expect("a thread"),
            start,
            end: start + nanoseconds("dur"),
            args: event["args"].clone(),
        };
        assert!(
            self.threads.contains_key(&slice.thread),
            "named before it is used: {event}"
        );
        self.slices.push(slice);
    }

    /// On a thread slices come in order, and lie beside or within one another.
    fn nested(&self) {
        let mut open: BTreeMap<u64, Vec<&Slice>> = BTreeMap::new();
        for slice in &self.slices {
            let open = open.entry(slice.thread).or_default();
            while open
                .last()
                .is_some_and(|around| around.end <= slice.start && around.end < slice.end)
            {
                open.pop();
            }
            if let Some(around) = open.last() {
                assert!(slice.within(around), "{slice:?} crosses {around:?}");
            }
            open.push(slice);
        }
    }

    /// All slices of a name.
    pub fn named(&self, name: &str) -> Vec<&Slice> {
        self.slices.iter().filter(|s| s.name == name).collect()
    }

    /// The names of a category.
    pub fn names(&self, category: &str) -> BTreeSet<&str> {
        let of = self.slices.iter().filter(|s| s.category == category);
        of.map(|s| s.name.as_str()).collect()
    }
}
