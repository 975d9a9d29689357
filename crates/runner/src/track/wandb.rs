//! `[track.wandb]`: offline runs of Weights & Biases, `<dir>/wandb/offline-run-*/run-<id>.wandb`, one
//! for each stage, in one group. `wandb sync` in that folder sends them; nothing is sent here, so no
//! key is needed.
//!
//! The file is `wandb_internal.proto`'s `Record`s in LevelDB's log format: blocks of 32 KiB, each
//! piece of a record with CRC-32 (of its kind and its bytes), length and kind; before them all
//! `:W&B`, 0xBEE1 and the version 0.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use spec::track::{Track, Wandb};

use super::proto::Message;
use super::{About, Failure, Record, Tracker, What, succeeded};
use crate::clock;

const BLOCK: usize = 32 << 10;
const HEAD: usize = 7;

struct Offline {
    settings: Wandb,
    dir: PathBuf,
    about: Arc<About>,
    stages: HashMap<String, Stage>,
}

/// One W&B run.
struct Stage {
    log: Log<File>,
    /// Names the run in every record.
    id: String,
    /// Records so far.
    count: u64,
    begun: f64,
}

pub fn start(track: &Track, about: &Arc<About>) -> Option<Result<Box<dyn Tracker>, String>> {
    let settings = track.wandb.clone()?;
    let dir = about.folder.join(&settings.dir).join("wandb");
    let made = std::fs::create_dir_all(&dir);
    Some(match made {
        Ok(()) => Ok(Box::new(Offline {
            settings,
            dir,
            about: Arc::clone(about),
            stages: HashMap::new(),
        })),
        Err(e) => Err(format!("cannot make '{}': {e}", dir.display())),
    })
}

impl Tracker for Offline {
    fn send(&mut self, records: &[Arc<Record>]) -> Result<(), Failure> {
        // A part of what is written cannot be taken back, so there is no second try.
        let sent = records.iter().try_for_each(|record| self.take(record));
        sent.map_err(|e| {
            Failure::Never(format!("cannot write below '{}': {e}", self.dir.display()))
        })
    }
}

impl Offline {
    fn take(&mut self, record: &Record) -> std::io::Result<()> {
        if let What::Started { key } = &record.what {
            let mut stage = self.create(record)?;
            let version = Message::new()
                .text(1, concat!("recipe ", env!("CARGO_PKG_VERSION")))
                .text(2, "0.12.0");
            stage.write(21, Message::new().message(1, version))?;
            let run = self.run(record, &stage.id, key);
            stage.write(17, run)?;
            self.stages.insert(record.stage.clone(), stage);
            return Ok(());
        }
        let Some(stage) = self.stages.get_mut(&record.stage) else {
            return Ok(());
        };
        match &record.what {
            What::Step { step, metrics } => {
                // a list of one name, so that no part of it is taken for a table
                let item = |name: &str, value: &str| Message::new().text(2, name).text(16, value);
                let mut items = Message::new();
                for (name, value) in metrics {
                    items = items.message(1, item(name, &number(*value)));
                }
                let runtime = number(record.time - stage.begun);
                let items = items
                    .message(1, item("_timestamp", &number(record.time)))
                    .message(1, item("_runtime", &runtime))
                    // a whole number, or the reader counts for itself
                    .message(1, item("_step", &step.to_string()));
                stage.write(2, items.message(2, Message::new().int(1, *step)))
            }
            What::Finished {
                status, metrics, ..
            } => {
                let summary = metrics.iter().fold(Message::new(), |all, (name, value)| {
                    all.message(1, Message::new().text(2, name).text(16, &number(*value)))
                });
                stage.write(3, summary)?;
                let code = u64::from(!succeeded(*status));
                let seconds = (record.time - stage.begun).max(0.0) as u64;
                stage.write(18, Message::new().int(1, code).int(2, seconds))?;
                self.stages.remove(&record.stage);
                Ok(())
            }
            What::Started { .. } | What::RunFinished { .. } => Ok(()),
        }
    }

    fn create(&self, record: &Record) -> std::io::Result<Stage> {
        let name = format!("{} {}", self.about.run, record.stage);
        let id = blake3::hash(name.as_bytes()).to_hex()[..16].to_owned();
        let when = clock::compact(record.time);
        let dir = self.dir.join(format!("offline-run-{when}-{id}"));
        std::fs::create_dir_all(dir.join("files"))?;
        Ok(Stage {
            log: Log::new(File::create(dir.join(format!("run-{id}.wandb")))?)?,
            id,
            count: 0,
            begun: record.time,
        })
    }

    /// `RunRecord`.
    fn run(&self, record: &Record, id: &str, key: &str) -> Message {
        let (about, settings) = (&self.about, &self.settings);
        let mut config = Message::new();
        let mut set = |name: &str, value: &Value| {
            let item = Message::new().text(1, name).text(16, &value.to_string());
            config = std::mem::take(&mut config).message(1, item);
        };
        if let Value::Object(with) = about.with(&record.stage) {
            with.iter().for_each(|(name, value)| set(name, value));
        }
        set("recipe_run", &Value::from(about.run.as_str()));
        set("recipe_stage", &Value::from(record.stage.as_str()));
        set("recipe_key", &Value::from(key));
        let project = settings.project.as_ref().unwrap_or(&about.recipe);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let (seconds, nanos) = (record.time.trunc(), record.time.fract() * 1e9);
        let begun = Message::new().int(1, seconds as u64).int(2, nanos as u64);
        let mut run = Message::new().text(1, id);
        if let Some(entity) = &settings.entity {
            run = run.text(2, entity);
        }
        run = run
            .text(3, project)
            .message(4, config)
            .text(6, &about.run)
            .text(7, about.kind(&record.stage))
            .text(8, &record.stage);
        for tag in &settings.tags {
            run = run.text(10, tag);
        }
        run.text(13, host.trim()).message(17, begun)
    }
}

