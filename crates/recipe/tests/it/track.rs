//! Trackers through the binary: what they are told, and that they are never in a run's way. The
//! packages that own the formats read them back in `ci/trackers.py`.

use crate::project::{Project, ran};
use crate::worker::project;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// All files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true => out.extend(files(&path)),
            false => out.push(path),
        }
    }
    out
}

fn named(dir: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = files(dir);
    found.retain(|path| path.to_string_lossy().contains(part));
    found.sort();
    found
}

#[test]
fn files_are_written_beside_the_recipe_and_are_no_part_of_a_key() {
    let tables =
        "[track.jsonl]\n[track.tensorboard]\ndir = \"tb\"\n[track.wandb]\ntags = [\"ci\"]\n";
    let project = project(tables);
    let mut command = project.command("run recipe.toml");
    ran_ok(command.env("WANDB_API_KEY", "very-secret-key"));
    let lines: Vec<Value> = project
        .read("metrics.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    // 5 steps of sft, 3 of dpo, and the ends of three stages
    assert_eq!(lines.len(), 11, "{lines:#?}");
    let sft: Vec<&Value> = lines.iter().filter(|l| l["stage"] == "sft").collect();
    assert_eq!(
        (&sft[4]["step"], &sft[4]["metrics"]["train/loss"]),
        (&json!(5), &json!(1.5))
    );
    assert_eq!(
        (&sft[5]["status"], &sft[5]["metrics"]["accuracy"]),
        (&json!("ran"), &json!(0.25))
    );

    let events = named(&project.path("tb"), "tfevents");
    assert_eq!(events.len(), 3, "one file for each stage: {events:?}");
    // version, configuration, one for each step, the end
    let counts: Vec<usize> = events.iter().map(|path| frames(path)).collect();
    assert_eq!(counts, [3 + 3, 3 + 5, 3]);
    let wandb = named(&project.path("wandb"), ".wandb");
    assert_eq!(wandb.len(), 3, "{wandb:?}");
    assert!(wandb.iter().all(|path| {
        std::fs::read(path)
            .unwrap()
            .starts_with(b":W&B\xe1\xbe\x00")
    }));
    no_file_holds(&project, "very-secret-key");

    // asked for without, or elsewhere, it is the same computation, and reused stages tell nothing
    let again = project
        .recipe("run recipe.toml -S track.jsonl.path=other.jsonl --json")
        .code(0);
    let states = again.json()["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["status"].clone())
        .collect::<Vec<_>>();
    assert_eq!(states, ["reused"; 3]);
    assert_eq!(project.read("other.jsonl"), "");
    project.recipe("run recipe.toml --force --no-track").code(0);
    assert_eq!(project.read("metrics.jsonl").lines().count(), 11);
}

fn ran_ok(command: &mut std::process::Command) -> String {
    let out = command.output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(0), "{err}");
    err
}

fn no_file_holds(project: &Project, secret: &str) {
    for path in files(&project.path("")) {
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
        assert!(!found, "{} holds the secret", path.display());
    }
}

/// TFRecords of a file, to its very end.
fn frames(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        at += 12 + length as usize + 4;
        count += 1;
    }
    assert_eq!(at, bytes.len());
    count
}

/// A tracking server that answers each request by a function of its path and body.
struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

type Answer = Box<dyn Fn(&str, usize) -> Option<(u16, Value)> + Send + Sync>;

impl Server {
    /// `answer` gets the path and how many requests came before; none is silence.
    fn start(answer: Answer) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (shared, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &asked, &answer));
            }
        });
        Server { port, asked }
    }

    fn asked(&self, path: &str) -> Vec<Value> {
        let all = self.asked.lock().unwrap();
        all.iter()
            .filter(|(p, _)| p.ends_with(path))
            .map(|(_, body)| body.clone())
            .collect()
    }
}

fn serve(stream: TcpStream, asked: &Mutex<Vec<(String, Value)>>, answer: &Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let (mut first, mut length, mut token) = (String::new(), 0, false);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(n) = line.strip_prefix("content-length: ") {
                length = n.parse().unwrap();
            }
            token |= line == "authorization: bearer very-secret-token";
        }
        assert!(token, "every request says who asks");
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let path = first
            .split(' ')
            .nth(1)
            .unwrap()
            .split('?')
            .next()
            .unwrap()
            .to_owned();
        let before = {
            let mut asked = asked.lock().unwrap();
            asked.push((
                path.clone(),
                serde_json::from_slice(&body).unwrap_or_default(),
            ));
            asked.len() - 1
        };
        let Some((status, body)) = answer(&path, before) else {
            // silence until the other side gives up
            let _ = reader.read_line(&mut String::new());
            return;
        };
        let body = body.to_string();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
    }
}

