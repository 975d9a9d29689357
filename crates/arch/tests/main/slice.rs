//! On any mesh, the slices of all ranks make up every parameter exactly, and copies agree.

use std::collections::BTreeMap;

use arch::mesh::{AXES, Axis, DENSE_SHARD, EXPERT_SHARD};
use arch::slice::{self, Held, Slice};
use arch::stages::{stages, stages_of};
use arch::{Mesh, ModelConfig, Shard, held};

fn config(heads: usize, kv_heads: usize, layers: usize, tied: bool) -> ModelConfig {
    let json = format!(
        r#"{{"model_type": "qwen3", "vocab_size": 61, "hidden_size": 12, "intermediate_size": 19,
        "num_hidden_layers": {layers}, "num_attention_heads": {heads}, "head_dim": 4,
        "num_key_value_heads": {kv_heads}, "max_position_embeddings": 64, "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": {tied}}}"#
    );
    ModelConfig::from_json(&json).expect("a good configuration")
}

/// Small numbers without a library.
struct Stream(u64);

impl Stream {
    fn below(&mut self, n: usize) -> usize {
        let mixed = self.0.wrapping_mul(6364136223846793005);
        self.0 = mixed.wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

fn all(config: &ModelConfig, mesh: &Mesh) -> Vec<Vec<Held>> {
    (0..mesh.size())
        .map(|rank| held(config, mesh, rank))
        .collect()
}

/// Counts how often each element of each parameter is covered by these slices.
fn coverage<'a>(
    slices: impl Iterator<Item = (&'a Held, &'a Slice)>,
) -> BTreeMap<String, Vec<usize>> {
    let mut out: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (held, slice) in slices {
        let shape = &held.def.shape;
        let counts = out
            .entry(held.def.name.clone())
            .or_insert_with(|| vec![0; held.def.numel()]);
        let columns = shape.get(1).copied().unwrap_or(1);
        let (c0, cn) = match slice.start.get(1) {
            Some(&start) => (start, slice.size[1]),
            None => (0, 1),
        };
        for row in slice.start[0]..slice.start[0] + slice.size[0] {
            for column in c0..c0 + cn {
                counts[row * columns + column] += 1;
            }
        }
    }
    out
}

fn check(config: &ModelConfig, mesh: &Mesh) {
    mesh.check(config).expect("a mesh that fits");
    let ranks = all(config, mesh);
    let owners = ranks.iter().flatten().filter(|h| h.owner);
    let covered = coverage(owners.map(|h| (h, &h.shard)));
    assert_eq!(covered.len(), config.params().len(), "{mesh}");
    for (name, counts) in &covered {
        assert!(counts.iter().all(|&n| n == 1), "{mesh}: {name}: {counts:?}");
    }
    for (rank, table) in ranks.iter().enumerate() {
        for h in table {
            let copies = &h.copies;
            assert!(copies.ranks.contains(&rank) && copies.tensor.contains(&rank));
            assert_eq!(h.owner, copies.ranks[0] == rank);
            for &other in &copies.ranks {
                let theirs = ranks[other].iter().find(|o| o.def.name == h.def.name);
                let theirs = theirs.expect("a copy holds the parameter");
                assert_eq!(theirs.shard, h.shard, "{mesh}: {}", h.def.name);
                assert_eq!(theirs.copies.ranks, copies.ranks);
            }
            for &other in copies.tensor.iter().chain(&copies.ends) {
                assert!(copies.ranks.contains(&other), "sums are over copies");
            }
            // the shards of the FSDP group make up what they compute with
            let axes = if h.def.expert.is_some() {
                EXPERT_SHARD
            } else {
                DENSE_SHARD
            };
            let mut row = h.local.start[0];
            for peer in mesh.group(rank, axes) {
                let theirs = ranks[peer].iter().find(|o| o.def.name == h.def.name);
                let theirs = theirs.expect("the group holds the parameter");
                assert_eq!(theirs.local, h.local);
                assert_eq!(
                    theirs.shard.start[0],
                    row.min(h.local.start[0] + h.local.size[0])
                );
                row += theirs.shard.size[0];
            }
            assert_eq!(row, h.local.start[0] + h.local.size[0]);
        }
    }
}

#[test]
fn the_ranks_of_random_meshes_tile_every_parameter() {
    let mut draw = Stream(11);
    let mut tried = 0;
    while tried < 400 {
        let (heads, kv) = draw.of(&[(4, 2), (3, 3), (6, 2), (8, 1), (6, 3), (5, 5)]);
        let config = config(heads, kv, 1 + draw.below(3), draw.below(2) == 0);
        let pp = draw.of(&[1, 1, 2, 3, 4]);
        let mesh = Mesh {
            dp_replicate: draw.of(&[1, 1, 2]),
            dp_shard: draw.of(&[1, 2, 3, 4, 7]),
            cp: draw.of(&[1, 1, 2]),
            tp: draw.of(&[1, 2, 3, 4]),
            pp,
            pp_chunks: if pp > 1 { draw.of(&[1, 2]) } else { 1 },
            sp: draw.below(2) == 0,
            ..Mesh::solo()
        };
        if mesh.check(&config).is_ok() {
            check(&config, &mesh);
            tried += 1;
        }
    }
}

#[test]
fn coordinates_and_groups_are_mixed_radix() {
    let mesh = Mesh {
        dp_replicate: 2,
        dp_shard: 3,
        cp: 2,
        tp: 2,
        pp: 2,
        ..Mesh::solo()
    };
    assert_eq!(mesh.size(), 48);
    for rank in 0..mesh.size() {
        assert_eq!(mesh.rank_of(&mesh.coord(rank)), rank);
        for axes in [
            &AXES[..],
            &[Axis::Tp],
            DENSE_SHARD,
            &[Axis::Pp, Axis::Replicate],
        ] {
            let group = mesh.group(rank, axes);
            assert!(group.windows(2).all(|w| w[0] < w[1]));
            let (place, size) = mesh.place(rank, axes);
            assert_eq!((group[place], group.len()), (rank, size));
        }
    }
    assert_eq!(mesh.group(0, &[Axis::Tp]), [0, 1], "tp counts fastest");
    assert_eq!(mesh.group(0, &[Axis::Pp]), [0, 24], "pp slowest");
    assert_eq!(mesh.data_size(), 6);
    assert_eq!(mesh.data_index(47), 5);
    assert_eq!(
        mesh.to_string(),
        "pp2 x dp_replicate2 x dp_shard3 x cp2 x tp2"
    );
    assert_eq!(Mesh::solo().to_string(), "solo");
}

#[test]
fn one_rank_holds_everything_whole() {
    let config = config(4, 2, 2, true);
    let table = held(&config, &Mesh::solo(), 0);
    assert_eq!(table.len(), config.params().len());
    for (h, def) in table.iter().zip(config.params()) {
        assert_eq!((&h.def, &h.local), (&def, &Slice::whole(&def.shape)));
        assert_eq!(h.shard, h.local);
        assert!(h.owner);
    }
}

#[test]
fn query_heads_follow_their_key_and_value_heads() {
    // 3 heads on 2 ranks: 2 + 1
    let three = config(3, 3, 1, false);
    let sizes: Vec<_> = (0..2).map(|i| slice::heads(&three, 2, i)).collect();
    assert_eq!((sizes[0].q.clone(), sizes[1].q.clone()), (0..2, 2..3));
    assert_eq!((sizes[0].kv.clone(), sizes[1].kv.clone()), (0..2, 2..3));
    // 2 key and value heads on 4 ranks: two ranks share each
    let four = config(4, 2, 1, false);
    let all: Vec<_> = (0..4).map(|i| slice::heads(&four, 4, i)).collect();
    assert_eq!(all[1].q, 1..2);
    assert_eq!((all[1].kv.clone(), all[2].kv.clone()), (0..1, 1..2));
    assert_eq!(
        (all[1].sharers.clone(), all[3].sharers.clone()),
        (0..2, 2..4)
    );
    let mesh = Mesh {
        tp: 4,
        ..Mesh::solo()
    };
    let table = held(&four, &mesh, 3);
    let k = table
        .iter()
        .find(|h| h.def.shard == Shard::KvHeads)
        .expect("keys");
    assert_eq!(
        (&k.copies.ranks[..], &k.copies.tensor[..]),
        (&[2, 3][..], &[2, 3][..])
    );
    assert!(!k.owner);
    assert_eq!((k.local.start[0], k.local.size[0]), (4, 4));
    let o = table
        .iter()
        .find(|h| h.def.name.ends_with("o_proj.weight"))
        .expect("output");
    assert_eq!(
        (&o.local.start[..], &o.local.size[..]),
        (&[0, 12][..], &[12, 4][..])
    );
}

#[test]
fn what_is_summed_over_tp_depends_on_where_it_is_applied() {
    let config = config(4, 2, 1, false);
    let sums = |sp: bool, part: &str| {
        let mesh = Mesh {
            tp: 2,
            sp,
            ..Mesh::solo()
        };
        let table = held(&config, &mesh, 0);
        let h = table
            .iter()
            .find(|h| h.def.name.contains(part))
            .expect(part);
        (h.copies.ranks.len(), h.copies.tensor.len())
    };
    assert_eq!(sums(true, "input_layernorm"), (2, 2));
    assert_eq!(sums(false, "input_layernorm"), (2, 1));
    assert_eq!(sums(false, "q_norm"), (2, 2));
    assert_eq!(sums(true, "q_proj"), (1, 1));
}

#[test]
fn a_tied_embedding_lies_on_both_ends_of_the_pipeline() {
    let config = config(4, 2, 2, true);
    let mesh = Mesh {
        pp: 3,
        dp_shard: 2,
        ..Mesh::solo()
    };
    let ranks = all(&config, &mesh);
    let embed = |rank: usize| {
        ranks[rank]
            .iter()
            .find(|h| h.def.name == arch::params::EMBED)
    };
    assert!(embed(2).is_none() && embed(3).is_none());
    let (first, last) = (
        embed(1).expect("first stage"),
        embed(5).expect("last stage"),
    );
    assert_eq!(
        (&first.copies.ends[..], &last.copies.ends[..]),
        (&[1, 5][..], &[1, 5][..])
    );
    assert!(first.owner && !last.owner);
    check(&config, &mesh);
}

#[test]
fn stages_are_contiguous_balanced_and_complete() {
    let config = config(4, 2, 7, false);
    for (pp, chunks) in [(1, 1), (2, 1), (2, 2), (4, 1), (4, 3), (16, 1)] {
        let cut = stages(&config, pp, chunks);
        assert_eq!(cut.len(), pp * chunks);
        assert_eq!(
            (cut[0].start, cut[cut.len() - 1].end),
            (0, config.segment_count())
        );
        assert!(
            cut.windows(2)
                .all(|w| w[0].end == w[1].start && !w[0].is_empty())
        );
        assert_eq!(stages_of(&config, pp, chunks, pp - 1).last(), cut.last());
    }
    // a vocabulary that outweighs the layers leaves the last stage little else
    let wide = ModelConfig::from_json(
        r#"{"model_type": "llama", "vocab_size": 100000, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6}"#,
    )
    .expect("a good configuration");
    let cut = stages(&wide, 2, 1);
    assert_eq!(cut[1], 9..10, "only the norm and the head");
}

#[test]
fn torch_chunks_round_up_and_even_parts_differ_by_one() {
    let sizes = |f: fn(usize, usize, usize) -> std::ops::Range<usize>, n, parts| {
        (0..parts).map(|i| f(n, parts, i).len()).collect::<Vec<_>>()
    };
    assert_eq!(sizes(slice::chunk, 10, 4), [3, 3, 3, 1]);
    assert_eq!(sizes(slice::chunk, 5, 4), [2, 2, 1, 0]);
    assert_eq!(sizes(slice::even, 10, 4), [3, 3, 2, 2]);
    assert_eq!(sizes(slice::even, 2, 3), [1, 1, 0]);
}

#[test]
fn slices_intersect() {
    let a = Slice {
        start: vec![2, 0],
        size: vec![4, 8],
    };
    let b = Slice {
        start: vec![4, 3],
        size: vec![9, 2],
    };
    let both = a.overlap(&b).expect("they meet");
    assert_eq!(
        (&both.start[..], &both.size[..]),
        (&[4, 3][..], &[2, 2][..])
    );
    assert_eq!(both.within(&a).start, [2, 3]);
    let apart = Slice {
        start: vec![6, 0],
        size: vec![1, 1],
    };
    assert!(a.overlap(&apart).is_none());
}

#[test]
fn meshes_that_cannot_carry_the_model_are_refused_with_what_would_do() {
    let config = config(6, 3, 1, false);
    let says = |mesh: Mesh| mesh.check(&config).expect_err("refused").to_string();
    assert_eq!(
        says(Mesh {
            tp: 8,
            ..Mesh::solo()
        }),
        "mesh.tp = 8, but the model has 6 query heads and a head is not cut; use 6 or fewer"
    );
    assert_eq!(
        says(Mesh {
            tp: 4,
            ..Mesh::solo()
        }),
        "mesh.tp = 4, but 3 key and value heads cannot be shared evenly by more ranks than that; use 3 or fewer, or a multiple of 3"
    );
    assert_eq!(
        says(Mesh {
            ep: 2,
            ..Mesh::solo()
        }),
        "mesh.ep = 2, but the model has no experts; use 1"
    );
    assert_eq!(
        says(Mesh {
            pp: 3,
            pp_chunks: 2,
            ..Mesh::solo()
        }),
        "mesh.pp = 3, but 2 pieces on each rank make 6, and the model has 4 segments; use 2 or fewer"
    );
    assert!(
        says(Mesh {
            pp_chunks: 2,
            ..Mesh::solo()
        })
        .contains("raise pp")
    );
    assert!(
        says(Mesh {
            cp: 0,
            ..Mesh::solo()
        })
        .starts_with("mesh.cp = 0, but")
    );
}