impl Stage {
    /// One `Record` that has `message` as this field.
    fn write(&mut self, field: u32, message: Message) -> std::io::Result<()> {
        self.count += 1;
        let stream = Message::new().text(1, &self.id);
        let record = Message::new().int(1, self.count).message(field, message);
        self.log.append(&record.message(200, stream).finish())
    }
}

/// A number as wandb's JSON has it, which knows NaN and infinities.
fn number(value: f64) -> String {
    match value {
        v if v.is_nan() => "NaN".to_owned(),
        v if v.is_infinite() && v > 0.0 => "Infinity".to_owned(),
        v if v.is_infinite() => "-Infinity".to_owned(),
        v => Value::from(v).to_string(),
    }
}

/// LevelDB's log format with wandb's head.
struct Log<W> {
    file: W,
    /// Bytes so far.
    at: usize,
}

/// Which piece of a record.
#[derive(Clone, Copy)]
enum Piece {
    Full = 1,
    First = 2,
    Middle = 3,
    Last = 4,
}

impl<W: Write> Log<W> {
    fn new(mut file: W) -> std::io::Result<Log<W>> {
        file.write_all(b":W&B\xe1\xbe\x00")?;
        Ok(Log { file, at: HEAD })
    }

    fn append(&mut self, record: &[u8]) -> std::io::Result<()> {
        let mut out = Vec::with_capacity(record.len() + HEAD);
        let (mut rest, mut begun) = (record, false);
        loop {
            let room = BLOCK - (self.at + out.len()) % BLOCK;
            if room < HEAD {
                out.resize(out.len() + room, 0);
                continue;
            }
            let length = rest.len().min(room - HEAD);
            let (now, later) = rest.split_at(length);
            let piece = match (begun, later.is_empty()) {
                (false, true) => Piece::Full,
                (false, false) => Piece::First,
                (true, false) => Piece::Middle,
                (true, true) => Piece::Last,
            };
            let mut crc = crc32fast::Hasher::new();
            crc.update(&[piece as u8]);
            crc.update(now);
            out.extend(crc.finalize().to_le_bytes());
            out.extend((length as u16).to_le_bytes());
            out.push(piece as u8);
            out.extend(now);
            (rest, begun) = (later, true);
            if rest.is_empty() {
                break;
            }
        }
        self.at += out.len();
        self.file.write_all(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_the_bytes_that_wandb_writes() {
        // a file's head and one of its records (a summary) as wandb 0.31 wrote them
        let mut bytes = Vec::new();
        let mut log = Log::new(&mut bytes).unwrap();
        let nested = Message::new().text(2, "_wandb").text(2, "runtime");
        let runtime = Message::new().text(1, "_runtime").text(16, "0");
        let summary = Message::new().message(1, nested.text(16, "0"));
        let summary = summary.message(1, runtime);
        let record = Message::new().int(1, 9).message(3, summary);
        log.append(&record.finish()).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, format!("{}{}", "3a572642e1be00", GOLDEN));
    }

    const GOLDEN: &str = "6fdef7892b000108091a270a1512065f77616e6462120772756e74696d65820101300a0e0a085f72756e74696d6582010130";

    #[test]
    fn records_go_over_blocks_and_come_back() {
        let mut bytes = Vec::new();
        let mut log = Log::new(&mut bytes).unwrap();
        // one that leaves less than a head in its block, one longer than two blocks, an empty one
        let sizes = [BLOCK - 2 * HEAD - 3, 2 * BLOCK + 5, 0, 1];
        let records: Vec<Vec<u8>> = sizes
            .iter()
            .map(|n| (0..*n).map(|i| i as u8).collect())
            .collect();
        for record in &records {
            log.append(record).unwrap();
        }
        let (mut at, mut found, mut open) = (HEAD, Vec::new(), Vec::new());
        while at < bytes.len() {
            if BLOCK - at % BLOCK < HEAD {
                at += BLOCK - at % BLOCK;
                continue;
            }
            let length = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
            let kind = bytes[at + 6];
            let data = &bytes[at + HEAD..at + HEAD + length];
            let mut crc = crc32fast::Hasher::new();
            crc.update(&[kind]);
            crc.update(data);
            assert_eq!(bytes[at..at + 4], crc.finalize().to_le_bytes());
            open.extend_from_slice(data);
            if kind == Piece::Full as u8 || kind == Piece::Last as u8 {
                found.push(std::mem::take(&mut open));
            }
            at += HEAD + length;
            assert!(
                at.div_ceil(BLOCK) == (at - 1).div_ceil(BLOCK) || at % BLOCK == 1 || length == 0
            );
        }
        assert_eq!(found, records);
    }
}
