//! A worker without a trainer: it obeys the contract of JobSpec and Event, and its "weights" are a hash chain over its
//! steps. So a step that is skipped or repeated after a resume changes the result's digest.
//!
//! The environment scripts it: `SCRIPT_STEP_MS`; `SCRIPT_FAIL=step:exit-code[:once-marker-file]` (exit code 9 means SIGKILL
//! itself); `SCRIPT_SHORT=step` (ends there, content); `SCRIPT_NAN=step`; `SCRIPT_SALT` (other weights); `SCRIPT_FAIL_RANK`; `SCRIPT_IGNORE_TERM`; `SCRIPT_SOURCES` (identity); `SCRIPT_COUNT=file` (a line per start).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cache::{Ingest, Store};
use serde_json::{Value, json};
use spec::{Event, JobSpec};

static TERM: AtomicBool = AtomicBool::new(false);

extern "C" fn on_term(_: i32) {
    TERM.store(true, Ordering::SeqCst);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("identity") => {
            let sources = var("SCRIPT_SOURCES").unwrap_or_else(|| "s1".into());
            println!(
                "{}",
                json!({"version": "0", "libtorch": "none", "sources": sources})
            );
        }
        Some("run") => work(Path::new(&args[3])),
        _ => std::process::exit(2),
    }
}

fn var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn say(event: &Event) {
    println!("{}", serde_json::to_string(event).unwrap());
}

fn work(job: &Path) {
    let job: JobSpec = serde_json::from_slice(&std::fs::read(job).unwrap()).unwrap();
    let rank: usize = var("RANK").unwrap().parse().unwrap();
    if var("SCRIPT_IGNORE_TERM").is_none() {
        unsafe { libc::signal(libc::SIGTERM, on_term as *const () as usize) };
    } else {
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
    }
    eprintln!(
        "rank {rank} of {} threads {}",
        var("WORLD_SIZE").unwrap(),
        var("OMP_NUM_THREADS").unwrap()
    );
    if let (Some(count), 0) = (var("SCRIPT_COUNT"), rank) {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(count)
            .unwrap();
        writeln!(file, "{} {}", job.stage, job.attempt).unwrap();
    }
    let all = job.with["steps"].as_u64().unwrap_or(10);
    let until = job.with["until"].as_u64();
    let steps = until.unwrap_or(all);
    let key: cache::Key = job.key.parse().unwrap();
    let store = Store::open(&job.store).unwrap();
    if rank == 0 {
        let numerics = json!({"device": job.device, "threads": job.resources.threads});
        let Value::Object(numerics) = numerics else {
            unreachable!()
        };
        say(&Event::Started {
            version: 1,
            device: job.device.clone(),
            numerics,
        });
    }
    // how many steps there are, and how many of them are done, changes none of them
    let mut with = job.with.clone();
    with["steps"] = Value::Null;
    with["until"] = Value::Null;
    let (mut step, mut state) = (
        0,
        blake3::hash(format!("{with}{}", var("SCRIPT_SALT").unwrap_or_default()).as_bytes())
            .to_hex()
            .to_string(),
    );
    if let Some(resume) = &job.resume {
        step = resume.step;
        state = std::fs::read_to_string(resume.path.join("state")).unwrap();
        if rank == 0 {
            say(&Event::Resumed { step });
        }
    }
    let commit = |step: u64, state: &str| {
        if rank == 0 {
            let dir = job.scratch.join(format!("checkpoint-{step}"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("state"), state).unwrap();
            store
                .commit_checkpoint(
                    &key,
                    job.attempt,
                    step,
                    &dir,
                    Ingest::Move,
                    json!({"step": step}),
                )
                .unwrap();
            say(&Event::Checkpoint { step });
        }
    };
    let pause = Duration::from_millis(
        var("SCRIPT_STEP_MS")
            .and_then(|v| v.parse().ok())
            .unwrap_or(1),
    );
    let number = |name: &str| var(name).and_then(|v| v.parse::<u64>().ok());
    let (short, nan) = (number("SCRIPT_SHORT"), number("SCRIPT_NAN"));
    let loss = |step: u64| match nan == Some(step) {
        true => f64::NAN,
        false => 1.0 / step as f64,
    };
    let validate_every = job.with["validate_every"].as_u64().unwrap_or(0);
    let mut best = f64::INFINITY;
    while step < short.unwrap_or(steps) {
        if TERM.load(Ordering::SeqCst) {
            commit(step, &state);
            if rank == 0 {
                say(&Event::Stopped { step });
            }
            std::process::exit(75);
        }
        std::thread::sleep(pause);
        step += 1;
        state = blake3::hash(format!("{state} {step}").as_bytes())
            .to_hex()
            .to_string();
        let mut metrics = BTreeMap::from([("train/loss".to_owned(), loss(step))]);
        if validate_every > 0 && (step.is_multiple_of(validate_every) || step == all) {
            metrics.insert("validation/loss".to_owned(), step.abs_diff(17) as f64);
        }
        let mut watched = job.watch.iter().filter_map(|by| metrics.get(&by.metric));
        // the scripted validation falls, then rises
        let is_best = watched.any(|value| *value < best);
        best = metrics
            .get("validation/loss")
            .map_or(best, |v| best.min(*v));
        if rank == 0 {
            say(&Event::Progress { step, total: steps });
            say(&Event::Metrics { step, metrics });
        }
        let every = job.checkpoint.every;
        let due = every > 0 && step.is_multiple_of(every) && step < steps;
        if due || until == Some(step) || is_best {
            commit(step, &state);
        }
        fail(step, rank);
    }
    if rank == 0 {
        for dir in job.outputs.values() {
            std::fs::write(dir.join("weights"), &state).unwrap();
        }
        say(&Event::Finished {
            metrics: [("train/loss".to_owned(), loss(steps))].into(),
        });
    }
}

fn fail(step: u64, rank: usize) {
    let Some(script) = var("SCRIPT_FAIL") else {
        return;
    };
    let mut parts = script.split(':');
    let at: u64 = parts.next().unwrap().parse().unwrap();
    let code: i32 = parts.next().unwrap().parse().unwrap();
    let on_rank: usize = var("SCRIPT_FAIL_RANK").map_or(0, |r| r.parse().unwrap());
    if step != at || rank != on_rank {
        return;
    }
    if let Some(marker) = parts.next() {
        if std::fs::exists(marker).unwrap() {
            return;
        }
        std::fs::write(marker, "").unwrap();
    }
    eprintln!("about to fail at step {step}");
    if code == 9 {
        unsafe { libc::raise(libc::SIGKILL) };
    }
    if code == 1 {
        say(&Event::Failed {
            class: spec::FailureClass::Failed,
            code: "T0001".into(),
            message: format!("loss is nan at step {step}"),
            help: "lower the learning rate".into(),
        });
    }
    std::process::exit(code);
}
