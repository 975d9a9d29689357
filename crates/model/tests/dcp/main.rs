//! Distributed checkpoints of PyTorch: what torch saved converts, what we write reads back, and
//! what lies is refused. That torch loads what we write is `ci/fixtures/dcp_loads.py`'s to say.

use model::Error;
use model::convert::{Conversion, Format, Origin, convert};
use model::dcp::METADATA;
use model::files::{Dtype, ModelFiles};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::{TempDir, tempdir};

mod hostile;

type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(path)
}

fn model(name: &str) -> PathBuf {
    golden("models").join(name)
}

fn tensors(dir: &Path) -> Tensors {
    let files = ModelFiles::open(dir).unwrap();
    let names = files.names();
    let all = names.into_iter().map(|n| {
        let (e, bytes) = files.get(n).unwrap();
        (n.to_string(), e.dtype, e.shape.clone(), bytes.to_vec())
    });
    all.collect()
}

/// The tensors that a checkpoint becomes.
fn converted(weights: &Path, config: &Path, prefix: Option<&str>) -> Result<Tensors, Error> {
    let out = tempdir().unwrap();
    let origin = Origin {
        weights,
        config,
        prefix,
    };
    convert(origin, out.path(), Conversion::default())?;
    Ok(tensors(out.path()))
}

fn to(format: Format, dtype: Option<Dtype>) -> Conversion {
    Conversion {
        format,
        dtype,
        ..Conversion::default()
    }
}

/// A copy of a directory, with the companions of a model.
fn copy(from: &Path, model: &Path) -> TempDir {
    let out = tempdir().unwrap();
    for dir in [from, model] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if dir == from || name == "config.json" || name.starts_with("tokenizer") {
                fs::copy(&path, out.path().join(name)).unwrap();
            }
        }
    }
    out
}

#[test]
fn what_torch_saved_converts() {
    // on one rank, bf16
    let got = converted(&golden("dcp/one-rank"), &model("qwen3-bf16"), None).unwrap();
    assert_eq!(got, tensors(&model("qwen3-bf16")));
    // on two ranks, cut by rows and by columns, below `model.`, beside an optimizer's state
    let got = converted(&golden("dcp/two-ranks"), &model("llama-linear"), None).unwrap();
    assert_eq!(got, tensors(&model("llama-linear")));
    let said = converted(
        &golden("dcp/two-ranks"),
        &model("llama-linear"),
        Some("model."),
    );
    assert_eq!(said.unwrap(), got);
    // fp16, a tied matrix named twice: it is there once, as transformers saves it
    let got = converted(&golden("dcp/tied"), &model("qwen3-tied"), None).unwrap();
    let half = tempdir().unwrap();
    convert(
        Origin::of(&model("qwen3-tied")),
        half.path(),
        to(Format::Safetensors, Some(Dtype::F16)),
    )
    .unwrap();
    assert_eq!(got, tensors(half.path()));
}

#[test]
fn the_configuration_says_what_is_stored() {
    let dir = copy(&golden("dcp/tied"), &model("qwen3-tied"));
    let out = tempdir().unwrap();
    let config = convert(Origin::of(dir.path()), out.path(), Conversion::default())
        .unwrap()
        .config;
    assert_eq!(config.raw["dtype"], "float32");
    let text = fs::read_to_string(out.path().join("config.json")).unwrap();
    assert!(text.contains("\"dtype\": \"float16\""), "{text}");
    assert!(out.path().join("tokenizer.json").exists());
}

#[test]
fn what_is_written_reads_back() {
    for (name, dtype) in [
        ("qwen3-bf16", None),
        ("qwen3-tied", None),
        ("qwen3-tied", Some(Dtype::F16)),
        ("llama-bias-sharded", Some(Dtype::BF16)),
        ("llama-linear", Some(Dtype::F64)),
    ] {
        let (plain, one, many) = (tempdir().unwrap(), tempdir().unwrap(), tempdir().unwrap());
        let from = model(name);
        convert(
            Origin::of(&from),
            plain.path(),
            to(Format::Safetensors, dtype),
        )
        .unwrap();
        convert(Origin::of(&from), one.path(), to(Format::Dcp, dtype)).unwrap();
        let small = Conversion {
            max_shard_bytes: 20_000,
            ..to(Format::Dcp, dtype)
        };
        convert(Origin::of(&from), many.path(), small).unwrap();
        assert!(!one.path().join("__0_1.distcp").exists());
        assert!(many.path().join("__0_3.distcp").exists());
        let want = tensors(plain.path());
        for dir in [&one, &many] {
            assert_eq!(
                converted(dir.path(), dir.path(), None).unwrap(),
                want,
                "{name}"
            );
        }
        let again = tempdir().unwrap();
        convert(Origin::of(&from), again.path(), to(Format::Dcp, dtype)).unwrap();
        for file in [METADATA, "__0_0.distcp"] {
            let read = |d: &TempDir| fs::read(d.path().join(file)).unwrap();
            assert!(read(&again) == read(&one), "{name}: {file} has other bytes");
        }
    }
}

#[test]
fn a_tied_matrix_is_named_twice_and_stored_once() {
    let (tied, plain) = (tempdir().unwrap(), tempdir().unwrap());
    let from = model("qwen3-tied");
    convert(Origin::of(&from), tied.path(), to(Format::Dcp, None)).unwrap();
    convert(
        Origin::of(&from),
        plain.path(),
        to(Format::Safetensors, None),
    )
    .unwrap();
    let metadata = fs::read(tied.path().join(METADATA)).unwrap();
    assert!(metadata.windows(14).any(|w| w == b"lm_head.weight"));
    let size = |p: PathBuf| fs::metadata(p).unwrap().len();
    let embedding = 320 * 40 * 4;
    let overhead =
        size(tied.path().join("__0_0.distcp")) - size(plain.path().join("model.safetensors"));
    assert!(overhead < embedding, "{overhead}");
}

#[test]
fn directories_that_are_not_meant_are_refused() {
    let error = |from: Origin| {
        let out = tempdir().unwrap();
        let error = convert(from, out.path(), Conversion::default()).unwrap_err();
        assert!(error.is_bad_input(), "{error}");
        error.to_string()
    };
    let dir = copy(&golden("dcp/one-rank"), &model("qwen3-bf16"));
    fs::copy(
        model("qwen3-bf16").join("model.safetensors"),
        dir.path().join("model.safetensors"),
    )
    .unwrap();
    let text = error(Origin::of(dir.path()));
    assert!(text.contains("has both .metadata"), "{text}");
    let linear = model("llama-linear");
    let text = error(Origin {
        prefix: Some("model."),
        ..Origin::of(&linear)
    });
    assert!(text.contains("no distributed checkpoint"), "{text}");
    // the configuration of another model
    let text = error(Origin {
        weights: &golden("dcp/one-rank"),
        config: &linear,
        prefix: None,
    });
    assert!(
        text.contains("which a llama of this config.json does not have"),
        "{text}"
    );
    let text = error(Origin {
        weights: &golden("dcp/two-ranks"),
        config: &model("qwen3-bf16"),
        prefix: None,
    });
    assert!(
        text.contains("lacks 12 of the 33 parameters of config.json, 'model.model.layers.0."),
        "{text}"
    );
    // a checkpoint where a model is wanted
    let text = ModelFiles::open(&golden("dcp/one-rank"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("which a `convert` stage brings in"), "{text}");
}
