//! Server-sent events of a run.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use super::{Shared, answer, head, is_id};
use crate::verbs::runs::{Ending, ending, record};

/// Between looks at a store here, and at a remote one.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_FAR: Duration = Duration::from_secs(10);
/// A line of nothing that often finds out who hung up.
const ALIVE: Duration = Duration::from_secs(10);

/// Length and time of what a run writes; of a remote store, what its record says.
#[derive(PartialEq)]
enum Stamp {
    Here(Vec<Option<(u64, SystemTime)>>),
    Far(u64),
}

/// Writes events until the run has ended or nobody listens.
pub fn stream(shared: &Shared, mut stream: &TcpStream, id: &str) -> std::io::Result<()> {
    if !is_id(id) || !matches!(record(&shared.store, id), Ok(Some(_))) {
        return answer(stream, 404, "text/plain", "there is no such run\n");
    }
    let head = head(200, "text/event-stream");
    stream.write_all(format!("{head}\r\nretry: 3000\n\n").as_bytes())?;
    let mut last = stamp(shared, id);
    let mut said = Instant::now();
    loop {
        // looked at before the stamp: what a run wrote as it ended is then announced
        let ended = match record(&shared.store, id) {
            Ok(Some(record)) => ending(&record) != Ending::Running,
            _ => true,
        };
        let now = stamp(shared, id);
        if ended {
            return stream.write_all(b"event: end\ndata: \n\n");
        }
        if now != last {
            stream.write_all(b"event: more\ndata: \n\n")?;
            (last, said) = (now, Instant::now());
        } else if said.elapsed() > ALIVE {
            stream.write_all(b":\n\n")?;
            said = Instant::now();
        }
        std::thread::sleep(if shared.store.local().is_some() {
            LOOK
        } else {
            LOOK_FAR
        });
    }
}

fn stamp(shared: &Shared, id: &str) -> Stamp {
    let of = |name: &str| {
        let path = shared.store.run_path(id, name).ok()??;
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.len(), meta.modified().ok()?))
    };
    if shared.store.local().is_some() {
        return Stamp::Here(["record.json", "events.jsonl"].map(of).to_vec());
    }
    let bytes = shared.store.get_run(id, "record.json").ok().flatten();
    Stamp::Far(bytes.map_or(0, |b| b.len() as u64))
}
