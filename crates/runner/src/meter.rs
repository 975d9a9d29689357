//! Energy, where the machine tells: counters that are read when an attempt starts and when it ends.
//!
//! | part | from | whose |
//! |---|---|---|
//! | CPU packages, memory | RAPL, `/sys/class/powercap/intel-rapl:*/energy_uj` (AMD's drivers fill it as well; most systems let only root read it) | the machine's, shared out by CPU time: an attempt gets the part that its processes had of all busy time meanwhile |
//! | GPUs | NVML's counter of each GPU since its driver was loaded | the attempt's own GPUs |
//!
//! RAPL's counters start over every few minutes under load, so a thread reads them now and then; it runs
//! only where they can be read.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nvml_wrapper::Nvml;
use serde::Serialize;

const POWERCAP: &str = "/sys/class/powercap";
/// A counter of 65 kJ, the smallest in use, lasts longer than this at a kilowatt.
const EVERY: Duration = Duration::from_secs(30);

/// What measured energy in a run, or why nothing did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Energy {
    pub cpu: String,
    pub gpu: String,
}

/// The energy counters of this machine.
pub struct Meter {
    cpu: Result<Arc<Mutex<Rapl>>, String>,
    /// Loaded when the first attempt on a GPU asks.
    gpu: OnceLock<Result<Nvml, String>>,
}

/// The counters at one moment.
pub struct Reading {
    /// Joules of the machine, and its busy seconds.
    cpu: Option<(f64, f64)>,
    gpu: Option<f64>,
}

impl Meter {
    /// Looks for counters.
    pub fn new() -> Meter {
        let cpu = Rapl::open(Path::new(POWERCAP)).map(|rapl| Arc::new(Mutex::new(rapl)));
        if let Ok(rapl) = &cpu {
            let rapl = Arc::downgrade(rapl);
            std::thread::spawn(move || {
                while let Some(rapl) = rapl.upgrade() {
                    lock(&rapl).read();
                    drop(rapl);
                    std::thread::sleep(EVERY);
                }
            });
        }
        Meter {
            cpu,
            gpu: OnceLock::new(),
        }
    }

    /// What is measured, and why the rest is not.
    pub fn energy(&self) -> Energy {
        let cpu = match &self.cpu {
            Ok(rapl) => format!("RAPL, {} counters", lock(rapl).counters.len()),
            Err(why) => format!("not measured: {why}"),
        };
        let gpu = match self.gpu.get() {
            None => "no GPU was used".to_owned(),
            Some(Ok(_)) => "NVML".to_owned(),
            Some(Err(why)) => format!("not measured: {why}"),
        };
        Energy { cpu, gpu }
    }

    /// Reads what concerns an attempt on these GPUs, named as in `CUDA_VISIBLE_DEVICES`.
    pub fn read(&self, gpus: &[String]) -> Reading {
        let joules = self.cpu.as_ref().ok().map(|rapl| lock(rapl).read());
        let gpu = match gpus {
            [] => None,
            gpus => self
                .nvml()
                .as_ref()
                .ok()
                .and_then(|nvml| gpus.iter().map(|gpu| joules_of(nvml, gpu)).sum()),
        };
        Reading {
            cpu: joules.zip(busy_seconds()),
            gpu,
        }
    }

    /// Joules of CPU and of GPUs since `before`, for processes that took `cpu_seconds` meanwhile.
    pub fn since(
        &self,
        before: &Reading,
        gpus: &[String],
        cpu_seconds: f64,
    ) -> (Option<f64>, Option<f64>) {
        let now = self.read(gpus);
        let cpu = before.cpu.zip(now.cpu);
        let cpu = cpu.map(|((j0, b0), (j1, b1))| (j1 - j0) * share(cpu_seconds, b1 - b0));
        // a driver that was loaded again starts over
        let gpu = before.gpu.zip(now.gpu).filter(|(a, b)| b >= a);
        (cpu, gpu.map(|(a, b)| b - a))
    }

    fn nvml(&self) -> &Result<Nvml, String> {
        self.gpu.get_or_init(|| {
            // the driver's own name; the one without a number comes with developers' packages
            let named = Nvml::builder()
                .lib_path("libnvidia-ml.so.1".as_ref())
                .init();
            named.map_err(|e| format!("NVML: {e}"))
        })
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

/// Joules of a GPU since its driver was loaded. None for parts of a GPU (MIG), which have no counter.
fn joules_of(nvml: &Nvml, gpu: &str) -> Option<f64> {
    let device = match gpu.parse() {
        Ok(index) => nvml.device_by_index(index),
        Err(_) => nvml.device_by_uuid(gpu),
    };
    let millijoules = device.ok()?.total_energy_consumption().ok()?;
    Some(millijoules as f64 / 1e3)
}

/// The part of the machine's busy time that was an attempt's.
fn share(cpu_seconds: f64, busy: f64) -> f64 {
    // ticks are coarse: a short attempt may seem to have taken more than there was
    if busy > 0.0 {
        (cpu_seconds / busy).clamp(0.0, 1.0)
    } else {
        0.0
    }
}

/// Seconds since boot that all CPUs together were busy.
fn busy_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    // SAFETY: plain sysconf(3).
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Some(busy_ticks(&stat)? / ticks as f64)
}

/// user, nice, system, irq, softirq of the first line; idle, iowait and what guests stole are not ours.
fn busy_ticks(stat: &str) -> Option<f64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<f64> = line
        .split_ascii_whitespace()
        .map_while(|n| n.parse().ok())
        .collect();
    Some([0, 1, 2, 5, 6].iter().filter_map(|i| ticks.get(*i)).sum())
}