/// What an MLflow server answers, as far as recipe asks.
fn mlflow(path: &str, before: usize) -> Option<(u16, Value)> {
    Some(match path.strip_prefix("/api/2.0/mlflow/").unwrap() {
        "experiments/get-by-name" => (404, json!({ "error_code": "RESOURCE_DOES_NOT_EXIST" })),
        "experiments/create" => (200, json!({ "experiment_id": "7" })),
        "runs/create" => (
            200,
            json!({ "run": { "info": { "run_id": format!("run-{before}") } } }),
        ),
        _ => (200, json!({})),
    })
}

fn with_server(server: &Server) -> (Project, std::process::Command) {
    let project = project(&format!(
        "[track.mlflow]\nuri = \"http://127.0.0.1:{}\"\n",
        server.port
    ));
    let mut command = project.command("run recipe.toml --json");
    command
        .env("MLFLOW_TRACKING_TOKEN", "very-secret-token")
        .env("STEP", "0.01");
    (project, command)
}

#[test]
fn mlflow_gets_a_run_for_each_stage_also_when_the_server_is_away_at_first() {
    let away = |path: &str, before: usize| match before {
        0 => Some((503, json!({ "message": "starting" }))),
        _ => mlflow(path, before),
    };
    let server = Server::start(Box::new(away));
    let (project, mut command) = with_server(&server);
    // longer than the pause after the first try
    command.env("STEP", "0.5");
    let err = ran_ok(&mut command);
    assert!(!err.contains("tracker"), "{err}");
    let created = server.asked("runs/create");
    let names: Vec<&str> = created
        .iter()
        .map(|c| c["run_name"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 4);
    assert_eq!(names[1..], ["sft", "dpo", "size"]);
    let batches = server.asked("runs/log-batch");
    let all = |field: &str| -> Vec<Value> {
        let lists = batches.iter().filter_map(|b| b[field].as_array());
        lists.flatten().cloned().collect()
    };
    let losses = all("metrics")
        .into_iter()
        .filter(|m| m["key"] == "train/loss")
        .count();
    // 5 and 3 steps, and two summaries
    assert_eq!(losses, 10);
    assert!(
        all("params")
            .iter()
            .any(|p| p == &json!({ "key": "lr", "value": "0.001" }))
    );
    assert_eq!(server.asked("runs/update").len(), 4);
    no_file_holds(&project, "very-secret-token");
}

#[test]
fn a_server_that_hangs_fails_or_is_not_there_costs_the_run_nothing() {
    let silent: Answer = Box::new(|_, _| None);
    let broken: Answer = Box::new(|_, _| Some((500, json!({ "message": "out of order" }))));
    let rude: Answer = Box::new(|_, _| Some((401, json!({ "message": "who are you" }))));
    let cases = [
        (silent, "it does not answer"),
        (broken, "the server answers 500: out of order"),
        (rude, "the server answers 401: who are you"),
    ];
    let mut outputs = Vec::new();
    for (answer, why) in cases {
        let server = Server::start(answer);
        let (project, command) = with_server(&server);
        let ran = ran(command).code(0);
        let told: Vec<&str> = ran.err.lines().filter(|l| l.contains("tracker")).collect();
        // told once: starts and ends of three stages, 8 steps, and the run's end
        assert_eq!(told.len(), 1, "{}", ran.err);
        let wanted = format!("tracker mlflow: 15 of 15 records were not tracked: {why}");
        assert!(told[0].contains(&wanted), "{}", told[0]);
        outputs.push(ran.json()["stages"][0]["outputs"].clone());
        assert_eq!(
            project
                .recipe("show last --metrics sft")
                .code(0)
                .out
                .lines()
                .count(),
            5
        );
        no_file_holds(&project, "very-secret-token");
    }
    // nobody listens on a port that was just closed
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let project = project(&format!(
        "[track.mlflow]\nuri = \"http://127.0.0.1:{closed}\"\n"
    ));
    let ran = project.recipe("run recipe.toml --json").code(0);
    assert!(
        ran.err
            .contains("15 records were not tracked: the server cannot be reached"),
        "{}",
        ran.err
    );
    outputs.push(ran.json()["stages"][0]["outputs"].clone());
    assert!(outputs.iter().all(|o| *o == outputs[0]), "{outputs:?}");
    // a folder that cannot be made is told as well, and no reason to fail
    project.write("file", "");
    let ran = project
        .recipe("run recipe.toml -S track.tensorboard.dir=file/tb")
        .code(0);
    assert!(
        ran.err
            .contains("tracker tensorboard: nothing was tracked: cannot make"),
        "{}",
        ran.err
    );
}
