//! `recipe-worker`: one rank of one attempt.
//!
//! `run --job FILE` runs a `JobSpec`; events go to stdout, logs to stderr. `identity` prints what
//! keys say of this build.

use std::path::Path;
use std::process::exit;

const USAGE: &str = "usage: recipe-worker run --job FILE | recipe-worker identity";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["run", "--job", file] => exit(stages::run(Path::new(file))),
        ["identity"] => match serde_json::to_string(&stages::identity()) {
            Ok(text) => println!("{text}"),
            Err(e) => {
                eprintln!("{e}");
                exit(spec::job::exit::FAILED);
            }
        },
        _ => {
            eprintln!("{USAGE}");
            exit(spec::job::exit::CONFIG);
        }
    }
}
