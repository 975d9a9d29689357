//! Where NVRTC comes from, which compiles the GPU kernels: the dynamic linker's path, beside libtorch, this user's cache,
//! or the package index, in this order. Only tests need it on a machine without a GPU.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use crate::libtorch::{Libtorch, TAGS, cache_dir, python};
use crate::process::{Result, check};

const VERSION: &str = "13.0.88";
const LIBRARY: &str = "libnvrtc.so.13";

/// The wheel, by digest: the package index cannot hand us another file. 90 MB.
const WHEEL: &str = "\
nvidia-cuda-nvrtc==13.0.88 --hash=sha256:ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
";

/// Unpacks the libraries of the wheel argv[2] into the directory argv[1].
const UNPACK: &str = r#"
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[2]) as z:
    for name in z.namelist():
        if "/lib/lib" in name and ".alt." not in name:
            with open(os.path.join(sys.argv[1], os.path.basename(name)), "wb") as out:
                out.write(z.read(name))
"#;

/// `environment` of libtorch with the directory of NVRTC's libraries in the dynamic linker's path.
pub fn environment(torch: &Libtorch) -> Result<Vec<(&'static str, String)>> {
    let mut environment = torch.environment();
    for (key, value) in &mut environment {
        if *key != "LD_LIBRARY_PATH"
            || value
                .split(':')
                .any(|dir| PathBuf::from(dir).join(LIBRARY).exists())
        {
            continue;
        }
        let beside = torch.dir.join("../nvidia/cu13/lib");
        let dir = match beside.join(LIBRARY).exists() {
            true => beside,
            false => ensure()?,
        };
        *value = format!("{value}:{}", dir.display());
    }
    Ok(environment)
}

/// The cache's copy, fetched by the first call.
fn ensure() -> Result<PathBuf> {
    let base = cache_dir()?;
    let home = base.join(format!("nvrtc-{VERSION}"));
    if home.join(LIBRARY).exists() {
        return Ok(home);
    }
    let io = |e: std::io::Error| format!("failed to prepare {}: {e}", home.display());
    fs::create_dir_all(&base).map_err(io)?;
    let _lock = File::create(base.join("nvrtc.lock"))
        .and_then(|f| f.lock().map(|()| f))
        .map_err(io)?;
    if home.join(LIBRARY).exists() {
        return Ok(home);
    }
    eprintln!(
        "fetching NVRTC {VERSION} (90 MB) into {}; this is done once",
        home.display()
    );
    let part = base.join("nvrtc.part");
    if part.exists() {
        fs::remove_dir_all(&part).map_err(io)?;
    }
    let (wheels, libraries) = (part.join("wheels"), part.join("libraries"));
    fs::create_dir_all(&libraries).map_err(io)?;
    let list = part.join("wheels.txt");
    fs::write(&list, WHEEL).map_err(io)?;
    let mut pip = Command::new(python());
    pip.args(["-m", "pip", "download", "--disable-pip-version-check"])
        .args(TAGS)
        .args([
            "--platform=manylinux2010_x86_64",
            "--no-deps",
            "--require-hashes",
            "-r",
        ])
        .arg(list)
        .arg("--dest")
        .arg(&wheels)
        .stdout(std::io::stderr());
    check(&mut pip).map_err(|e| {
        format!("{e}; NVRTC comes from PyPI through python3's pip, or put a directory with {LIBRARY} into LD_LIBRARY_PATH")
    })?;
    let wheel = fs::read_dir(&wheels)
        .map_err(io)?
        .find_map(|e| Some(e.ok()?.path()))
        .ok_or("pip downloaded no wheel of NVRTC")?;
    check(
        Command::new(python())
            .args(["-c", UNPACK])
            .arg(&libraries)
            .arg(wheel),
    )?;
    fs::rename(&libraries, &home).map_err(io)?;
    fs::remove_dir_all(&part).map_err(io)?;
    Ok(home)
}
