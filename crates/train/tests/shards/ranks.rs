//! Starting ranks, and being one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::rc::Rc;
use std::time::Duration;

use arch::Mesh;
use tch::Device;
use train::Groups;

use crate::{checkpoints, failures, limited, state};

const TASK: &str = "RECIPE_TEST_TASK";

/// What a rank is told.
pub struct Rank {
    pub rank: usize,
    pub dir: PathBuf,
    ports: Vec<u16>,
}

impl Rank {
    /// Joins the `turn`-th mesh of this task, if this rank is on it.
    pub fn join(&self, turn: usize, mesh: Mesh, deadline: Duration) -> Option<Rc<Groups>> {
        if self.rank >= mesh.size() {
            return None;
        }
        let port = self.ports[turn];
        let groups = Groups::join(mesh, self.rank, "127.0.0.1", port, deadline, Device::Cpu);
        Some(groups.expect("joined"))
    }

    /// Leaves what this rank saw for the test.
    pub fn leave(&self, what: &str, seen: &impl serde::Serialize) {
        let path = self.dir.join(format!("{what}-{}.json", self.rank));
        let text = serde_json::to_vec(seen).expect("plain data");
        std::fs::write(path, text).expect("written");
    }
}

/// What a rank left.
pub fn left<T: serde::de::DeserializeOwned>(dir: &Path, what: &str, rank: usize) -> T {
    let path = dir.join(format!("{what}-{rank}.json"));
    let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).expect("plain data")
}

/// Not a test of its own: a rank, when started as one.
#[test]
fn rank() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let text = |name: &str| std::env::var(name).expect(name);
    let ports = text("PORTS");
    let rank = Rank {
        rank: text("RANK").parse().expect("a number"),
        dir: text("DIR").into(),
        ports: ports
            .split(',')
            .filter(|p| !p.is_empty())
            .map(|p| p.parse().expect("a port"))
            .collect(),
    };
    torch::threads::set(1);
    match task.as_str() {
        "state" => state::rank(&rank),
        "checkpoints" => checkpoints::rank(&rank),
        "silent" => failures::silent(&rank),
        "different" => failures::different(&rank),
        "limited" => limited::rank(&rank, false),
        "limited-alone" => limited::rank(&rank, true),
        other => panic!("no task '{other}'"),
    }
}

/// Starts ranks for a task that joins `turns` meshes.
pub fn start(task: &str, ranks: usize, turns: usize, dir: &Path) -> Vec<Child> {
    let ports: Vec<String> = (0..turns)
        .map(|_| parallel::free_port().expect("a port").to_string())
        .collect();
    (0..ranks)
        .map(|rank| {
            Command::new(std::env::current_exe().expect("this binary"))
                .args(["ranks::rank", "--exact", "--nocapture", "--test-threads=1"])
                .env(TASK, task)
                .env("DIR", dir)
                .env("RANK", rank.to_string())
                .env("PORTS", ports.join(","))
                // one heap: what a thread frees another can use, and the counts are exact
                .env("MALLOC_ARENA_MAX", "1")
                // naming the frames of a panic takes memory that a limited rank does not have
                .env("RUST_BACKTRACE", "0")
                .spawn()
                .expect("started")
        })
        .collect()
}

/// Waits for ranks that must all end well.
pub fn finish(ranks: Vec<Child>) {
    for mut rank in ranks {
        assert!(rank.wait().expect("ended").success());
    }
}
