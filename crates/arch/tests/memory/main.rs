//! The plan of memory against the slice tables, known counts, and itself.

use arch::fit::{Choice, Job, Machine, choose};
use arch::memory::{Keep, Load, Memory, Rollout, Table};
use arch::{Mesh, ModelConfig, held};
use std::path::Path;

fn config(name: &str) -> ModelConfig {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/plan/models");
    ModelConfig::from_dir(&dir.join(name)).unwrap()
}

const NAMES: [&str; 4] = [
    "qwen3-0.6b",
    "llama-3.1-8b",
    "qwen3-30b-a3b",
    "llama-3.3-70b",
];

fn load(keep: Keep) -> Load {
    Load {
        element: 2,
        rows: 8192,
        microbatches: 8,
        keep,
        head_chunk: 1024,
        moments: 2,
        reshard: true,
        offload: false,
        fused: true,
        rollout: None,
    }
}

fn mesh(dp_replicate: usize, dp_shard: usize, ep: usize, cp: usize, tp: usize, pp: usize) -> Mesh {
    Mesh {
        dp_replicate,
        dp_shard,
        ep,
        cp,
        tp,
        pp,
        ..Mesh::solo()
    }
}

#[test]
fn models_have_the_parameters_that_their_cards_say() {
    let counts = [596_049_920, 8_030_261_248, 30_532_122_624, 70_553_706_496];
    for (name, count) in NAMES.iter().zip(counts) {
        assert_eq!(config(name).param_count(), count, "{name}");
    }
}

#[test]
fn what_is_stored_is_what_the_slice_tables_say() {
    let meshes = [
        mesh(1, 1, 1, 1, 1, 1),
        mesh(2, 1, 1, 1, 1, 1),
        mesh(1, 3, 1, 1, 1, 1),
        mesh(1, 2, 1, 2, 2, 1),
        mesh(1, 2, 1, 1, 3, 2),
        mesh(1, 4, 1, 1, 8, 4),
    ];
    for name in ["qwen3-0.6b", "llama-3.1-8b"] {
        let config = config(name);
        let table = Table::new(&config);
        for mesh in meshes.iter().filter(|m| m.check(&config).is_ok()) {
            for stage in 0..mesh.pp {
                // the first rank of a stage, which has the larger parts
                let rank = stage * mesh.size() / mesh.pp;
                let all: usize = held(&config, mesh, rank)
                    .iter()
                    .map(|h| h.shard.numel())
                    .sum();
                let memory = table.memory(mesh, stage, &load(Keep::All));
                assert_eq!(
                    memory.parameters,
                    2 * all as u64,
                    "{name} on {mesh}, stage {stage}"
                );
                assert_eq!(memory.masters, 4 * all as u64);
                assert_eq!(memory.gradients, 4 * all as u64);
                assert_eq!(memory.optimizer, 8 * all as u64);
            }
        }
    }
}

#[test]
fn experts_are_shared_out_over_their_axis() {
    let config = config("qwen3-30b-a3b");
    let table = Table::new(&config);
    for mesh in [
        mesh(1, 1, 8, 1, 1, 1),
        mesh(1, 2, 4, 1, 1, 2),
        mesh(1, 2, 3, 1, 2, 1),
    ] {
        for stage in 0..mesh.pp {
            let rank = stage * mesh.size() / mesh.pp;
            let all: usize = held(&config, &mesh, rank)
                .iter()
                .map(|h| h.shard.numel())
                .sum();
            let memory = table.memory(&mesh, stage, &load(Keep::All));
            assert_eq!(memory.parameters, 2 * all as u64, "{mesh}, stage {stage}");
        }
    }
}

#[test]
fn each_axis_and_setting_saves_what_it_is_for() {
    let config = config("llama-3.1-8b");
    let table = Table::new(&config);
    let on = |mesh: Mesh, load: Load| table.worst(&mesh, &load);
    let base = on(Mesh::solo(), load(Keep::All));
    // 8.03e9 parameters x (2 + 4 + 4 + 8) bytes
    assert_eq!(base.state(), 18 * 8_030_261_248);

    let shard = on(mesh(1, 4, 1, 1, 1, 1), load(Keep::All));
    assert!(shard.state() * 100 <= base.state() * 26);
    assert_eq!(shard.activations, base.activations);
    assert!(shard.gathered > base.gathered);

    let tp = on(mesh(1, 1, 1, 1, 4, 1), load(Keep::All));
    assert!(tp.activations * 2 < base.activations && tp.logits * 3 < base.logits);
    let cp = on(mesh(1, 1, 1, 4, 1, 1), load(Keep::All));
    assert!(cp.activations * 100 <= base.activations * 26);
    // a quarter of the layers, four microbatches of them in flight: no less on the first stage
    let pp = on(mesh(1, 1, 1, 1, 1, 4), load(Keep::All));
    assert!(pp.state() * 100 <= base.state() * 32);

    let selective = on(Mesh::solo(), load(Keep::Selective)).activations;
    let full = on(Mesh::solo(), load(Keep::Boundaries)).activations;
    assert!(full * 4 < base.activations && full < selective && selective < base.activations);

    let offload = Load {
        offload: true,
        ..load(Keep::All)
    };
    let offload = on(Mesh::solo(), offload);
    assert_eq!(offload.host, base.masters + base.optimizer);
    assert_eq!(offload.peak(), base.peak() - offload.host);

    // in a step of one microbatch gradients come as activations go
    let one = Load {
        microbatches: 1,
        ..load(Keep::All)
    };
    let one = on(Mesh::solo(), one);
    assert!(one.peak() < base.peak() && one.peak() > base.state());

    let whole_logits = Load {
        head_chunk: 8192,
        ..load(Keep::All)
    };
    let more = on(Mesh::solo(), whole_logits).logits - base.logits;
    assert_eq!(more, 2 * 7 * 1024 * 128_256);
}

