//! How a step's time grows with ranks: the same SFT batch on one rank and on two, one thread each,
//! as ratios of one run. The gangs stand ready side by side and take turns, so that all of them see
//! the same hour of the machine.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use arch::Mesh;
use model::Weights;
use model::save::SaveOptions;
use serde_json::{Value, json};
use tch::{Device, Kind};
use train::loss::sft;
use train::{Groups, Policy, PolicyConfig, Unit};

use crate::Result;
use crate::measure::{Setup, load, median};
use crate::model::{self as tiny, LEARNING_RATE};
use crate::supervised;

const RANK: &str = "RECIPE_BENCH_RANK";
/// A quarter of the batch: a pipeline has something to fill itself with.
const MICROBATCH: usize = 512;

const ONE: Mesh = Mesh::solo();
const MESHES: [Mesh; 6] = [
    ONE,
    Mesh::replicated(2),
    Mesh { dp_shard: 2, ..ONE },
    Mesh { tp: 2, ..ONE },
    Mesh { cp: 2, ..ONE },
    Mesh { pp: 2, ..ONE },
];

/// The processes of one mesh.
struct Gang {
    mesh: Mesh,
    ranks: Vec<(Child, ChildStdin, BufReader<ChildStdout>)>,
    seconds: Vec<f64>,
    /// What all ranks sent in a step, by the collectives' own counters.
    bytes: u64,
}

/// One line: every mesh against one rank.
pub fn run(setup: &Setup) -> Result<Value> {
    if setup.device != Device::Cpu {
        return Ok(json!({ "skipped": "ranks share a GPU here only in tests" }));
    }
    let dir = tempfile::tempdir()?;
    let config = tiny::config()?;
    let weights = Weights::init(&config, 1, Kind::Float, Device::Cpu)?;
    weights.save(&config, dir.path(), SaveOptions::default())?;
    let mut gangs = MESHES
        .iter()
        .enumerate()
        .map(|(index, mesh)| Gang::start(index, *mesh, dir.path()))
        .collect::<Result<Vec<Gang>>>()?;
    let rounds = if setup.quick { 3 } else { 12 };
    for round in 0..=rounds {
        for gang in &mut gangs {
            let (seconds, bytes) = gang.step()?;
            // the first warms up
            if round > 0 {
                gang.seconds.push(seconds);
                gang.bytes = bytes;
            }
        }
    }
    let alone = median(&gangs[0].seconds);
    eprintln!(
        "{:12} {:>8} {:>10} {:>10}",
        "mesh", "ms", "of 1 rank", "KB sent"
    );
    let mut lines = Vec::new();
    for gang in gangs {
        let seconds = median(&gang.seconds);
        let (ratio, name) = (seconds / alone, gang.mesh.to_string());
        let kilobytes = gang.bytes as f64 / 1e3;
        eprintln!(
            "{name:12} {:8.1} {ratio:10.2} {kilobytes:10.0}",
            seconds * 1e3
        );
        lines.push(json!({
            "mesh": name,
            "ranks": gang.mesh.size(),
            "seconds_median": seconds,
            "seconds_best": gang.seconds.iter().copied().fold(f64::INFINITY, f64::min),
            "of_one_rank": ratio,
            "bytes": gang.bytes,
        }));
    }
    let work = supervised::work();
    Ok(json!({
        "dtype": "fp32", "threads_of_a_rank": 1, "microbatch_tokens": MICROBATCH, "rounds": rounds,
        "load": load(), "work": work, "meshes": lines,
    }))
}

impl Gang {
    fn start(index: usize, mesh: Mesh, dir: &Path) -> Result<Gang> {
        let port = parallel::free_port()?;
        let ranks = (0..mesh.size()).map(|rank| {
            let mut child = Command::new(std::env::current_exe()?)
                .arg(dir)
                .env(RANK, format!("{index} {rank} {port}"))
                .env("OMP_NUM_THREADS", "1")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
                return Err("a rank has no pipes".into());
            };
            Ok((child, to, BufReader::new(from)))
        });
        Ok(Gang {
            mesh,
            ranks: ranks.collect::<Result<_>>()?,
            seconds: Vec::new(),
            bytes: 0,
        })
    }

    /// Seconds of the slowest rank, and what all sent.
    fn step(&mut self) -> Result<(f64, u64)> {
        for (_, to, _) in &mut self.ranks {
            writeln!(to, "step")?;
        }
        let (mut slowest, mut bytes) = (0.0, 0);
        for (_, _, from) in &mut self.ranks {
            let mut line = String::new();
            from.read_line(&mut line)?;
            let (seconds, sent): (f64, u64) = serde_json::from_str(&line)?;
            slowest = f64::max(slowest, seconds);
            bytes += sent;
        }
        Ok((slowest, bytes))
    }
}

impl Drop for Gang {
    fn drop(&mut self) {
        for (child, to, _) in self.ranks.drain(..) {
            // no more lines: the rank ends
            drop(to);
            let mut child: Child = child;
            let _ = child.wait();
        }
    }
}

/// Whether this process is a rank; it has done its work then.
pub fn served() -> Option<Result<()>> {
    let place = std::env::var(RANK).ok()?;
    Some(serve(&place))
}

/// A rank: a step for each line that comes.
fn serve(place: &str) -> Result<()> {
    let place: Vec<usize> = place
        .split(' ')
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?;
    let (mesh, rank, port) = (MESHES[place[0]], place[1], place[2] as u16);
    let dir = std::env::args().nth(1).ok_or("no directory")?;
    torch::memory::keep();
    torch::threads::set(1);
    let deadline = Duration::from_secs(120);
    let groups = Groups::join(mesh, rank, "127.0.0.1", port, deadline, Device::Cpu)?;
    let config = PolicyConfig {
        microbatch_tokens: MICROBATCH,
        ..PolicyConfig::default()
    };
    let mut policy = Policy::load(Path::new(&dir), config, groups)?;
    let mut optimizer = tiny::optimizer();
    let units = supervised::units();
    let coefficient = sft::coefficient(units.iter().map(Unit::masked).sum());
    for line in std::io::stdin().lines() {
        line?;
        policy.groups().counts().reset();
        let start = Instant::now();
        policy.accumulate_known(&units, &|_, _, _| coefficient, None)?;
        policy.apply(&mut optimizer, LEARNING_RATE)?;
        let seconds = start.elapsed().as_secs_f64();
        let counts = policy.groups().counts().all();
        let bytes: u64 = counts.values().map(|count| count.bytes).sum();
        println!("{}", json!([seconds, bytes]));
    }
    Ok(())
}
