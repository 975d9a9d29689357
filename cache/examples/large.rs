//! What a large artifact costs, as JSON lines; `ci/large.sh` sets it beside `b3sum` and `aws s3 cp`.
//!
//! ```sh
//! large hash FILE             # first hash, again, one byte changed with mtime set back, racy
//! large push FILE URL STORE   # publish FILE to URL
//! large pull DIGEST URL TO    # fetch it again
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use cache::{Backend, Digest, HashCache, Ingest, Store};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["hash", file] => hash(Path::new(file)),
        ["push", file, url] => push(Path::new(file), url),
        ["pull", digest, url, to] => pull(digest.parse()?, url, Path::new(to)),
        _ => Err("usage: large hash FILE | push FILE URL | pull DIGEST URL TO".into()),
    }
}

fn timed<T>(what: &str, bytes: u64, action: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let value = action();
    let seconds = began.elapsed().as_secs_f64();
    let rate = bytes as f64 / 1e9 / seconds;
    println!(r#"{{"what":"{what}","bytes":{bytes},"seconds":{seconds:.6},"gb_per_s":{rate:.3}}}"#);
    value
}

fn hash(path: &Path) -> Outcome {
    let bytes = path.metadata()?.len();
    let log = path.with_extension("hashes");
    let _ = std::fs::remove_file(&log);
    let cache = HashCache::new(Some(log.clone()));
    let (first, _) = timed("first hash", bytes, || cache.digest(path, false))?;
    cache.flush()?;
    drop(cache);
    let cache = HashCache::new(Some(log.clone()));
    let (again, _) = timed("hash again", bytes, || cache.digest(path, false))?;
    assert_eq!(first, again);

    // one byte, and the times as they were: ctime tells; what tells nothing is for `paranoid`
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let modified = file.metadata()?.modified()?;
    let mut byte = [0u8];
    file.read_exact_at(&mut byte, bytes / 2)?;
    let change = |value: u8| -> std::io::Result<()> {
        file.write_all_at(&[value], bytes / 2)?;
        file.set_modified(modified)
    };
    change(byte[0] ^ 1)?;
    let (changed, _) = timed("one byte changed, mtime set back", bytes, || {
        cache.digest(path, false)
    })?;
    let (paranoid, _) = timed("the same, paranoid", bytes, || cache.digest(path, true))?;
    change(byte[0])?;
    println!(
        r#"{{"what":"found","by_stat":{},"paranoid":{}}}"#,
        changed != first,
        paranoid != first
    );

    // a write right after a hash, within the clock's tick, of a small file: always found
    let small = path.with_extension("racy");
    let (mut found, rounds) = (0, 2000);
    for round in 0..rounds {
        std::fs::write(&small, format!("content {round:8}"))?;
        let before = cache.digest(&small, false)?;
        std::fs::write(&small, format!("CONTENT {round:8}"))?;
        found += usize::from(cache.digest(&small, false)? != before);
    }
    println!(r#"{{"what":"racy writes","tried":{rounds},"found":{found}}}"#);
    std::fs::remove_file(small)?;
    std::fs::remove_file(log)?;
    Ok(())
}

/// Counts the bytes that travel in this process: less than all when a transfer goes on.
fn counted(store: &Store) -> Arc<[AtomicU64; 2]> {
    let seen: Arc<[AtomicU64; 2]> = Arc::new([AtomicU64::new(u64::MAX), AtomicU64::new(0)]);
    let told = seen.clone();
    store.observe(Arc::new(move |progress| {
        told[0].fetch_min(progress.done, Ordering::Relaxed);
        told[1].fetch_max(progress.done, Ordering::Relaxed);
    }));
    seen
}

fn tell_travelled(what: &str, seen: &[AtomicU64; 2]) {
    let [from, to] = [&seen[0], &seen[1]].map(|n| n.load(Ordering::Relaxed));
    println!(r#"{{"what":"{what}: first and last byte reported","from":{from},"to":{to}}}"#);
}

fn push(file: &Path, url: &str) -> Outcome {
    let store = Store::open(url)?;
    let bytes = file.metadata()?.len();
    let digest = timed("hash before the push", bytes, || store.hash_file(file))?;
    println!(r#"{{"what":"digest","digest":"{digest}"}}"#);
    let seen = counted(&store);
    timed("push", bytes, || store.put_file(file, Ingest::Copy))?;
    tell_travelled("push", &seen);
    store.flush()?;
    Ok(())
}

fn pull(digest: Digest, url: &str, to: &Path) -> Outcome {
    let remote = cache::Remote::open(url)?;
    let path = format!("blobs/{}/{digest}", &digest.hex()[..2]);
    let bytes = remote.size(&path)?.ok_or("no such blob")?;
    let root: PathBuf = to.join("store");
    let mut store = Store::open_local(&root)?;
    store.set_behind(Store::open(url)?, false)?;
    let seen = counted(store.behind().expect("just set"));
    let file: File = timed("pull, verified and stored", bytes, || {
        store.open_blob(&digest)
    })?;
    tell_travelled("pull", &seen);
    assert_eq!(file.metadata()?.len(), bytes);
    Ok(())
}
