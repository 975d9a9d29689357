//! `[track.tensorboard]`: event files, `<dir>/<run>/<stage>/events.out.tfevents.*`.
//!
//! A file is TFRecords (length, masked CRC-32C of it, data, masked CRC-32C of that) of `Event`
//! messages: the first tells the version, each step has its metrics as scalars under their names,
//! and a stage's configuration goes to the HPARAMS tab, so that runs of a sweep can be sorted by it.
//! Scalars are single precision, as TensorBoard's are.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use spec::track::Track;

use super::proto::Message;
use super::{About, Failure, Record, Tracker, What, succeeded};

struct TensorBoard {
    dir: PathBuf,
    about: Arc<About>,
    stages: HashMap<String, Stage>,
}

struct Stage {
    file: File,
    /// Metrics that steps have had: their summary is not told again.
    names: BTreeSet<String>,
}

pub fn start(track: &Track, about: &Arc<About>) -> Option<Result<Box<dyn Tracker>, String>> {
    let dir = about.folder.join(&track.tensorboard.as_ref()?.dir);
    let made = std::fs::create_dir_all(&dir);
    Some(match made {
        Ok(()) => Ok(Box::new(TensorBoard {
            dir: dir.join(&about.run),
            about: Arc::clone(about),
            stages: HashMap::new(),
        })),
        Err(e) => Err(format!("cannot make '{}': {e}", dir.display())),
    })
}

impl Tracker for TensorBoard {
    fn send(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        // A part of what is written cannot be taken back, so there is no second try.
        let sent = records.iter().try_for_each(|record| self.take(record));
        sent.map_err(|e| {
            Failure::Never(format!("cannot write below '{}': {e}", self.dir.display()))
        })
    }
}

impl TensorBoard {
    fn take(&mut self, record: &Record) -> std::io::Result<()> {
        if let What::Started { .. } = &record.what {
            let mut file = self.create(record)?;
            let settings = self.about.settings(&record.stage);
            file.write_all(&framed(&header(record.time)))?;
            let start = session_start(&settings, &self.about.run, record.time);
            file.write_all(&framed(&event(record.time, 0, [start])))?;
            let names = BTreeSet::new();
            self.stages
                .insert(record.stage.clone(), Stage { file, names });
            return Ok(());
        }
        let Some(stage) = self.stages.get_mut(&record.stage) else {
            return Ok(());
        };
        match &record.what {
            What::Step { step, metrics } => {
                stage.names.extend(metrics.keys().cloned());
                let values = metrics.iter().map(|(name, value)| scalar(name, *value));
                stage
                    .file
                    .write_all(&framed(&event(record.time, *step, values)))
            }
            What::Finished {
                status,
                step,
                metrics,
            } => {
                let new = metrics
                    .iter()
                    .filter(|(name, _)| !stage.names.contains(*name));
                let scalars = new.map(|(name, value)| scalar(name, *value));
                let end = session_end(succeeded(*status), record.time);
                let values = scalars.chain([end]);
                stage
                    .file
                    .write_all(&framed(&event(record.time, *step, values)))
            }
            What::Started { .. } | What::RunFinished { .. } => Ok(()),
        }
    }

    fn create(&self, record: &Record) -> std::io::Result<File> {
        let dir = self.dir.join(folder(&record.stage));
        std::fs::create_dir_all(&dir)?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let (seconds, pid) = (record.time as u64, std::process::id());
        File::create(dir.join(format!(
            "events.out.tfevents.{seconds}.{}.{pid}",
            host.trim()
        )))
    }
}

/// A stage's name without what means something in a pattern of file names.
fn folder(stage: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-=,".contains(c);
    let text: String = stage
        .chars()
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    text.trim_end_matches('_').to_owned()
}

/// `Event.file_version`.
fn header(time: f64) -> Vec<u8> {
    Message::new()
        .double(1, time)
        .text(3, "brain.Event:2")
        .finish()
}

/// `Event.summary` of `Summary.Value`s.
fn event(time: f64, step: u64, values: impl IntoIterator<Item = Message>) -> Vec<u8> {
    let values = values.into_iter();
    let summary = values.fold(Message::new(), |summary, value| summary.message(1, value));
    let event = Message::new().double(1, time).int(2, step);
    event.message(5, summary).finish()
}

/// `Summary.Value` with `simple_value`.
fn scalar(name: &str, value: f64) -> Message {
    Message::new().text(1, name).float(2, value as f32)
}

/// What the HPARAMS tab reads when a stage begins: `SessionStartInfo`.
fn session_start(settings: &[(String, Value)], run: &str, time: f64) -> Message {
    let mut info = Message::new();
    for (name, value) in settings {
        let value = match value {
            Value::Bool(yes) => Message::new().int(4, u64::from(*yes)),
            Value::String(text) => Message::new().text(3, text),
            other => match other.as_f64() {
                Some(number) => Message::new().double(2, number),
                None => Message::new().text(3, &other.to_string()),
            },
        };
        info = info.message(1, Message::new().text(1, name).message(2, value));
    }
    let info = info.text(4, run).double(5, time);
    hparams(
        "_hparams_/session_start_info",
        Message::new().int(1, 0).message(3, info),
    )
}

/// The same when it ends: `SessionEndInfo`, whose status is 1 for success and 2 for failure.
fn session_end(success: bool, time: f64) -> Message {
    let info = Message::new()
        .int(1, if success { 1 } else { 2 })
        .double(2, time);
    hparams(
        "_hparams_/session_end_info",
        Message::new().int(1, 0).message(4, info),
    )
}

/// `Summary.Value` that carries data of the plugin in its metadata, and a tensor of nothing.
fn hparams(tag: &str, data: Message) -> Message {
    let plugin = Message::new().text(1, "hparams").message(2, data);
    let shape = Message::new().message(2, Message::new().int(1, 1));
    let tensor = Message::new().int(1, 1).message(2, shape).float(5, 0.0);
    let value = Message::new().text(1, tag).message(8, tensor);
    value.message(9, Message::new().message(1, plugin))
}

/// A TFRecord.
fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked(data).to_le_bytes());
    out
}

/// CRC-32C, rotated and shifted so that a checksum of checksums is not one of the data.
fn masked(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc = (crc >> 8) ^ CASTAGNOLI[((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

const CASTAGNOLI: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_the_bytes_that_tensorboard_writes() {
        // EventFileWriter of tensorboard 2.21 on Event(wall_time=1.5, step=3, train/loss 0.25)
        let values = [scalar("train/loss", 0.25)];
        let bytes = framed(&event(1.5, 3, values));
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
        // RFC 3720, B.4: CRC-32C of 32 zeros is 8a9136aa
        let unmasked = masked(&[0; 32]).wrapping_sub(0xa282_ead8).rotate_left(15);
        assert_eq!(unmasked, 0x8a91_36aa);
    }

    const GOLDEN: &str = "200000000000000029eda95009000000000000f83f10032a130a110a0a747261696e2f6c6f7373150000803e43301b92";

    #[test]
    fn a_cells_folder_is_no_pattern() {
        assert_eq!(folder("sft[lr=1e-3,seed=2]"), "sft_lr=1e-3,seed=2");
        assert_eq!(folder("sft"), "sft");
    }
}
