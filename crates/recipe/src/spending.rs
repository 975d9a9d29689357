//! What runs cost, in words: time, CPU and GPU hours, energy.

use cache::Cost;
use serde::Deserialize;
use serde_json::Value;

use crate::format::{duration, number};

/// `3m05s of stages, 12s of CPU, 1.5 GPU hours, 81 Wh`.
pub fn cost(cost: &Cost) -> String {
    let mut parts = vec![
        format!("{} of stages", duration(cost.seconds)),
        hours(cost.cpu_seconds, "CPU"),
    ];
    if cost.gpu_seconds > 0.0 {
        parts.push(hours(cost.gpu_seconds, "GPU"));
    }
    if let Some(joules) = cost.joules() {
        parts.push(format!("{} Wh", number(joules / 3600.0)));
    }
    parts.join(", ")
}

/// `12s of CPU`, or hours where it is that much.
pub fn hours(seconds: f64, what: &str) -> String {
    if seconds < 3600.0 {
        format!("{} of {what}", duration(seconds))
    } else {
        format!("{} {what} hours", number(seconds / 3600.0))
    }
}

/// What computing a stage's result took, in whichever run that was: `1m02s CPU, 0.5 GPU hours, 2 Wh`.
pub fn of_stage(stage: &Value) -> String {
    let Ok(cost) = Cost::deserialize(&stage["cost"]) else {
        return "-".to_owned();
    };
    let mut parts = vec![format!("{} CPU", duration(cost.cpu_seconds))];
    if cost.gpu_seconds > 0.0 {
        parts.push(format!("{} GPU", duration(cost.gpu_seconds)));
    }
    if let Some(joules) = cost.joules() {
        parts.push(format!("{} Wh", number(joules / 3600.0)));
    }
    parts.join(", ")
}

/// What a run spent, from its record or outcome, and where its energy is not known.
pub fn text(run: &Value) -> String {
    let spent = Cost::deserialize(&run["spent"]).unwrap_or_default();
    if spent.is_zero() {
        return "Spent nothing: every stage was reused.".to_owned();
    }
    let mut out = format!("Spent {}.", cost(&spent));
    for device in ["cpu", "gpu"] {
        let how = run["energy"][device].as_str().unwrap_or_default();
        if let Some(why) = how.strip_prefix("not measured: ") {
            let device = device.to_uppercase();
            out += &format!(" Energy of the {device} is not known: {why}.");
        }
    }
    out
}
