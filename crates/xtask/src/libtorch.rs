//! Where libtorch comes from: `LIBTORCH`, this user's cache, a Python torch of the right version,
//! or the package index, in this order. Nothing but the cache is written outside the checkout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Result, check, output, root};

const VERSION: &str = "2.11.0";

/// The wheels that a CPU build needs, by digest: the package index cannot hand us another file.
const WHEELS: &str = "\
torch==2.11.0 --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8
";

/// What pip must take whatever Python it runs on: only the C++ libraries inside matter.
pub const TAGS: [&str; 12] = [
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--abi=none",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_27_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
    "--platform=manylinux1_x86_64",
    "--platform=linux_x86_64",
    "--only-binary=:all:",
];

/// Unpacks wheels named in argv[2..] into argv[1]: libraries and headers only.
const UNPACK: &str = r#"
import sys, zipfile
for wheel in sys.argv[2:]:
    with zipfile.ZipFile(wheel) as z:
        names = [n for n in z.namelist() if n.startswith(("torch/lib/", "torch/include/", "nvidia/"))]
        z.extractall(sys.argv[1], names)
"#;

/// Prints the directory of an installed Python torch of the version in argv[1], without importing it.
const LOCATE: &str = r#"
import sys
from importlib import metadata
try:
    d = metadata.distribution("torch")
except metadata.PackageNotFoundError:
    sys.exit(0)
if d.version.split("+")[0] == sys.argv[1]:
    print(d.locate_file("torch"))
"#;

/// A libtorch directory with `lib` and `include`.
pub struct Libtorch {
    pub dir: PathBuf,
}

impl Libtorch {
    /// What builds and tests against it need.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let lib = self.dir.join("lib").display().to_string();
        let path = match std::env::var("LD_LIBRARY_PATH") {
            Ok(old) if !old.is_empty() && !old.split(':').any(|p| p == lib) => {
                format!("{lib}:{old}")
            }
            Ok(old) if !old.is_empty() => old,
            _ => lib,
        };
        vec![
            ("LIBTORCH", self.dir.display().to_string()),
            ("LD_LIBRARY_PATH", path),
        ]
    }
}

/// Finds libtorch or fetches it; with `cuda`, with the CUDA libraries that a GPU needs.
pub fn ensure(cuda: bool) -> Result<Libtorch> {
    if let Some(dir) = std::env::var_os("LIBTORCH").map(PathBuf::from) {
        verify(&dir).map_err(|e| format!("LIBTORCH names {}: {e}", dir.display()))?;
        return Ok(Libtorch { dir });
    }
    let cuda = cuda || Path::new("/dev/nvidiactl").exists();
    let base = cache_dir()?;
    let home = base.join(if cuda {
        format!("libtorch-{VERSION}-cuda")
    } else {
        format!("libtorch-{VERSION}")
    });
    if home.join("complete").exists() {
        return Ok(Libtorch {
            dir: home.join("torch"),
        });
    }
    if let Some(dir) = python_torch() {
        return Ok(Libtorch { dir });
    }
    fs::create_dir_all(&base).map_err(|e| format!("failed to create {}: {e}", base.display()))?;
    let lock = File::create(base.join("libtorch.lock"))
        .and_then(|f| f.lock().map(|()| f))
        .map_err(|e| format!("failed to lock {}: {e}", base.display()))?;
    if !home.join("complete").exists() {
        fetch(&home, cuda)?;
    }
    drop(lock);
    Ok(Libtorch {
        dir: home.join("torch"),
    })
}

fn fetch(home: &Path, cuda: bool) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" || std::env::consts::OS != "linux" {
        return Err(format!(
            "libtorch is fetched for x86-64 Linux only; set LIBTORCH to a libtorch {VERSION} directory (with lib and include)"
        ));
    }
    let part = home.with_file_name(format!("libtorch-{VERSION}.part"));
    let io = |e: std::io::Error| format!("failed to prepare {}: {e}", part.display());
    if part.exists() {
        fs::remove_dir_all(&part).map_err(io)?;
    }
    fs::create_dir_all(&part).map_err(io)?;
    eprintln!(
        "fetching libtorch {VERSION} ({}) into {}; this is done once",
        if cuda {
            "with CUDA, about 3.5 GB"
        } else {
            "540 MB"
        },
        home.display()
    );
    let wheels = part.join("wheels");
    let mut pip = Command::new(python());
    pip.args(["-m", "pip", "download", "--disable-pip-version-check"])
        .args(TAGS);
    if cuda {
        pip.arg(format!("torch=={VERSION}"));
    } else {
        let list = part.join("wheels.txt");
        fs::write(&list, WHEELS).map_err(io)?;
        pip.args(["--no-deps", "--require-hashes", "-r"]).arg(list);
    }
    // pip draws its progress on standard output, which belongs to the command that we serve.
    check(pip.arg("--dest").arg(&wheels).stdout(std::io::stderr()))
        .map_err(|e| format!("{e}; libtorch comes from PyPI through python3's pip, or set LIBTORCH to a libtorch {VERSION} directory"))?;
    eprintln!("unpacking libtorch");
    let files = fs::read_dir(&wheels)
        .map_err(io)?
        .filter_map(|e| Some(e.ok()?.path()));
    check(
        Command::new(python())
            .args(["-c", UNPACK])
            .arg(&part)
            .args(files),
    )?;
    verify(&part.join("torch"))?;
    fs::remove_dir_all(&wheels).map_err(io)?;
    fs::write(part.join("complete"), VERSION).map_err(io)?;
    if home.exists() {
        fs::remove_dir_all(home).map_err(io)?;
    }
    fs::rename(&part, home).map_err(io)
}

/// The right version, with libraries and headers.
fn verify(dir: &Path) -> Result<()> {
    let header = dir.join("include/torch/headeronly/version.h");
    let text = fs::read_to_string(&header)
        .map_err(|e| format!("no libtorch {VERSION} there: {}: {e}", header.display()))?;
    let number = |name: &str| {
        let key = format!("#define TORCH_VERSION_{name} ");
        text.lines()
            .find_map(|l| l.strip_prefix(&key))
            .map(str::trim)
            .unwrap_or("?")
            .to_owned()
    };
    let found = format!(
        "{}.{}.{}",
        number("MAJOR"),
        number("MINOR"),
        number("PATCH")
    );
    if found != VERSION {
        return Err(format!("libtorch {found} found, {VERSION} is needed"));
    }
    let library = dir.join("lib/libtorch_cpu.so");
    if !library.exists() {
        return Err(format!("{} is missing", library.display()));
    }
    Ok(())
}

fn python_torch() -> Option<PathBuf> {
    let mut command = Command::new(python());
    command
        .args(["-c", LOCATE, VERSION])
        .stderr(std::process::Stdio::null());
    let text = output(&mut command).ok()?;
    let dir = PathBuf::from(text.trim());
    (dir.is_absolute() && verify(&dir).is_ok()).then_some(dir)
}

pub fn python() -> &'static str {
    "python3"
}

/// `$XDG_CACHE_HOME/recipe` or `~/.cache/recipe`; without a home, inside the checkout.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    Ok(set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|h| h.join(".cache")))
        .map(|c| c.join("recipe"))
        .unwrap_or_else(|| root().join("target/cache")))
}
