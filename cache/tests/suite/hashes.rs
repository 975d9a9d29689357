//! The stat cache: quick when nothing changed, never wrong.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use cache::{Digest, FileId, HashCache, Store};

fn past_the_tick() {
    std::thread::sleep(Duration::from_millis(40));
}

fn id(path: &Path) -> FileId {
    FileId::of(&fs::metadata(path).unwrap())
}

#[test]
fn a_digest_is_kept_only_when_a_later_write_would_show() {
    let folder = tempfile::tempdir().unwrap();
    let (path, log) = (folder.path().join("f"), folder.path().join("hashes"));
    let cache = HashCache::new(Some(log.clone()));
    for i in 0..200u32 {
        // written, hashed and written again within a tick of the clock, of equal size
        fs::write(&path, i.to_le_bytes()).unwrap();
        assert_eq!(
            cache.digest(&path, false).unwrap().0,
            Digest::of(&i.to_le_bytes())
        );
        fs::write(&path, (!i).to_le_bytes()).unwrap();
        assert_eq!(
            cache.digest(&path, false).unwrap().0,
            Digest::of(&(!i).to_le_bytes())
        );
    }
    assert_eq!(cache.known(&id(&path)), None, "it is too young");
    past_the_tick();
    let (digest, _) = cache.digest(&path, false).unwrap();
    assert_eq!(cache.known(&id(&path)), Some(digest));
    cache.flush().unwrap();
    assert_eq!(HashCache::new(Some(log)).known(&id(&path)), Some(digest));
}

#[test]
fn a_write_with_mtime_set_back_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    fs::write(&path, b"right").unwrap();
    let cache = HashCache::new(None);
    past_the_tick();
    let (right, _) = cache.digest(&path, false).unwrap();
    let before: SystemTime = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"wrong").unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert_ne!(cache.digest(&path, false).unwrap().0, right);
}

#[test]
fn a_blob_written_at_once_after_its_put_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_local(&folder.path().join("store")).unwrap();
    for size in [10usize, 3 << 20] {
        let (source, bytes) = (folder.path().join("f"), vec![size as u8; size]);
        fs::write(&source, &bytes).unwrap();
        let digest = store.put_file(&source, cache::Ingest::Move).unwrap();
        let hex = digest.hex();
        let blob = folder
            .path()
            .join(format!("store/blobs/{}/{hex}", &hex[..2]));
        let before = fs::metadata(&blob).unwrap().modified().unwrap();
        let mut wrong = bytes.clone();
        wrong[5] ^= 1;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&blob, &wrong).unwrap();
        fs::File::options()
            .write(true)
            .open(&blob)
            .unwrap()
            .set_modified(before)
            .unwrap();
        assert!(store.open_blob(&digest).is_err(), "{size} bytes");
        assert_eq!(store.verify(false).unwrap().problems.len(), 1);
        fs::remove_file(&blob).unwrap();
    }
}

#[test]
fn a_torn_or_strange_log_costs_time_only() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("hashes");
    let paths: Vec<_> = (0..10)
        .map(|i| folder.path().join(format!("f{i}")))
        .collect();
    for (i, path) in paths.iter().enumerate() {
        fs::write(path, [i as u8]).unwrap();
    }
    past_the_tick();
    let learn = |paths: &[std::path::PathBuf]| {
        let cache = HashCache::new(Some(log.clone()));
        for path in paths {
            assert_eq!(
                cache.digest(path, false).unwrap().0,
                Digest::of(&fs::read(path).unwrap())
            );
        }
        cache.flush().unwrap();
    };
    let known = || {
        let cache = HashCache::new(Some(log.clone()));
        paths
            .iter()
            .filter(|path| cache.known(&id(path)).is_some())
            .count()
    };
    learn(&paths[..4]);
    assert_eq!(known(), 4);
    // a crash in the middle of a record, then more records
    let whole = fs::read(&log).unwrap();
    fs::write(&log, &whole[..whole.len() - 30]).unwrap();
    assert_eq!(known(), 3);
    learn(&paths[4..8]);
    assert_eq!(known(), 7);
    // a flipped bit
    let mut bytes = fs::read(&log).unwrap();
    bytes[88 + 50] ^= 4;
    fs::write(&log, &bytes).unwrap();
    assert_eq!(known(), 6);
    // something else altogether
    fs::write(&log, b"not a log").unwrap();
    assert_eq!(known(), 0);
    learn(&paths);
    assert_eq!(known(), 10);
}

#[test]
fn many_writers_lose_nothing_and_the_log_stays_small() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("hashes");
    let paths: Vec<_> = (0..40)
        .map(|i| folder.path().join(format!("f{i}")))
        .collect();
    for (i, path) in paths.iter().enumerate() {
        fs::write(path, [i as u8]).unwrap();
    }
    past_the_tick();
    std::thread::scope(|scope| {
        for chunk in paths.chunks(5) {
            let log = log.clone();
            scope.spawn(move || {
                for _ in 0..80 {
                    let cache = HashCache::new(Some(log.clone()));
                    for path in chunk {
                        cache.digest(path, true).unwrap();
                    }
                    cache.flush().unwrap();
                }
            });
        }
    });
    let cache = HashCache::new(Some(log.clone()));
    assert!(paths.iter().all(|path| cache.known(&id(path)).is_some()));
    let records = fs::metadata(&log).unwrap().len() / 88;
    assert!(records < 2500, "{records} records for 40 files");
}

#[test]
fn a_missing_file_is_an_error_with_its_name() {
    let error = HashCache::new(None)
        .digest(Path::new("/no/such/file"), false)
        .unwrap_err();
    assert!(error.to_string().contains("/no/such/file"), "{error}");
    assert_eq!(error.class(), cache::Class::Infra);
}
