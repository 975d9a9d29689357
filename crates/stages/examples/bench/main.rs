//! Benchmarks of training and generation on a tiny Qwen3, one JSON line each:
//! `cargo xtask bench --help`.
//!
//! Rates of other machines and other hours do not compare, so every benchmark measures the peak of
//! libtorch's matrix product between its own repeats, and peers' recorded rates are scaled by the
//! ratio of the peaks.

mod args;
mod gemm;
mod generate;
mod measure;
mod model;
mod preference;
mod ranks;
mod reinforce;
mod supervised;

use std::error::Error;
use std::process::ExitCode;

use args::Args;
use measure::Setup;
use serde_json::Value;
use tch::Kind;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One benchmark: makes its line.
type Bench = fn(&Setup) -> Result<Value>;

/// Every benchmark by name, in the order in which they run.
static BENCHES: &[(&str, Bench)] = &[
    ("machine", measure::machine),
    ("gemm-fp32", |setup| gemm::run(setup, Kind::Float)),
    ("gemm-bf16", |setup| gemm::run(setup, Kind::BFloat16)),
    ("sft-fp32", |setup| supervised::run(setup, Kind::Float)),
    ("sft-bf16", |setup| supervised::run(setup, Kind::BFloat16)),
    ("dpo-fp32", |setup| preference::run(setup, Kind::Float)),
    ("grpo-fp32", |setup| reinforce::run(setup, Kind::Float)),
    ("grpo-bf16", |setup| reinforce::run(setup, Kind::BFloat16)),
    ("generate-fp32", |setup| generate::run(setup, Kind::Float)),
    ("generate-bf16", |setup| {
        generate::run(setup, Kind::BFloat16)
    }),
    ("mesh", ranks::run),
];

fn main() -> ExitCode {
    if let Some(served) = ranks::served() {
        return ended(served);
    }
    let names = BENCHES.iter().map(|(name, _)| *name);
    let args = match Args::parse(std::env::args().skip(1), names) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            return ExitCode::from(2);
        }
    };
    ended(benchmarks(&args))
}

fn ended(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}

fn benchmarks(args: &Args) -> Result<()> {
    let setup = Setup::new(args)?;
    for (name, bench) in BENCHES.iter().filter(|(name, _)| args.wants(name)) {
        let mut line = serde_json::json!({ "bench": name });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, bench(&setup)?) {
            line.extend(fields);
        }
        println!("{line}");
    }
    Ok(())
}
