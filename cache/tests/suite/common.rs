//! Stores of every sort, and a stage to run in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cache::{
    Backend, Claimed, Ingest, Key, Link, Liveness, Local, Published, Reason, Remote, ResultRecord,
    Store,
};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use tempfile::TempDir;

/// A place that several stores can be opened on, as several processes would.
pub struct Place {
    pub name: &'static str,
    pub backend: Arc<dyn Backend>,
    pub folder: TempDir,
}

impl Place {
    pub fn store(&self) -> Store {
        let mut store = Store::with_backend(self.backend.clone(), None).unwrap();
        store.set_ttl(Duration::from_millis(60));
        store
    }

    pub fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("store")
    }
}

/// A folder in memory where there is one: thousands of syncs are not what is tested.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

pub fn local() -> Place {
    let folder = folder();
    let backend = Arc::new(Local::open(&folder.path().join("store")).unwrap());
    Place {
        name: "local",
        backend,
        folder,
    }
}

pub fn memory() -> Place {
    let folder = folder();
    let store = Arc::new(InMemory::new());
    let backend = Arc::new(Remote::new("memory://", store, "some/prefix".into()));
    Place {
        name: "memory",
        backend,
        folder,
    }
}

pub fn files() -> Place {
    let folder = folder();
    let root = folder.path().join("store");
    std::fs::create_dir(&root).unwrap();
    let store = Arc::new(LocalFileSystem::new_with_prefix(&root).unwrap());
    let backend = Arc::new(Remote::new("files", store, "".into()));
    Place {
        name: "object_store's file system",
        backend,
        folder,
    }
}

/// The servers that ci/stores.sh started, if it did: `RECIPE_TEST_STORES` is a list of URLs.
pub fn servers() -> Vec<Place> {
    let urls = std::env::var("RECIPE_TEST_STORES").unwrap_or_default();
    let open = |url: &str| {
        let folder = folder();
        let unique = folder.path().file_name().unwrap().to_str().unwrap();
        let url = format!("{url}/{}", unique.trim_start_matches('.'));
        Place {
            name: "a server",
            backend: Arc::new(Remote::open(&url).unwrap()),
            folder,
        }
    };
    urls.split_whitespace().map(open).collect()
}

pub fn places() -> Vec<Place> {
    [local(), memory(), files()]
        .into_iter()
        .chain(servers())
        .collect()
}

/// Places that may lie behind a local store.
pub fn remotes() -> Vec<Place> {
    [memory(), files()].into_iter().chain(servers()).collect()
}

/// Makes a directory with these files.
pub fn fill(dir: &Path, files: &[(&str, &[u8])]) {
    for (path, bytes) in files {
        let at = dir.join(path);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, bytes).unwrap();
    }
}

/// All files below a directory.
pub fn read_dir(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(path).unwrap());
            }
        }
    }
    found
}

pub const DAY: Duration = Duration::from_secs(24 * 3600);

/// Makes everything below a folder look `age` old.
pub fn age(root: &Path, age: Duration) {
    for name in read_dir(root).keys() {
        let file = File::open(root.join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }
}

pub fn preimage(i: usize) -> String {
    format!("{{\"domain\":\"test\",\"i\":{i}}}")
}

pub fn key(i: usize) -> Key {
    Key::of(preimage(i).as_bytes())
}

/// What stage `i` makes.
pub fn content(i: usize) -> BTreeMap<String, Vec<u8>> {
    let text = format!("output of {i}");
    let files = [
        ("a.txt", text.as_bytes()),
        ("sub/b.bin", &[i as u8; 300]),
        ("same", b"same"),
    ];
    files
        .into_iter()
        .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
        .collect()
}

/// How a run of a stage ended: the attempt that counts, and whether it was computed here.
#[derive(Debug, PartialEq)]
pub struct Ran {
    pub attempt: u32,
    pub here: bool,
}

/// Runs stage `i` as a runner would: claim, wait, take over, repair, compute, publish.
pub fn run(store: &Store, i: usize, scratch: &Path) -> cache::Result<Ran> {
    let (key, owner) = (key(i), "test");
    let mut claimed = store.claim(&key, Reason::First, owner)?;
    loop {
        claimed = match claimed {
            Claimed::Claimed(claim) => {
                let record = compute(store, i, claim.attempt, scratch)?;
                match store.publish(&claim, &record)? {
                    Published::Published => {
                        return Ok(Ran {
                            attempt: claim.attempt,
                            here: true,
                        });
                    }
                    _ => store.claim(&key, Reason::First, owner)?,
                }
            }
            Claimed::Done { attempt, record } => {
                if store.artifact_intact(&record.outputs["out"])?.is_yes() {
                    return Ok(Ran {
                        attempt,
                        here: false,
                    });
                }
                store.repair(&key, attempt, owner)?
            }
            Claimed::Busy {
                attempt,
                owner: other,
            } => {
                let mut watch = store.watch(&key, attempt, &other);
                loop {
                    match watch.poll()? {
                        Liveness::Alive => std::thread::sleep(Duration::from_millis(2)),
                        Liveness::Ended => break store.claim(&key, Reason::First, owner)?,
                        Liveness::Dead { why } => {
                            break store.takeover(&key, attempt, &why, owner)?;
                        }
                    }
                }
            }
        }
    }
}

/// The work of a stage: two checkpoints on the way, and an output.
pub fn compute(store: &Store, i: usize, n: u32, scratch: &Path) -> cache::Result<ResultRecord> {
    let work = tempfile::tempdir_in(scratch).unwrap();
    for step in [1, 2] {
        let dir = work.path().join(format!("step{step}"));
        fill(
            &dir,
            &[("state", format!("state of {i} after {step}").as_bytes())],
        );
        store.commit_checkpoint(&key(i), n, step, &dir, Ingest::Move, step.into())?;
    }
    store.prune_checkpoints(&key(i), 1, &[])?;
    let out = work.path().join("out");
    for (name, bytes) in content(i) {
        fill(&out, &[(&name, &bytes)]);
    }
    let _keep = store.keep_blobs()?;
    let (artifact, _) = store.put_tree(&out, Ingest::Move)?;
    Ok(ResultRecord {
        preimage: preimage(i),
        outputs: [("out".to_owned(), artifact)].into(),
        ..Default::default()
    })
}

/// Fails unless the store serves what stage `i` makes.
pub fn check(store: &Store, i: usize, scratch: &Path) {
    let (_, record) = store.current(&key(i)).unwrap().expect("a result");
    let to = tempfile::tempdir_in(scratch).unwrap();
    let to = to.path().join("to");
    store
        .materialize(&record.outputs["out"], &to, Link::Reflink)
        .unwrap();
    assert_eq!(read_dir(&to), content(i));
}
