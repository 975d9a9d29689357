//! Ranks that share a microbatch, over Gloo between processes, against one process: what the
//! engine gives, and the gradient of every parameter. The test binary starts itself as ranks.

mod cases;

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use arch::mesh::Mesh;
use arch::slice::{self, Held};
use parallel::{Groups, Inside};
use tch::{Device, Kind, Tensor};

use cases::{Case, Seen};

const OUT: &str = "RECIPE_TEST_INSIDE_OUT";
const MESH: &str = "RECIPE_TEST_INSIDE_MESH";

fn mesh(tp: usize, cp: usize, sp: bool) -> Mesh {
    Mesh {
        tp,
        cp,
        sp,
        ..Mesh::solo()
    }
}

/// What a rank adds to the whole gradient of a parameter, as the sharding table says.
fn part(held: &Held, grad: Option<&Tensor>, kind: Kind) -> Tensor {
    let sizes: Vec<i64> = held.def.shape.iter().map(|&n| n as i64).collect();
    let out = Tensor::zeros(&sizes, (kind, tch::Device::Cpu));
    // of ranks that all have the sum, one gives it
    let gives = held.owner || held.copies.tensor.len() > 1;
    if let (Some(grad), true) = (grad, gives) {
        let mut place = out.shallow_clone();
        for (dim, (&start, &size)) in held.local.start.iter().zip(&held.local.size).enumerate() {
            place = place.narrow(dim as i64, start as i64, size as i64);
        }
        place.copy_(grad);
    }
    out
}

fn run(case: &Case, groups: &Groups) -> Seen {
    let held = slice::held(&case.config, &groups.mesh, groups.rank);
    let inside = Inside::new(
        groups.cp.clone(),
        groups.tp.clone(),
        groups.mesh.sp,
        case.config.vocab_size,
    );
    let (own, output, grads) = case.run(&inside, &held, groups.tp.rank(), groups.tp.size());
    let mut all = Tensor::zeros(
        [case.kept(), output.size()[1]],
        (output.kind(), output.device()),
    );
    match own {
        None => all.copy_(&output),
        Some(own) => {
            let _ = all.index_copy_(0, &own, &output);
        }
    }
    groups.cp.all_reduce_sum(&mut all, "test").expect("a sum");
    let parts = held
        .iter()
        .map(|h| part(h, grads.get(&h.def.name).as_ref(), case.kind));
    let parts: Vec<Tensor> = parts.collect();
    let flat: Vec<Tensor> = parts.iter().map(|p| p.flatten(0, -1)).collect();
    let mut flat = Tensor::cat(&flat, 0);
    groups
        .world
        .all_reduce_sum(&mut flat, "test")
        .expect("a sum");
    let sizes: Vec<i64> = parts.iter().map(|p| p.numel() as i64).collect();
    let wholes = flat.split_with_sizes(&sizes, 0);
    Seen {
        output: cases::flat(&all),
        grads: held
            .iter()
            .zip(&wholes)
            .map(|(h, grad)| (h.def.name.clone(), cases::flat(grad)))
            .collect(),
    }
}

/// Not a test of its own: a rank, when started as one.
#[test]
fn rank() {
    let Ok(out) = std::env::var(OUT) else { return };
    torch::threads::set(1);
    let number = |name: &str| std::env::var(name).expect(name).parse::<u16>().expect(name);
    let rank = usize::from(number("RANK"));
    let text = std::env::var(MESH).expect(MESH);
    let sizes: Vec<usize> = text
        .split(',')
        .map(|n| n.parse().expect("a size"))
        .collect();
    let mesh = mesh(sizes[0], sizes[1], sizes[2] == 1);
    let deadline = Duration::from_secs(60);
    let groups = Groups::join(
        mesh,
        rank,
        "127.0.0.1",
        number("MASTER_PORT"),
        deadline,
        Device::Cpu,
    );
    let groups = groups.expect("joined");
    let seen: Vec<Seen> = cases::all(&mesh).iter().map(|c| run(c, &groups)).collect();
    let text = serde_json::to_vec(&seen).expect("plain data");
    std::fs::write(Path::new(&out).join(format!("{rank}.json")), text).expect("written");
    groups.world.barrier("end").expect("all there");
}

fn start(out: &Path, mesh: &Mesh, rank: usize, port: u16) -> Child {
    Command::new(std::env::current_exe().expect("this binary"))
        .args(["rank", "--exact", "--nocapture", "--test-threads=1"])
        .env(OUT, out)
        .env(
            MESH,
            format!("{},{},{}", mesh.tp, mesh.cp, u8::from(mesh.sp)),
        )
        .env("RANK", rank.to_string())
        .env("MASTER_PORT", port.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("started")
}

/// All cases of a mesh, on every rank, against one process.
fn equals_one_process(mesh: Mesh) {
    let dir = tempfile::tempdir().expect("a directory");
    let port = parallel::free_port().expect("a port");
    let ranks: Vec<Child> = (0..mesh.size())
        .map(|rank| start(dir.path(), &mesh, rank, port))
        .collect();
    let solo = Groups::solo();
    let cases = cases::all(&mesh);
    let want: Vec<Seen> = cases.iter().map(|case| run(case, &solo)).collect();
    for mut rank in ranks {
        assert!(rank.wait().expect("ended").success());
    }
    for rank in 0..mesh.size() {
        let text = std::fs::read(dir.path().join(format!("{rank}.json"))).expect("written");
        let seen: Vec<Seen> = serde_json::from_slice(&text).expect("plain data");
        assert_eq!(seen.len(), want.len());
        for ((case, seen), want) in cases.iter().zip(&seen).zip(&want) {
            case.compare(seen, want);
        }
    }
}

#[test]
fn two_tensor_ranks() {
    equals_one_process(mesh(2, 1, false));
}

#[test]
fn two_tensor_ranks_with_split_rows() {
    equals_one_process(mesh(2, 1, true));
}

#[test]
fn four_tensor_ranks_share_two_key_heads() {
    equals_one_process(mesh(4, 1, true));
}

#[test]
fn two_context_ranks() {
    equals_one_process(mesh(1, 2, true));
}

#[test]
fn four_context_ranks() {
    equals_one_process(mesh(1, 4, true));
}

#[test]
fn two_tensor_by_two_context_ranks() {
    equals_one_process(mesh(2, 2, false));
    equals_one_process(mesh(2, 2, true));
}
