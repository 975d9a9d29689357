//! Checkpoints that lie, are cut off or were tampered with: one clear error each, nothing run.

use crate::{Tensors, converted, copy, golden, model, tensors};
use model::Error;
use model::dcp::METADATA;
use model::dcp::metadata::Metadata;
use model::dcp::payload::Payload;
use std::fs;

/// A pickle of protocol 4 around some opcodes.
fn pickle(body: &[&[u8]]) -> Vec<u8> {
    [&[0x80, 4][..], &body.concat(), b"."].concat()
}

#[test]
fn pickles_that_would_run_something_do_not() {
    let marker = std::env::temp_dir().join(format!("recipe-pickle-{}", std::process::id()));
    let command = format!("touch {}", marker.display());
    let text = |t: &str| [b"X", &(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat();
    let cases = [
        (
            pickle(&[b"cos\nsystem\n", &text(&command), &[0x85], b"R"]),
            "it names 'os.system', which no distributed checkpoint",
        ),
        (
            pickle(&[
                &text("builtins"),
                &text("eval"),
                &[0x93],
                &text("1"),
                &[0x85],
                b"R",
            ]),
            "it names 'builtins.eval'",
        ),
        (
            pickle(&[b"ctorch\nload\n", &text("x"), &[0x85], b"R"]),
            "it names 'torch.load'",
        ),
        (pickle(&[b"cpathlib\nos\n"]), "it names 'pathlib.os'"),
        // opcodes that import or call by other ways
        (pickle(&[b"(ios\nsystem\n"]), "opcode 0x69"),
        (pickle(&[&[0x82, 1]]), "opcode 0x82"),
        (pickle(&[b"Px\n"]), "opcode 0x50"),
        (
            pickle(&[&[0x8c, 1, b'a', 0x8c, 1, b'b', b'R']]),
            "calls something that is no class",
        ),
        (pickle(&[b"h\x07"]), "nothing is memo 7"),
        (pickle(&[b"t"]), "there is no mark"),
        (pickle(&[&[0x87]]), "it takes more values than there are"),
        (pickle(&[b"N(0"]), "it takes more values than there are"),
        (pickle(&[b"Na"]), "more values than there are"),
        (pickle(&[b"NNa"]), "appends to something that is no list"),
        (pickle(&[b"}(Nu"]), "a key has no value"),
        (
            pickle(&[b"NNb"]),
            "sets the state of something that takes none",
        ),
        (pickle(&[&[0x8a, 200]]), "a number of 200 bytes"),
        (pickle(&[b"X\xff\xff\xff\xffa"]), "the file is truncated"),
        (pickle(&[b"X\x01\0\0\0\xff"]), "a text is invalid utf-8"),
        (pickle(&[b"cnever"]), "does not end"),
        (b"\x80\x04N".to_vec(), "the file is truncated"),
        (b"\x80\x09.".to_vec(), "protocol 9"),
        (b"".to_vec(), "the file is truncated"),
        (pickle(&[b"N"]), "is no checkpoint's Metadata"),
    ];
    for (bytes, want) in cases {
        let text = Metadata::read(&bytes).unwrap_err();
        assert!(text.contains(want), "{text}\nwanted: {want}");
    }
    assert!(!marker.exists());
}

/// The error of a changed checkpoint; tensors are no news worth printing.
fn error(file: &str, change: impl Fn(&mut Vec<u8>)) -> Error {
    match changed(file, change) {
        Err(error) => error,
        Ok(_) => panic!("a changed {file} converts"),
    }
}

/// The golden checkpoint of two ranks, changed, and what becomes of it.
fn changed(file: &str, change: impl Fn(&mut Vec<u8>)) -> Result<Tensors, Error> {
    let dir = copy(&golden("dcp/two-ranks"), &model("llama-linear"));
    let path = dir.path().join(file);
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    converted(dir.path(), dir.path(), None)
}

/// Replaces the first place where `from` stands.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
}

#[test]
fn checkpoints_that_lie_are_refused() {
    let metadata =
        |from: &'static [u8], to: &'static [u8]| error(METADATA, move |b| replace(b, from, to));
    let shard = "__1_0.distcp";
    let cases = [
        (metadata(b"__1_0.distcp", b"/etc/passwd\0"), "no file name"),
        (metadata(b"__1_0.distcp", b"../x/y/z/abc"), "no file name"),
        (
            metadata(b"__1_0.distcp", b"__7_0.distcp"),
            "__7_0.distcp: No such file",
        ),
        (metadata(b"float32", b"float99"), "'torch.float99'"),
        (metadata(b"chunks", b"chonks"), "has no chunks"),
        (
            metadata(b"storage_data", b"storage_dada"),
            "has no storage_data",
        ),
        // (72, 24) says it is (73, 24)
        (
            metadata(b"K\x24K\x18\x86", b"K\x25K\x18\x86"),
            "tensor 'model.model.",
        ),
        (error(shard, |b| b.truncate(b.len() / 2)), "it is truncated"),
        (error(shard, |b| b.clear()), "is"),
        (
            error(shard, |b| {
                for at in (0..b.len() - 4).filter(|i| *i % 7 == 0) {
                    b[at] ^= 1;
                }
            }),
            "the chunk of 'model.embed_tokens.weight' at [160, 0]",
        ),
    ];
    for (error, want) in cases {
        let text = error.to_string();
        assert!(text.contains(want), "{text}\nwanted: {want}");
        assert!(error.is_bad_input(), "{text}");
    }
}

#[test]
fn every_truncation_of_the_metadata_is_refused() {
    let bytes = fs::read(golden("dcp/two-ranks").join(METADATA)).unwrap();
    for n in 0..bytes.len() {
        assert!(Metadata::read(&bytes[..n]).is_err(), "{n} bytes");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_without_effect() {
    let bytes = fs::read(golden("dcp/two-ranks").join(METADATA)).unwrap();
    let plain = format!("{:?}", Metadata::read(&bytes).unwrap());
    let (mut refused, mut other) = (0, 0);
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        match Metadata::read(&bytes) {
            Err(_) => refused += 1,
            // names and places change: the conversion below has to find out
            Ok(m) if format!("{m:?}") != plain => other += 1,
            Ok(_) => {}
        }
    }
    assert!(
        refused > bytes.len() / 2,
        "{refused} refused, {other} read otherwise"
    );

    // some of each, to the end: an error or the right tensors, never wrong ones
    let want = tensors(&model("llama-linear"));
    for (file, step) in [(METADATA, 97), ("__0_0.distcp", 1511)] {
        let size = fs::metadata(golden("dcp/two-ranks").join(file))
            .unwrap()
            .len() as usize;
        for at in (0..size).step_by(step) {
            if let Ok(got) = changed(file, |b| b[at] ^= 4) {
                assert!(got == want, "byte {at} of {file}");
            }
        }
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let file = fs::read(golden("dcp/one-rank").join("__0_0.distcp")).unwrap();
    let metadata = fs::read(golden("dcp/one-rank").join(METADATA)).unwrap();
    let tensors = Metadata::read(&metadata).unwrap().tensors;
    let chunk = &tensors["model.norm.weight"].chunks[0];
    let good = &file[chunk.start as usize..(chunk.start + chunk.length) as usize];
    assert_eq!(Payload::read(good).unwrap().shape, [32]);
    for n in 0..good.len() {
        assert!(Payload::read(&good[..n]).is_err(), "{n} bytes");
    }
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.to_vec();
            bytes[at] ^= 1 << bit;
            // an error or a tensor, never a panic
            let _ = Payload::read(&bytes);
        }
    }
    let lies = |from: &[u8], to: &[u8]| {
        let mut bytes = good.to_vec();
        replace(&mut bytes, from, to);
        // with checksums that are true of it
        let sums = |bytes: &[u8]| {
            let files = model::dcp::zip::read(bytes).unwrap().into_iter();
            files
                .map(|f| (f.crc, crc32fast::hash(f.data)))
                .collect::<Vec<_>>()
        };
        for (said, is) in sums(&bytes) {
            for at in 0..bytes.len() - 4 {
                if bytes[at..at + 4] == said.to_le_bytes() {
                    bytes[at..at + 4].copy_from_slice(&is.to_le_bytes());
                }
            }
        }
        Payload::read(&bytes).unwrap_err()
    };
    let cases = [
        (
            lies(b"BFloat16Storage", b"BFloat99Storage"),
            "holds a BFloat99Storage",
        ),
        (
            lies(b"_rebuild_tensor_v2", b"_rebuild_parameter"),
            "something else than one dense",
        ),
        (
            lies(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
            "it names 'torch._utils._rebuild_tensor_v9'",
        ),
        // 32 elements become 33
        (lies(b"K\x20\x85", b"K\x21\x85"), "its storage has 64 bytes"),
        // a stride of 0
        (lies(b"K\x01\x85", b"K\x00\x85"), "elements share memory"),
        (lies(b"little", b"bigbig"), "big-endian"),
    ];
    for (text, want) in cases {
        assert!(text.contains(want), "{text}\nwanted: {want}");
    }
}
