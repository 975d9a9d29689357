//! Every mesh trains as one process does: unclipped gradient norm, each gradient, loss curve under
//! SGD, metrics, log-probabilities. Real processes over Gloo on tiny models.
//!
//! `cargo test --test mesh` runs the meshes marked fast; with `RECIPE_MESH_TABLE` set
//! (`cargo xtask mesh`) all of them, and prints a table. Arguments choose meshes by name;
//! `RECIPE_MESH_RANKS` those of at most so many ranks; `RECIPE_MESH_DEVICE=cuda` has the ranks share one GPU.

#[allow(dead_code, reason = "shared with the other tests of the trainer")]
#[path = "../main/cases.rs"]
mod cases;
mod compare;
mod job;
mod meshes;
mod pool;
mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use cases::Algorithm;
use compare::Line;
use job::{Case, Job, Model, Seen};
use meshes::Row;
use model::save::SaveOptions;
use pool::{Answer, Pool};
use tch::Kind;

/// Ranks of the largest mesh.
const RANKS: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        println!("meshes: test");
        return ExitCode::SUCCESS;
    }
    let chosen: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let all = std::env::var_os("RECIPE_MESH_TABLE").is_some();
    let device = std::env::var("RECIPE_MESH_DEVICE").unwrap_or_else(|_| "cpu".into());
    let most = std::env::var("RECIPE_MESH_RANKS").map_or(RANKS, |n| n.parse().expect("a number"));
    let rows = meshes::rows().into_iter().filter(|row| {
        (all || row.fast)
            && row.axes.mesh().size() <= most
            && (chosen.is_empty() || chosen.iter().any(|c| row.name.contains(*c)))
    });
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        return ExitCode::SUCCESS;
    }
    let mut pool = Pool::fork(RANKS, job::run);
    let dir = tempfile::tempdir().expect("a directory");
    let mut table = Table {
        models: models(dir.path()),
        pool: &mut pool,
        solo: BTreeMap::new(),
        all,
        device,
    };
    let start = Instant::now();
    println!("{}", compare::HEADER);
    let bad: usize = rows.iter().map(|row| table.row(row)).sum();
    let seconds = start.elapsed().as_secs_f64();
    match bad {
        0 => println!(
            "mesh: {} meshes equal one process, {seconds:.0} s",
            rows.len()
        ),
        n => println!("mesh: {n} cases differ from one process, {seconds:.0} s"),
    }
    ExitCode::from(u8::from(bad > 0))
}

struct Table<'a> {
    models: BTreeMap<Model, PathBuf>,
    pool: &'a mut Pool,
    /// What one process gives.
    solo: BTreeMap<Case, Seen>,
    all: bool,
    device: String,
}

impl Table<'_> {
    /// Runs and prints the cases of a mesh; how many differ.
    fn row(&mut self, row: &Row) -> usize {
        let start = Instant::now();
        let cases = row.cases(self.all);
        let missing: Vec<Case> = cases
            .iter()
            .filter(|case| !self.solo.contains_key(case))
            .copied()
            .collect();
        if !missing.is_empty() {
            let mut seen = self.run(&meshes::solo(), &missing);
            let seen = seen.remove(0).expect("one process trains");
            self.solo.extend(missing.into_iter().zip(seen));
        }
        let answers = self.run(row, &cases);
        let mut bad = 0;
        for (i, case) in cases.iter().enumerate() {
            let ranks: Result<Vec<&Seen>, &String> = answers
                .iter()
                .map(|a| a.as_ref().map(|seen| &seen[i]))
                .collect();
            let line = match ranks {
                Ok(ranks) => {
                    let mut line = compare::compare(case, &ranks, &self.solo[case]);
                    // the formula's rows are those of single sequences
                    if case.algorithm == Algorithm::Sft && case.batch > 1 && !case.balances() {
                        let volumes = traffic::volumes(case, &row.axes.mesh(), &ranks);
                        line.add_volumes(&volumes);
                    }
                    line
                }
                Err(error) => Line::failed(error),
            };
            bad += usize::from(!line.good());
            println!("{}", line.text(row.name, case));
        }
        if self.all {
            eprintln!("{}: {:.1} s", row.name, start.elapsed().as_secs_f64());
        }
        bad
    }

    fn run(&mut self, row: &Row, cases: &[Case]) -> Vec<Answer<Vec<Seen>>> {
        let port = parallel::free_port().expect("a port");
        let jobs: Vec<Job> = (0..row.axes.mesh().size())
            .map(|rank| Job {
                rank,
                axes: row.axes,
                placement: row.placement,
                device: self.device.clone(),
                port,
                models: self.models.clone(),
                cases: cases.to_vec(),
            })
            .collect();
        self.pool.run(&jobs)
    }
}

/// Writes every model's directory.
fn models(dir: &Path) -> BTreeMap<Model, PathBuf> {
    let write = |model: Model| {
        let dir = dir.join(format!("{model:?}"));
        std::fs::create_dir(&dir).expect("made");
        let config = model.config();
        let weights = cases::weights(&config, Kind::Float);
        let written = weights.save(&config, &dir, SaveOptions::default());
        written.expect("written");
        (model, dir)
    };
    Model::ALL.into_iter().map(write).collect()
}
