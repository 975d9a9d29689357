//! Repeats, peaks, and the fields that every benchmark's line has.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use serde_json::{Value, json};
use tch::{Device, Kind};
use train::Meter;

use crate::Result;
use crate::args::Args;

/// fp32 peak in GFLOP/s of the machine that peers were measured on, while it was quiet.
const PEER_PEAK: f64 = 197.0;

/// What all benchmarks are given.
pub struct Setup {
    pub device: Device,
    pub quick: bool,
    /// What peers reached on this machine, by their names in `ci/peers.py`.
    peers: HashMap<String, Value>,
}

/// A rate that someone else's program reached on the same work, on a CPU, in fp32.
pub struct Peer {
    pub name: &'static str,
    /// What `ci/peers.py` calls it.
    pub script: &'static str,
    /// On the machine of `PEER_PEAK`.
    pub rate: f64,
    /// What our rate should be at least, in multiples of it.
    pub target: f64,
}

/// Seconds of each repeat, and the peaks in FLOP/s measured between them.
pub struct Timed {
    kind: Kind,
    seconds: Vec<f64>,
    peak: f64,
    peak_fp32: f64,
}

impl Setup {
    /// Loads the device's library and sets threads; before the first tensor.
    pub fn new(args: &Args) -> Result<Setup> {
        if args.device != "cpu" && args.device != "cuda" {
            return Err(format!("unknown device '{}': use cpu or cuda", args.device).into());
        }
        torch::memory::keep();
        let device = train::device(&args.device, 0)?;
        if let Some(threads) = args.threads {
            torch::threads::set(threads);
        }
        Ok(Setup {
            device,
            quick: args.quick,
            peers: args.peers.as_deref().map_or(Ok(HashMap::new()), measured)?,
        })
    }

    /// FLOP/s of the matrix product.
    pub fn peak(&self, kind: Kind) -> f64 {
        Meter::measure(kind, self.device, 1).peak.get()
    }

    /// Repeats `once` for some seconds, after runs that warm up.
    pub fn time(&self, kind: Kind, once: &mut dyn FnMut() -> Result<()>) -> Result<Timed> {
        let (limit, least, most) = match self.quick {
            true => (1.0, 1, 3),
            false => (8.0, 3, 40),
        };
        let mut once = || -> Result<f64> {
            let start = Instant::now();
            once()?;
            if let Device::Cuda(index) = self.device {
                tch::Cuda::synchronize(index as i64);
            }
            Ok(start.elapsed().as_secs_f64())
        };
        // the second run still takes memory from the system
        once()?;
        once()?;
        let mut timed = Timed {
            kind,
            seconds: Vec::new(),
            peak: 0.0,
            peak_fp32: 0.0,
        };
        let start = Instant::now();
        while timed.seconds.len() < least
            || (start.elapsed().as_secs_f64() < limit && timed.seconds.len() < most)
        {
            timed.peak_fp32 = timed.peak_fp32.max(self.peak(Kind::Float));
            timed.peak = match kind {
                Kind::Float => timed.peak_fp32,
                _ => timed.peak.max(self.peak(kind)),
            };
            timed.seconds.push(once()?);
        }
        Ok(timed)
    }
}

impl Timed {
    /// The fields of a line: `amount` units and `flops` model FLOPs are done per repeat.
    pub fn fields(
        &self,
        setup: &Setup,
        unit: &str,
        amount: f64,
        flops: f64,
        peer: &Peer,
    ) -> serde_json::Map<String, Value> {
        let best = self.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let median = median(&self.seconds);
        let mut fields = json!({
            "dtype": dtype(self.kind),
            "unit": unit,
            "rate_median": amount / median,
            "rate_best": amount / best,
            "repeats": self.seconds.len(),
            "seconds_median": median,
            "seconds_best": best,
            "gemm_gflops": self.peak / 1e9,
            "gemm_share": flops / best / self.peak,
            "load": load(),
        });
        if setup.device == Device::Cpu {
            let mut against = match setup.peers.get(peer.script) {
                Some(here) => {
                    let rate = |name: &str| here[name].as_f64().unwrap_or(f64::NAN);
                    json!({
                        "peer": here["peer"],
                        "peer_rate_best": here["rate_best"],
                        "peer_rate_median": here["rate_median"],
                        "ratio": amount / best / rate("rate_best"),
                        "ratio_median": amount / median / rate("rate_median"),
                    })
                }
                None => {
                    let scaled = peer.rate * self.peak_fp32 / 1e9 / PEER_PEAK;
                    json!({
                        "peer": peer.name,
                        "peer_rate_facts": peer.rate,
                        "peer_gemm_gflops": PEER_PEAK,
                        "peer_rate_scaled": scaled,
                        "ratio": amount / best / scaled,
                        "ratio_median": amount / median / scaled,
                    })
                }
            };
            let more = json!({
                "gemm_fp32_gflops": self.peak_fp32 / 1e9,
                "ratio_target": peer.target,
            });
            extend(&mut against, more);
            extend(&mut fields, against);
        }
        match fields {
            Value::Object(fields) => fields,
            _ => unreachable!("made as an object above"),
        }
    }
}

/// The lines of a file of peers, by their names; the last of a name counts.
fn measured(path: &str) -> Result<HashMap<String, Value>> {
    let text = fs::read_to_string(path).map_err(|e| format!("failed to read {path}: {e}"))?;
    let mut peers = HashMap::new();
    for line in text.lines() {
        let peer: Value = serde_json::from_str(line).map_err(|e| format!("{path}: {e}"))?;
        let name = peer["bench"]
            .as_str()
            .ok_or(format!("{path}: no 'bench' in {line}"))?;
        peers.insert(name.to_owned(), peer);
    }
    Ok(peers)
}

/// What the numbers depend on.
pub fn machine(setup: &Setup) -> Result<Value> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = crate::model::config()?;
    let mut facts = train::numerics(setup.device, Kind::Float);
    let more = json!({
        "cores": cores,
        "cpu": cpu(),
        "load": load(),
        "quick": setup.quick,
        "model_params": model.param_count(),
    });
    extend(&mut facts, more);
    if let Value::Object(facts) = &mut facts {
        // of one computation; here each line says its own
        facts.remove("dtype");
    }
    Ok(facts)
}

fn extend(fields: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (fields, more) {
        fields.extend(more);
    }
}

/// As recipes name it.
pub fn dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Double => "fp64",
        _ => "fp32",
    }
}

/// The middle one; of an even number the upper middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processes that wanted a core in the last minute, ourselves included.
pub fn load() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn cpu() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
