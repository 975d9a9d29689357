//! `cargo recipe ..` and `cargo xtask ..`: what a checkout needs done before and around the product.
//!
//! Dependencies are kept to `serde_json`, so that the first command on a fresh machine starts soon.

mod arrows;
mod bench;
mod binaries;
mod fixtures;
mod libtorch;
mod mesh;
mod nvrtc;
mod pack;
mod process;
mod test;

use std::process::ExitCode;

use process::Result;

const HELP: &str = "\
usage: cargo xtask <command>

  recipe ARGS..       build both binaries if needed, then run `recipe ARGS..` (`cargo recipe` is short for it)
  build               fetch libtorch if needed and build `recipe` and `recipe-worker`
  test [FILTER..]     what CI runs: fmt, clippy, the crates' arrows, all tests, the README's recipe;
                      with FILTER only the tests whose names contain it
  bench [ARGS..]      the benchmarks, as JSON lines (`cargo xtask bench --help`)
  mesh [NAME..]       train on every mesh against one process and print the table; with NAME only
                      the meshes whose names contain it
  pack DIR            build what ci/gpu.sh runs on a machine without Rust, stripped, into DIR
  libtorch [--cuda]   fetch libtorch and print its directory; --cuda with the CUDA libraries
  env                 print the environment for plain cargo commands: eval \"$(cargo xtask env)\"
  fixtures [NAME..]   make the golden fixtures anew with the pinned oracles (models, losses, chat, dcp)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<ExitCode> {
    let Some((command, rest)) = args.split_first() else {
        eprint!("{HELP}");
        return Ok(ExitCode::from(2));
    };
    match command.as_str() {
        "recipe" => binaries::recipe(rest),
        "build" => binaries::build().map(|_| ExitCode::SUCCESS),
        "test" => test::run(rest),
        "bench" => bench::run(rest),
        "mesh" => mesh::run(rest),
        "pack" => pack::run(rest),
        "libtorch" => {
            let cuda = rest.iter().any(|a| a == "--cuda");
            println!("{}", libtorch::ensure(cuda)?.dir.display());
            Ok(ExitCode::SUCCESS)
        }
        "env" => {
            for (key, value) in nvrtc::environment(&libtorch::ensure(false)?)? {
                println!("export {key}='{value}'");
            }
            Ok(ExitCode::SUCCESS)
        }
        "fixtures" => fixtures::run(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => {
            eprintln!("xtask: unknown command '{other}'\n\n{HELP}");
            Ok(ExitCode::from(2))
        }
    }
}
