//! The command line.

const HELP: &str = "\
usage: bench [OPTIONS]

Benchmarks on a tiny Qwen3 (hidden 256, 6 layers, vocabulary 660), as JSON lines on standard output.

  --only NAME      only benchmarks whose name starts so; may be given several times
  --threads N      CPU threads [default: as many as libtorch takes]
  --device NAME    cpu or cuda [default: cpu]
  --peers [FILE]   compare with the rates that TRL and vLLM reach here: `cargo xtask bench` installs and
                   runs them before each benchmark, and hands their rates over in FILE
  --quick          fewer repeats: shows that it runs, not how fast
  --help           this text

Fields: `rate_median` and `rate_best` over `repeats`, in `unit`; `gemm_share` the share of the
matrix product's peak that the best repeat's model FLOPs reach, where that means something.
`peer_rate_facts` is what `peer` reached on another, quiet machine whose fp32 peak was
`peer_gemm_gflops`; `peer_rate_scaled` is that rate times (fp32 peak of this run / that peak).
`ratio` = rate_best / peer_rate_scaled, both bests of this run; `ratio_median` uses rate_median.
With --peers the peer's rates were measured just before on this machine: `peer_rate_best` and
`peer_rate_median`, and the ratios are best to best and median to median. `ratio_target` is what
`ratio` should reach on a quiet machine. Peers run on a CPU in fp32, so on CUDA there are no ratios.
`mesh` has its own fields: the same step on one rank and on two, one thread each, with the ratio of
their times.

Names: ";

/// What to run, and where.
pub struct Args {
    only: Vec<String>,
    pub threads: Option<usize>,
    pub device: String,
    pub quick: bool,
    /// What peers reached here: a file of JSON lines as `ci/peers.py` prints them.
    pub peers: Option<String>,
}

impl Args {
    /// `None` when only help was asked for. Refuses what it does not know.
    pub fn parse<'n>(
        given: impl Iterator<Item = String>,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<Option<Args>, String> {
        let names: Vec<&str> = names.collect();
        let mut args = Args {
            only: Vec::new(),
            threads: None,
            device: "cpu".into(),
            quick: false,
            peers: None,
        };
        let mut given = given;
        while let Some(word) = given.next() {
            let mut value = || given.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--help" | "-h" => {
                    println!("{HELP}{}", names.join(" "));
                    return Ok(None);
                }
                "--quick" => args.quick = true,
                "--device" => args.device = value()?,
                "--peers" => args.peers = Some(value()?),
                "--threads" => {
                    let text = value()?;
                    let count = text.parse().ok().filter(|n| *n > 0);
                    args.threads = Some(count.ok_or(format!("--threads {text}: give 1 or more"))?);
                }
                "--only" => {
                    let name = value()?;
                    if !names.iter().any(|known| known.starts_with(&name)) {
                        return Err(format!("no benchmark '{name}': use {}", names.join(", ")));
                    }
                    args.only.push(name);
                }
                _ => return Err(format!("unknown argument '{word}': see --help")),
            }
        }
        Ok(Some(args))
    }

    /// Whether this benchmark is to run.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| name.starts_with(only))
    }
}
