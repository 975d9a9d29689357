//! A rank that is silent, and ranks that do not call the same.

use std::time::{Duration, Instant};

use arch::Mesh;
use tch::{Device, Kind, Tensor};

use crate::ranks::{self, Rank};

const DEADLINE: Duration = Duration::from_secs(3);

fn mesh(dp_shard: usize) -> Mesh {
    Mesh {
        dp_shard,
        ..Mesh::solo()
    }
}

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

/// Rank 1 stops in the middle; the others must end by the deadline.
pub fn silent(rank: &Rank) {
    let groups = rank.join(0, mesh(3), DEADLINE).expect("on the mesh");
    let mut x = ones(&[8]);
    groups
        .world
        .all_reduce_sum(&mut x, "warm-up")
        .expect("all there");
    if rank.rank == 1 {
        // SAFETY: stops this process, as an operator's signal would.
        unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
    }
    let start = Instant::now();
    let error = groups.world.all_reduce_sum(&mut x, "gradient reduction");
    let error = error.expect_err("one is missing").to_string();
    rank.leave("silent", &(error, start.elapsed().as_secs_f64()));
}

/// Shapes that differ, in a phase's first call and in a later one.
pub fn different(rank: &Rank) {
    let groups = rank.join(0, mesh(2), DEADLINE).expect("on the mesh");
    let n = 3 + rank.rank as i64;
    let first = groups.world.all_reduce_sum(&mut ones(&[n]), "first");
    let first = first.expect_err("different").to_string();
    // the group is intact: nothing was exchanged but the shapes
    groups
        .world
        .all_reduce_sum(&mut ones(&[5]), "later")
        .expect("alike");
    let later = groups.world.all_reduce_sum(&mut ones(&[1000 * n]), "later");
    let later = later.expect_err("different").to_string();
    rank.leave("different", &(first, later));
}

#[test]
fn a_stopped_rank_ends_the_others_by_the_deadline_and_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut started = ranks::start("silent", 3, 1, dir.path());
    for rank in [0, 2] {
        assert!(started[rank].wait().expect("ended").success());
        let (error, seconds): (String, f64) = ranks::left(dir.path(), "silent", rank);
        assert!(error.contains("'gradient reduction'"), "{error}");
        assert!(error.contains("rank 1: no word from it"), "{error}");
        let limit = DEADLINE.as_secs_f64() + 4.0;
        assert!(seconds < limit, "{seconds} s: {error}");
        println!("rank {rank}, {seconds:.1} s: {error}");
    }
    started[1].kill().expect("killed");
    started[1].wait().expect("ended");
}

#[test]
fn different_shapes_are_an_error_with_both() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = Instant::now();
    ranks::finish(ranks::start("different", 2, 1, dir.path()));
    for rank in 0..2 {
        let (first, later): (String, String) = ranks::left(dir.path(), "different", rank);
        println!("{first}\n{later}");
        for shape in ["[3] Float", "[4] Float"] {
            assert!(first.contains(shape), "{first}");
        }
        for shape in ["[3000] Float", "[4000] Float"] {
            assert!(later.contains(shape), "{later}");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(30));
}