/// Counters below `powercap`.
struct Rapl {
    counters: Vec<Counter>,
    /// Joules since [`Rapl::open`].
    total: f64,
}

struct Counter {
    file: PathBuf,
    /// Microjoules at the last look.
    last: u64,
    /// The counter starts over after this many microjoules.
    range: u64,
}

impl Rapl {
    fn open(powercap: &Path) -> Result<Rapl, String> {
        let entries = fs::read_dir(powercap);
        let entries = entries.map_err(|e| format!("no RAPL ({}: {e})", powercap.display()))?;
        let mut counters = Vec::new();
        for zone in entries.flatten().map(|e| e.path()) {
            let name = fs::read_to_string(zone.join("name")).unwrap_or_default();
            // cores and uncore are parts of their package, psys is more than the CPU
            if !(name.starts_with("package") || name.trim() == "dram") {
                continue;
            }
            let file = zone.join("energy_uj");
            let last = microjoules(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let range = microjoules(&zone.join("max_energy_range_uj")).unwrap_or(u64::MAX);
            counters.push(Counter { file, last, range });
        }
        if counters.is_empty() {
            return Err(format!("no RAPL package below {}", powercap.display()));
        }
        let total = 0.0;
        Ok(Rapl { counters, total })
    }

    /// Joules since it was opened.
    fn read(&mut self) -> f64 {
        for counter in &mut self.counters {
            let Ok(now) = microjoules(&counter.file) else {
                continue;
            };
            let more = match now.checked_sub(counter.last) {
                Some(more) => more,
                None => now + counter.range.saturating_sub(counter.last),
            };
            counter.last = now;
            self.total += more as f64 / 1e6;
        }
        self.total
    }
}

fn microjoules(file: &Path) -> std::io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(std::io::Error::other)
}

fn lock(rapl: &Mutex<Rapl>) -> MutexGuard<'_, Rapl> {
    rapl.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(root: &Path, zone: &str, name: &str, energy: u64) {
        let dir = root.join(zone);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("name"), format!("{name}\n")).unwrap();
        fs::write(dir.join("energy_uj"), format!("{energy}\n")).unwrap();
        fs::write(dir.join("max_energy_range_uj"), "100000000\n").unwrap();
    }

    #[test]
    fn packages_and_memory_count_and_start_over() {
        let root = tempfile::tempdir().unwrap();
        zone(root.path(), "intel-rapl:0", "package-0", 99_000_000);
        zone(root.path(), "intel-rapl:0:0", "core", 5);
        zone(root.path(), "intel-rapl:0:1", "dram", 1_000_000);
        zone(root.path(), "intel-rapl:1", "psys", 7);
        let mut rapl = Rapl::open(root.path()).unwrap();
        assert_eq!(rapl.counters.len(), 2);
        assert_eq!(rapl.read(), 0.0);
        // one joule to the end and two from the start; three of memory
        zone(root.path(), "intel-rapl:0", "package-0", 2_000_000);
        zone(root.path(), "intel-rapl:0:1", "dram", 4_000_000);
        assert_eq!(rapl.read(), 6.0);
        assert_eq!(rapl.read(), 6.0);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let root = tempfile::tempdir().unwrap();
        let why = |at: &Path| Rapl::open(at).err().unwrap();
        assert!(why(&root.path().join("none")).contains("No such file"));
        assert!(why(root.path()).contains("no RAPL package"));
        zone(root.path(), "intel-rapl:0", "package-0", 1);
        fs::write(root.path().join("intel-rapl:0/energy_uj"), "").unwrap();
        assert!(why(root.path()).contains("energy_uj"));
    }

    #[test]
    fn an_attempt_has_its_share_of_busy_time() {
        let stat = "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(163.0));
        assert_eq!(busy_ticks("intr 5"), None);
        assert_eq!(share(1.0, 4.0), 0.25);
        assert_eq!((share(5.0, 4.0), share(1.0, 0.0)), (1.0, 0.0));
    }
}