#[test]
fn a_rollout_needs_its_cache_and_its_own_weights() {
    let config = config("llama-3.1-8b");
    let table = Table::new(&config);
    let rollout = |tp| Load {
        rollout: Some(Rollout {
            tp,
            ep: 1,
            cache: 512 << 20,
            sequences: 256,
        }),
        ..load(Keep::Boundaries)
    };
    let own = table.worst(&mesh(1, 8, 1, 1, 1, 1), &rollout(1)).rollout;
    assert_eq!(own, (512 << 20) + 8 * 256 * 128_256 + 2 * 8_030_261_248);
    let shared = table.worst(&mesh(1, 8, 1, 1, 1, 1), &rollout(4)).rollout;
    assert!(shared < own / 2);
    // what is not sharded is not copied
    let none = table.worst(&mesh(8, 1, 1, 1, 1, 1), &rollout(1)).rollout;
    assert_eq!(none, (512 << 20) + 8 * 256 * 128_256);
    let same = table.worst(&mesh(2, 1, 1, 1, 4, 1), &rollout(4)).rollout;
    assert_eq!(same, none);
}

fn job(rows: usize) -> Job {
    Job {
        element: 2,
        rows,
        step_tokens: 1 << 20,
        sequence: 4096,
        head_chunk: 1024,
        moments: 2,
        offload: false,
        fused: true,
        rollout: None,
    }
}

fn machine(gpus: usize, gb: u64) -> Machine {
    Machine {
        gpus,
        bytes: gb * 1_000_000_000,
        node: 8,
    }
}

#[test]
fn what_is_chosen_fits_and_uses_every_gpu() {
    for name in NAMES {
        let config = config(name);
        let table = Table::new(&config);
        for (gpus, gb) in [
            (1, 76),
            (2, 76),
            (8, 76),
            (8, 137),
            (24, 76),
            (64, 76),
            (64, 137),
        ] {
            let machine = machine(gpus, gb);
            match choose(&table, &machine, &job(8192)) {
                Choice::Best(fit, _) => {
                    assert!(
                        fit.memory.peak() <= machine.bytes,
                        "{name} on {gpus} x {gb}"
                    );
                    assert_eq!(fit.mesh.size(), gpus);
                    fit.mesh.check(&config).unwrap();
                    let load = job(8192).load(&fit.mesh, fit.keep, (1, 1));
                    assert_eq!(fit.memory, table.worst(&fit.mesh, &load));
                }
                Choice::None(fit) => {
                    assert!(fit.memory.peak() > machine.bytes, "{name} on {gpus} x {gb}");
                }
            }
        }
    }
}

#[test]
fn more_memory_never_chooses_a_slower_step() {
    let config = config("llama-3.1-8b");
    let table = Table::new(&config);
    let mut before = f64::INFINITY;
    for gb in [40, 60, 80, 120, 200, 400] {
        if let Choice::Best(fit, _) = choose(&table, &machine(8, gb), &job(8192)) {
            assert!(fit.seconds <= before * 1.03, "{gb} GB: {}", fit.seconds);
            before = before.min(fit.seconds);
        }
    }
    assert!(before.is_finite());
}

#[test]
fn peak_counts_the_larger_of_training_and_rollout() {
    let memory = Memory {
        parameters: 1,
        masters: 2,
        gradients: 4,
        optimizer: 8,
        gathered: 16,
        activations: 32,
        logits: 64,
        rollout: 100,
        host: 10,
        working: 112,
    };
    assert_eq!(memory.peak(), 15 - 10 + 112);
    let long = Memory {
        rollout: 200,
        ..memory
    };
    assert_eq!(long.peak(), 15 - 10 + 200);
}
