//! Bad model directories: one clear error each, with the file and the tensor.

use crate::support::dir;
use arch::ModelConfig;
use model::files::{INDEX, ModelFiles, SINGLE, TensorFile};
use model::{Error, Weights};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tch::{Device, Kind};

fn file(header: &[u8], claimed: u64, data: &[u8]) -> Vec<u8> {
    [&claimed.to_le_bytes()[..], header, data].concat()
}

fn with_header(header: &Value, data: usize) -> Vec<u8> {
    let text = header.to_string();
    file(text.as_bytes(), text.len() as u64, &vec![0; data])
}

fn tensor(shape: &[u64], offsets: &[u64]) -> Value {
    json!({"dtype": "F32", "shape": shape, "data_offsets": offsets})
}

#[test]
fn files_that_lie_are_refused() {
    let good = tensor(&[2, 3], &[0, 24]);
    let cases = [
        (vec![1, 2, 3], "is 3 bytes, too short"),
        (
            file(b"{}", 1 << 40, b""),
            "says its header is 1099511627776 bytes",
        ),
        (file(b"[1]", 3, b""), "not a JSON object"),
        (file(b"{\"a\"", 4, b""), "not a JSON object"),
        (
            with_header(&json!({"a": good}), 23),
            "tensor 'a' says it ends at byte 24 of 23",
        ),
        (
            with_header(&json!({"a": good}), 30),
            "6 bytes of no tensor at the end",
        ),
        (
            with_header(&json!({"a": tensor(&[2, 4], &[0, 24])}), 24),
            "tensor 'a' says it is [2, 4] F32 (32 bytes), but has bytes 0..24",
        ),
        (
            with_header(&json!({"a": good, "b": tensor(&[1], &[20, 24])}), 24),
            "tensor 'b' overlaps 'a'",
        ),
        (
            with_header(&json!({"a": good, "b": tensor(&[1], &[28, 32])}), 32),
            "4 bytes of no tensor before 'b'",
        ),
        (
            with_header(&json!({"a": tensor(&[1 << 40, 1 << 40], &[0, 24])}), 24),
            "more than memory can address",
        ),
        (
            with_header(&json!({"a": tensor(&[2, 3], &[24, 0])}), 24),
            "has bytes 24..0",
        ),
        (
            with_header(
                &json!({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}),
                1,
            ),
            "tensor 'a' has dtype 'F8_E4M3'; known: F64, F32, F16, BF16",
        ),
        (
            with_header(
                &json!({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 1]}}),
                1,
            ),
            "tensor 'a' has shape [-1], not a list of sizes",
        ),
        (with_header(&json!({"a": {}}), 0), "tensor 'a' has no dtype"),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (bytes, want) in cases {
        let path = dir.path().join("x.safetensors");
        fs::write(&path, bytes).unwrap();
        let error = TensorFile::open(&path).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want), "{text}\nwanted: {want}");
        assert!(text.contains("x.safetensors"), "{text}");
        assert!(error.is_bad_input());
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = fs::read(dir("llama-linear").join(SINGLE)).unwrap();
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join(SINGLE);
    for part in [0, 1, 8, 9, 500, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..part]).unwrap();
        assert!(ModelFiles::open(out.path()).is_err(), "{part} bytes");
    }
}

fn load(dir: &Path) -> Result<Weights, Error> {
    let config = ModelConfig::from_dir(dir)?;
    Weights::load(dir, &config, Kind::Float, Device::Cpu)
}

/// A copy of a fixture with its configuration changed.
fn changed(name: &str, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, out.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = out.path().join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    out
}

type Change = fn(&mut Value);

#[test]
fn weights_that_do_not_fit_are_named() {
    let cases: [(&str, Change, &str); 6] = [
        (
            "llama-linear",
            |c| c["num_hidden_layers"] = 3.into(),
            "the weights lack 'model.layers.2.input_layernorm.weight'",
        ),
        (
            "llama-linear",
            |c| c["num_hidden_layers"] = 1.into(),
            "the weights hold 'model.layers.1.input_layernorm.weight'",
        ),
        (
            "llama-linear",
            |c| c["intermediate_size"] = 44.into(),
            "tensor 'model.layers.0.mlp.gate_proj.weight' is [40, 24], but config.json makes it [44, 24]",
        ),
        (
            "llama-bias-sharded",
            |c| c["mlp_bias"] = false.into(),
            "mlp.down_proj.bias'",
        ),
        (
            "qwen3-tied",
            |c| c["tie_word_embeddings"] = false.into(),
            "config.json must set tie_word_embeddings",
        ),
        (
            "llama-linear",
            |c| c["tie_word_embeddings"] = true.into(),
            "'lm_head.weight' differs from 'model.embed_tokens.weight'",
        ),
    ];
    for (name, change, want) in cases {
        let out = changed(name, change);
        let error = load(out.path()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}\nwanted: {want}");
    }
}

#[test]
fn indexes_that_lie_are_refused() {
    let name = "llama-bias-sharded";
    let index = |change: &dyn Fn(&mut Value)| {
        let out = changed(name, |_| {});
        let path = out.path().join(INDEX);
        let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        let text = load(out.path()).unwrap_err().to_string();
        drop(out);
        text
    };
    let moved = index(&|j| {
        j["weight_map"]["model.norm.weight"] = "model-00001-of-00004.safetensors".into();
    });
    assert!(
        moved.contains("places tensor 'model.norm.weight' in model-00001"),
        "{moved}"
    );
    let outside = index(&|j| j["weight_map"]["model.norm.weight"] = "../x".into());
    assert!(outside.contains("not a file name"), "{outside}");
    let absent = index(&|j| {
        j["weight_map"]["model.norm.weight"] = "model-00009-of-00004.safetensors".into();
    });
    assert!(
        absent.contains("model-00009-of-00004.safetensors"),
        "{absent}"
    );
    let dropped = index(&|j| {
        j["weight_map"]
            .as_object_mut()
            .unwrap()
            .remove("model.norm.weight");
    });
    assert!(
        dropped.contains("holds tensor 'model.norm.weight'"),
        "{dropped}"
    );
    let empty = index(&|j| *j = json!({}));
    assert!(empty.contains("has no weight_map"), "{empty}");
}

#[test]
fn a_directory_without_weights_says_what_it_wants() {
    let out = tempfile::tempdir().unwrap();
    let none = ModelFiles::open(out.path()).unwrap_err().to_string();
    assert!(none.contains("has neither model.safetensors nor"), "{none}");
    fs::write(out.path().join("pytorch_model.bin"), b"x").unwrap();
    let pickled = ModelFiles::open(out.path()).unwrap_err().to_string();
    assert!(
        pickled.contains("pickled weights are not read"),
        "{pickled}"
    );
}
