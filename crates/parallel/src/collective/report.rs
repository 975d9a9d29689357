//! What the other ranks were doing when a collective failed.
//!
//! A rank that fails leaves a line in the store and looks for the lines of its peers, for a short
//! while: so an error names the rank that is silent, and both shapes where they differ.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use torch::dist::Store;

/// How long a failed rank waits for the lines of the others.
const PATIENCE: Duration = Duration::from_secs(2);

/// Leaves `line` for rank `me` and returns what each of `peers` (ranks of the world) left. `turn`
/// counts the failures of this process: those of one failure meet under one number.
pub(super) fn exchange(
    store: &Store,
    turn: u64,
    me: usize,
    line: String,
    peers: Vec<usize>,
) -> String {
    let store = store.share();
    let (tell, hear) = mpsc::channel();
    let names = peers.clone();
    // The rank that serves the store may be the one that hangs: then no call on it returns, so
    // they are made by a thread that can be left behind.
    thread::spawn(move || {
        let end = Instant::now() + PATIENCE;
        if store.set(&key(turn, me), &line).is_err() {
            return;
        }
        let mut missing = peers;
        while !missing.is_empty() && Instant::now() < end {
            missing.retain(|&peer| match store.get(&key(turn, peer)) {
                Ok(Some(line)) => {
                    // nobody listens any more: the time is over
                    let _ = tell.send((peer, line));
                    false
                }
                _ => true,
            });
            thread::sleep(Duration::from_millis(20));
        }
    });
    let end = Instant::now() + PATIENCE + Duration::from_millis(500);
    let mut lines: Vec<(usize, Option<String>)> = names.iter().map(|&rank| (rank, None)).collect();
    while let Ok((rank, line)) = hear.recv_timeout(end.saturating_duration_since(Instant::now())) {
        if let Some(entry) = lines.iter_mut().find(|(r, _)| *r == rank) {
            entry.1 = Some(line);
        }
    }
    let told: Vec<String> = lines
        .into_iter()
        .map(|(rank, line)| match line {
            Some(line) => format!("rank {rank}: {line}"),
            None => format!("rank {rank}: no word from it"),
        })
        .collect();
    told.join("; ")
}

fn key(turn: u64, rank: usize) -> String {
    format!("failed/{turn}/{rank}")
}
