//! What is written is what was read.

use crate::support::{MODELS, dir};
use arch::{ExpertSizes, ModelConfig, Sizes};
use model::convert::{Conversion, Origin, convert};
use model::files::{Dtype, INDEX, ModelFiles, SINGLE};
use model::save::{COMPANIONS, SaveOptions};
use model::{Decoder, Weights};
use std::fs;
use std::path::Path;
use tch::{Device, Kind};

/// Name, element type, sizes and bytes of every tensor.
fn tensors(dir: &Path) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let files = ModelFiles::open(dir).unwrap();
    files
        .names()
        .into_iter()
        .map(|n| {
            let (e, bytes) = files.get(n).unwrap();
            (n.to_string(), e.dtype, e.shape.clone(), bytes.to_vec())
        })
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut out: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    out.sort();
    out
}

#[test]
fn converting_and_exporting_keep_every_byte() {
    for name in MODELS {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        convert(Origin::of(&dir(name)), a.path(), Conversion::default()).unwrap();
        let small = Conversion {
            max_shard_bytes: 30_000,
            ..Conversion::default()
        };
        convert(Origin::of(a.path()), b.path(), small).unwrap();
        let want = tensors(&dir(name));
        assert_eq!(tensors(a.path()), want, "{name}");
        assert_eq!(tensors(b.path()), want, "{name} in small files");
        assert!(a.path().join(SINGLE).exists() && !a.path().join(INDEX).exists());
        assert!(b.path().join(INDEX).exists() && !b.path().join(SINGLE).exists());
        for file in ["config.json"].iter().chain(COMPANIONS) {
            let read = |d: &Path| fs::read(d.join(file)).ok();
            assert_eq!(read(b.path()), read(&dir(name)), "{name} {file}");
        }
        // how the source was cut into files leaves no trace
        let again = tempfile::tempdir().unwrap();
        convert(Origin::of(b.path()), again.path(), Conversion::default()).unwrap();
        assert_eq!(
            fs::read(again.path().join(SINGLE)).unwrap(),
            fs::read(a.path().join(SINGLE)).unwrap()
        );
        assert_eq!(names(again.path()), names(a.path()));
    }
}

#[test]
fn loading_and_saving_keep_every_byte() {
    for name in MODELS {
        let config = ModelConfig::from_dir(&dir(name)).unwrap();
        let want = tensors(&dir(name));
        let kind = want[0].1.kind();
        let weights = Weights::load(&dir(name), &config, kind, Device::Cpu).unwrap();
        let out = tempfile::tempdir().unwrap();
        weights
            .save(&config, out.path(), SaveOptions::default())
            .unwrap();
        assert_eq!(tensors(out.path()), want, "{name}");
        assert_eq!(
            ModelConfig::from_dir(out.path()).unwrap().raw,
            config.raw,
            "{name}"
        );
    }
}

