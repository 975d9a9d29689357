//! What ci/gpu.sh measures of the product on a GPU, as JSON lines: `gpu sft|decode|grpo|agree DEVICE`.
//!
//! On `cuda` models have the shapes of Qwen3-0.6B (and, for `sft`, of Llama-3.1-8B with fewer layers) and random weights;
//! on `cpu` all is tiny: it shows that the program runs, and its figures mean nothing.

mod agree;
mod decode;
mod grpo;
mod setup;
mod sft;

use std::error::Error;
use std::process::ExitCode;

use setup::Setup;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "usage: gpu sft|decode|grpo|agree cuda|cpu";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [what, device] = &args[..] else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let run: fn(&Setup) -> Result<()> = match what.as_str() {
        "sft" => sft::run,
        "decode" => decode::run,
        "grpo" => grpo::run,
        "agree" => agree::run,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match Setup::new(device).and_then(|setup| run(&setup)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("gpu: {why}");
            ExitCode::FAILURE
        }
    }
}
