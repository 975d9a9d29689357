//! NVRTC, and what is kept of its work.

use kernels::cuda::Error;
use kernels::cuda::compile::{cubin, version};
use kernels::cuda::source::{ALL, File, SWIGLU};

/// A100, H100 and H200, B200.
const ARCHITECTURES: [u32; 3] = [80, 90, 100];

#[test]
fn all_kernels_compile_for_three_architectures() {
    version()
        .expect("`cargo xtask test` sets up NVRTC; for plain cargo: eval \"$(cargo xtask env)\"");
    // compiled again only when a source changes
    let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cubin");
    std::thread::scope(|threads| {
        for arch in ARCHITECTURES {
            let cache = &cache;
            threads.spawn(move || {
                for file in ALL {
                    let code = cubin(file, arch, Some(cache)).unwrap_or_else(|e| panic!("{e}"));
                    assert_eq!(&code[..4], b"\x7fELF", "{} for sm_{arch}", file.name);
                    for name in exports(file) {
                        let found = code.windows(name.len()).any(|w| w == name.as_bytes());
                        assert!(found, "{} for sm_{arch} has no kernel {name}", file.name);
                    }
                }
            });
        }
    });
}

/// Names of a source's kernels that are written out in it.
fn exports(file: &File) -> Vec<&str> {
    let names = file
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("EXPORT("));
    names.filter_map(|rest| rest.strip_suffix(")")).collect()
}

#[test]
fn compiled_code_is_kept_and_torn_code_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let code = cubin(&SWIGLU, 90, Some(dir.path())).unwrap();
    let files = || -> Vec<_> {
        std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect()
    };
    let [kept] = files().try_into().expect("one file");
    let written = std::fs::metadata(&kept).unwrap().modified().unwrap();
    assert_eq!(cubin(&SWIGLU, 90, Some(dir.path())).unwrap(), code);
    assert_eq!(
        std::fs::metadata(&kept).unwrap().modified().unwrap(),
        written
    );
    let whole = std::fs::read(&kept).unwrap();
    for torn in [&whole[..whole.len() / 2], &[][..], &[7; 100][..]] {
        std::fs::write(&kept, torn).unwrap();
        assert_eq!(cubin(&SWIGLU, 90, Some(dir.path())).unwrap(), code);
        assert_eq!(std::fs::read(&kept).unwrap(), whole);
    }
    // another architecture is another file
    cubin(&SWIGLU, 80, Some(dir.path())).unwrap();
    assert_eq!(files().len(), 2);
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(cubin(&SWIGLU, 90, Some(&file.path().join("below a file"))).is_ok());
}

#[test]
fn a_source_that_does_not_compile_says_where() {
    static WRONG: File = File {
        name: "wrong.cu",
        text: "#include \"common.cuh\"\nextern \"C\" __global__ void f() { return nothing; }\n",
    };
    match cubin(&WRONG, 90, None) {
        Err(Error::Compile {
            file: "wrong.cu",
            arch: 90,
            log,
        }) => {
            assert!(
                log.contains("wrong.cu(2)") && log.contains("nothing"),
                "{log}"
            );
        }
        other => panic!("{other:?}"),
    }
}