#[test]
fn another_dtype_only_when_asked() {
    let name = "qwen3-bf16";
    let (wide, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let to = |dtype| Conversion {
        dtype: Some(dtype),
        ..Conversion::default()
    };
    convert(Origin::of(&dir(name)), wide.path(), to(Dtype::F32)).unwrap();
    assert!(tensors(wide.path()).iter().all(|t| t.1 == Dtype::F32));
    let config = ModelConfig::from_dir(wide.path()).unwrap();
    assert_eq!(config.raw["dtype"], "float32");
    convert(Origin::of(wide.path()), back.path(), to(Dtype::BF16)).unwrap();
    assert_eq!(tensors(back.path()), tensors(&dir(name)));
}

#[test]
fn a_tied_matrix_written_out_is_kept_and_loads() {
    let source = dir("qwen3-tied");
    let config = ModelConfig::from_dir(&source).unwrap();
    let twice = tempfile::tempdir().unwrap();
    write_with_head(&source, twice.path(), |bytes| bytes);
    let weights = Weights::load(twice.path(), &config, Kind::Float, Device::Cpu).unwrap();
    assert_eq!(
        Decoder::new(config).lm_head_name(),
        "model.embed_tokens.weight"
    );
    assert!(!weights.names().iter().any(|n| n == "lm_head.weight"));
    let out = tempfile::tempdir().unwrap();
    convert(Origin::of(twice.path()), out.path(), Conversion::default()).unwrap();
    assert_eq!(tensors(out.path()), tensors(twice.path()));

    let other = tempfile::tempdir().unwrap();
    write_with_head(&source, other.path(), |mut bytes| {
        bytes[7] ^= 1;
        bytes
    });
    let error = convert(Origin::of(other.path()), out.path(), Conversion::default()).unwrap_err();
    assert!(
        error.to_string().contains("'lm_head.weight' differs"),
        "{error}"
    );
}

/// The source with an LM matrix made from the embedding's bytes.
fn write_with_head(source: &Path, to: &Path, change: impl Fn(Vec<u8>) -> Vec<u8>) {
    let mut all = tensors(source);
    let embed = all
        .iter()
        .find(|t| t.0 == "model.embed_tokens.weight")
        .unwrap();
    all.push((
        "lm_head.weight".into(),
        embed.1,
        embed.2.clone(),
        change(embed.3.clone()),
    ));
    let entries: Vec<_> = all
        .iter()
        .map(|t| model::files::Entry {
            name: t.0.clone(),
            dtype: t.1,
            shape: t.2.clone(),
        })
        .collect();
    model::files::write_model(to, &entries, u64::MAX, |i, out| {
        out.write_all(&all[i].3).unwrap();
        Ok(())
    })
    .unwrap();
    fs::copy(source.join("config.json"), to.join("config.json")).unwrap();
}

#[test]
fn fresh_weights_are_a_function_of_the_seed() {
    for family in arch::FAMILIES {
        let config = Sizes {
            model_type: family.model_type.into(),
            hidden_size: 48,
            intermediate_size: 96,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: Some(16),
            max_position_embeddings: 64,
            tie_word_embeddings: true,
            experts: family.expert_keys.map(|_| ExpertSizes {
                count: 4,
                per_token: 2,
                intermediate_size: 96,
            }),
            extra: serde_json::Map::new(),
        }
        .config(100, None, Some(1), None)
        .unwrap();
        let make = |seed| Weights::init(&config, seed, Kind::Float, Device::Cpu).unwrap();
        let (a, b, c) = (make(1), make(1), make(2));
        let w = "model.layers.1.self_attn.q_proj.weight";
        assert!(a.get(w).equal(b.get(w)));
        assert!(!a.get(w).equal(c.get(w)));
        assert!(
            !a.get(w)
                .equal(a.get("model.layers.0.self_attn.q_proj.weight"))
        );
        let std = a.get(w).std(false).double_value(&[]);
        assert!((std - 0.02).abs() < 0.001, "{std}");
        let norm = a.get("model.norm.weight");
        assert!(norm.equal(&norm.ones_like()));

        let out = tempfile::tempdir().unwrap();
        a.save(&config, out.path(), SaveOptions::default()).unwrap();
        let read = ModelConfig::from_dir(out.path()).unwrap();
        let back = Weights::load(out.path(), &read, Kind::Float, Device::Cpu).unwrap();
        for (name, tensor) in a.iter() {
            assert!(tensor.equal(back.get(name)), "{name}");
        }
    }
}

#[test]
fn copies_share_nothing() {
    let config = ModelConfig::from_dir(&dir("llama-linear")).unwrap();
    let weights = Weights::load(&dir("llama-linear"), &config, Kind::Float, Device::Cpu).unwrap();
    let copy = weights.copy_as(Kind::Float).unwrap();
    let name = "model.norm.weight";
    let _ = copy.get(name).shallow_clone().fill_(3.0);
    assert!(!weights.get(name).equal(copy.get(name)));
}
