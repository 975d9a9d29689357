//! What this machine has: cores and GPUs. Constants of the machine, never its load.

use std::collections::BTreeSet;
use std::fs;

/// Cores that may be used: physical ones, at most what affinity and the container's quota allow.
pub fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, |n| n.get());
    physical_cores().unwrap_or(allowed).clamp(1, allowed)
}

/// Threads per rank when the recipe does not say: the cores shared out evenly.
pub fn threads_per_rank(ranks: usize) -> usize {
    (cores() / ranks.max(1)).max(1)
}

/// Distinct sets of sibling hyper-threads.
fn physical_cores() -> Option<usize> {
    let mut siblings = BTreeSet::new();
    for entry in fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        if let Ok(text) = fs::read_to_string(entry.path().join("topology/thread_siblings_list")) {
            siblings.insert(text);
        }
    }
    (!siblings.is_empty()).then_some(siblings.len())
}

/// The GPUs that workers may use, as `CUDA_VISIBLE_DEVICES` names them.
pub fn gpus() -> Vec<String> {
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        return visible
            .split(',')
            .map(str::trim)
            .filter(|s| !s.is_empty() && *s != "-1")
            .map(str::to_owned)
            .collect();
    }
    let Ok(devices) = fs::read_dir("/dev") else {
        return Vec::new();
    };
    let mut indices: Vec<usize> = devices
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("nvidia")?.parse().ok())
        .collect();
    indices.sort_unstable();
    // Device files are numbered by the driver, CUDA devices from 0 by this process's view of them.
    (0..indices.len()).map(|i| i.to_string()).collect()
}

/// The run that an owner, as [`owner`] wrote it, says.
pub fn run_of(owner: &str) -> Option<&str> {
    owner.rsplit_once(" run ").map(|(_, run)| run)
}

/// Whether the process that [`owner`] named lives; none where it is another machine's.
pub fn lives(owner: &str) -> Option<bool> {
    let (host, rest) = owner.split_once(" pid ")?;
    let pid = rest.split(' ').next()?.parse::<u32>().ok()?;
    let here = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    if host != here.trim() {
        return None;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // the state follows the name, which may hold anything
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    Some(state.is_some_and(|s| !s.starts_with('Z')))
}

/// Host name and process, for people who ask who holds a claim.
pub fn owner(run: &str) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{} pid {} run {run}", host.trim(), std::process::id())
}
