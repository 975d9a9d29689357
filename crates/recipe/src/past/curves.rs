//! Metrics over steps, read from a run's `metrics.jsonl`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;

/// A metric's value by step; NaN where what was measured was no number.
pub type Curve = BTreeMap<u64, f64>;

/// The curves of a stage by metric.
pub type Curves = BTreeMap<String, Curve>;

/// A line of `metrics.jsonl`.
#[derive(Deserialize)]
struct Step {
    stage: String,
    step: u64,
    #[serde(deserialize_with = "spec::job::numbers")]
    metrics: BTreeMap<String, f64>,
}

/// What has been read of one `metrics.jsonl`.
#[derive(Default)]
pub struct Steps {
    /// Bytes that were whole lines.
    read: usize,
    stages: HashMap<String, Arc<Curves>>,
}

impl Steps {
    /// Takes in what a file has beyond what was read of it. Where a resumed attempt wrote a step
    /// again, the last line counts.
    pub fn feed(&mut self, file: &[u8]) {
        let new = file.get(self.read..).unwrap_or_default();
        let whole = new.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        self.read += whole;
        for line in new[..whole].split(|b| *b == b'\n') {
            // a line cut short by a crash is not JSON and is passed over
            let Ok(step) = serde_json::from_slice::<Step>(line) else {
                continue;
            };
            let curves = Arc::make_mut(self.stages.entry(step.stage).or_default());
            for (name, value) in step.metrics {
                curves.entry(name).or_default().insert(step.step, value);
            }
        }
    }

    pub fn of(&self, stage: &str) -> Arc<Curves> {
        self.stages.get(stage).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_file_is_read_once_and_its_last_line_counts() {
        let line = |step: u64, loss: &str| {
            format!(
                "{{\"stage\":\"sft\",\"attempt\":1,\"step\":{step},\"metrics\":{{\"loss\":{loss}}}}}\n"
            )
        };
        let mut file = line(1, "3.0") + &line(2, "2.0");
        let mut steps = Steps::default();
        steps.feed(file.as_bytes());
        // a resumed attempt takes step 2 again; the line after it is not whole yet
        file += &line(2, "null");
        let half = line(3, "1.0");
        let (begin, end) = half.split_at(20);
        steps.feed((file.clone() + begin).as_bytes());
        assert!(steps.of("sft")["loss"][&2].is_nan());
        assert_eq!(steps.of("sft")["loss"].len(), 2);
        steps.feed((file + begin + end).as_bytes());
        assert_eq!(steps.of("sft")["loss"][&3], 1.0);
        assert!(steps.of("other").is_empty());
    }
}
