//! `recipe plan --gpus`: on how many GPUs of which memory each training stage fits, and how.

use crate::format::{count, table};
use crate::price::{Checkpointing, Priced, machine, placement};
use arch::fit::{self, Choice, Fit, Job};
use arch::memory::{Memory, Table};
use serde_json::{Value, json};

/// Kept free on each GPU: the driver's context, libraries' workspaces, collectives' buffers and
/// fragments.
const RESERVE: u64 = 4_000_000_000;

/// GPUs of one memory size, as asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpus {
    pub count: usize,
    /// Bytes of one.
    pub memory: u64,
}

/// `80GB`, `141GB`, `24GiB`, `16G`: bytes.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "gb" | "g" => 1e9,
        "gib" => (1u64 << 30) as f64,
        "mb" | "m" => 1e6,
        "kb" | "k" => 1e3,
        "mib" => (1u64 << 20) as f64,
        "tb" | "t" => 1e12,
        _ => return Err("write it like 80GB, 24GiB or 500MB".to_owned()),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * scale < 1e18 => Ok((n * scale) as u64),
        _ => Err("write it like 80GB, 24GiB or 500MB".to_owned()),
    }
}

/// What a rank may use of a GPU.
pub fn usable(memory: u64) -> u64 {
    memory.saturating_sub(RESERVE)
}

/// Gigabytes with one decimal; a tiny model's with three.
fn gb(bytes: u64) -> String {
    let value = bytes as f64 / 1e9;
    if (1..50_000_000).contains(&bytes) {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}

/// The parts of a rank's memory, in the order of the columns.
pub fn parts(m: &Memory) -> [(&'static str, u64); 8] {
    [
        ("parameters", m.parameters + m.masters),
        ("gradients", m.gradients),
        ("optimizer", m.optimizer),
        ("gathered", m.gathered),
        ("activations", m.activations),
        ("logits", m.logits),
        ("rollout", m.rollout),
        ("peak", m.peak()),
    ]
}

/// As JSON, in bytes.
pub fn memory_json(m: &Memory) -> Value {
    let mut out = serde_json::Map::new();
    for (name, bytes) in parts(m) {
        out.insert(name.to_owned(), bytes.into());
    }
    out.insert("host".to_owned(), m.host.into());
    Value::Object(out)
}

/// A table of one row per stage, on the recipe's own mesh.
pub fn own_text(stages: &[(String, Result<Priced, String>)]) -> String {
    let mut rows = vec![header(&["stage", "mesh"])];
    rows[0].push("FLOP/step".to_owned());
    let mut notes = Vec::new();
    for (name, priced) in stages {
        match priced {
            Ok(priced) => {
                let mut row = vec![name.clone(), priced.mesh.to_string()];
                row.extend(parts(&priced.memory()).map(|(_, bytes)| gb(bytes)));
                row.push(format!("{:.2e}", priced.step_flops()));
                rows.push(row);
            }
            Err(why) => notes.push(format!("{name}: {why}")),
        }
    }
    let mut text = String::new();
    if rows.len() > 1 {
        text = format!("memory of a rank, GB:\n{}", table(&rows));
    }
    for note in notes {
        text += &format!("{}{note}", if text.is_empty() { "" } else { "\n" });
    }
    text
}

/// What fits where, one entry per stage and kind of machine.
pub struct Devices {
    entries: Vec<(String, Gpus, Choice)>,
    unknown: Vec<(String, String)>,
    models: Vec<(String, String)>,
}

impl Devices {
    /// Chooses a placement of each stage on each kind of machine.
    pub fn choose(stages: &[(String, Result<Priced, String>)], kinds: &[Gpus]) -> Devices {
        let mut out = Devices {
            entries: Vec::new(),
            unknown: Vec::new(),
            models: Vec::new(),
        };
        for (name, priced) in stages {
            let priced = match priced {
                Ok(priced) => priced,
                Err(why) => {
                    out.unknown.push((name.clone(), why.clone()));
                    continue;
                }
            };
            let about = format!(
                "{} parameters, {} tokens a step in microbatches of {}, {}",
                count(priced.config.param_count() as f64),
                priced.job.step_tokens,
                priced.job.rows,
                if priced.job.element == 2 {
                    "bf16"
                } else {
                    "fp32"
                },
            );
            out.models.push((name.clone(), about));
            let sizes = Table::new(&priced.config);
            for kind in kinds {
                let machine = machine(kind.count, usable(kind.memory));
                // GPUs without a fused kernel keep more
                let job = Job {
                    fused: false,
                    ..priced.job
                };
                let choice = fit::choose(&sizes, &machine, &job);
                out.entries.push((name.clone(), *kind, choice));
            }
        }
        out
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut blocks = Vec::new();
        for (name, about) in &self.models {
            let mut rows = vec![header(&["GPUs", "GB", "mesh", "checkpointing"])];
            for (_, gpus, choice) in self.entries.iter().filter(|e| e.0 == *name) {
                let memory = format!("{:.0}", gpus.memory as f64 / 1e9);
                let mut row = vec![gpus.count.to_string(), memory];
                let fit: &Fit = match choice {
                    Choice::Best(fit, _) => {
                        row.push(fit.mesh.to_string());
                        fit
                    }
                    Choice::None(fit) => {
                        row.push(format!("does not fit; least: {}", fit.mesh));
                        fit
                    }
                };
                row.push(Checkpointing(fit.keep).to_string());
                row.extend(parts(&fit.memory).map(|(_, bytes)| gb(bytes)));
                rows.push(row);
            }
            blocks.push(format!("{name}: {about}\n{}", table(&rows)));
        }
        for (name, why) in &self.unknown {
            blocks.push(format!("{name}: {why}"));
        }
        if !self.models.is_empty() {
            blocks.push(format!(
                "GB of the rank that needs most. {} GB of each GPU are kept free for the driver, \
                 libraries and\ncollectives. Of the meshes that fit, the one with the shortest \
                 estimated step is shown.",
                RESERVE / 1_000_000_000
            ));
        }
        blocks.join("\n\n")
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let entries: Vec<Value> = self
            .entries
            .iter()
            .map(|(stage, gpus, choice)| {
                let (fit, fits, meshes) = match choice {
                    Choice::Best(fit, n) => (fit, true, *n),
                    Choice::None(fit) => (fit, false, 0),
                };
                json!({
                    "stage": stage,
                    "gpus": gpus.count,
                    "gpu_memory": gpus.memory,
                    "fits": fits,
                    "placements_that_fit": meshes,
                    "mesh": fit.mesh.to_string(),
                    "resources": placement(&fit.mesh, fit.keep),
                    "rollout_tp": fit.rollout_tp,
                    "memory": memory_json(&fit.memory),
                })
            })
            .collect();
        let unknown: Vec<Value> = self
            .unknown
            .iter()
            .map(|(stage, why)| json!({ "stage": stage, "why": why }))
            .collect();
        json!({ "version": 1, "reserve": RESERVE, "devices": entries, "unknown": unknown })
    }
}

fn header(first: &[&str]) -> Vec<String> {
    let names = parts(&Memory::default()).map(|(name, _)| name);
    first
        .iter()
        .copied()
        .chain(names)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!(parse_memory("80GB"), Ok(80_000_000_000));
        assert_eq!(parse_memory("1.5 GiB"), Ok(3 << 29));
        for bad in ["80", "GB", "-1GB", "80XB", "0GB", "1e99GB", ""] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
