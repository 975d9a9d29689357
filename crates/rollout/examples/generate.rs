//! Prints the rate of generation as a JSON line: `cargo run --release -p rollout --example generate -- [fp32|bf16] [requests] [tokens] [threads]`.

use rollout::bench::{Load, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut load = Load::default();
    if args.first().is_some_and(|a| a == "bf16") {
        load.kind = tch::Kind::BFloat16;
    }
    if let Some(n) = args.get(1) {
        load.requests = n.parse()?;
    }
    if let Some(n) = args.get(2) {
        load.tokens = n.parse()?;
    }
    if let Some(n) = args.get(3) {
        load.threads = n.parse()?;
    }
    println!("{}", run(&load)?);
    Ok(())
}
