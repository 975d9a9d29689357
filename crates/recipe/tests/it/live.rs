//! `recipe watch` and `recipe serve` beside a run that goes on in another process.

use crate::project::{Project, ran};
use crate::worker::project;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Ends a process that is left behind.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command) -> Ends {
    Ends(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

/// Starts a run whose steps take so many seconds, and waits until it has a record and a step.
fn started(project: &Project, step: &str) -> (Ends, String) {
    let mut command = project.command("run recipe.toml");
    command.env("STEP", step);
    let child = start(command);
    let begun = Instant::now();
    loop {
        let runs = std::fs::read_dir(project.path(".recipe/runs"))
            .into_iter()
            .flatten();
        for run in runs.flatten() {
            if run.path().join("metrics.jsonl").exists() && run.path().join("record.json").exists()
            {
                return (child, run.file_name().into_string().unwrap());
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no run began");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn watch_follows_a_run_to_its_end_and_ends_as_it_does() {
    let project = project("");
    let (mut child, id) = started(&project, "0.1");
    let watched = project.recipe("watch").code(0);
    for line in [
        "sft: started, attempt 1",
        "sft: step 5/5, reward",
        "sft: done",
        "size: done",
    ] {
        assert!(watched.out.contains(line), "{line} in {}", watched.out);
    }
    assert!(
        watched
            .out
            .trim_end()
            .lines()
            .last()
            .unwrap()
            .starts_with(&format!("run {id}: ok"))
    );
    assert!(child.0.wait().unwrap().success());
    // a run that has ended is told again, with its exit code
    let text = project.read("recipe.toml");
    project.write("recipe.toml", &text.replace("wc -c <", "exit 1;"));
    project.recipe("run recipe.toml").code(1);
    let watched = project.recipe("watch last").code(1);
    assert!(
        watched.out.contains("sft: reused") && watched.out.contains("exit 1"),
        "{}",
        watched.out
    );
    project.recipe("watch nosuch").code(2);
}

#[test]
fn a_run_that_was_killed_is_not_waited_for() {
    let project = project("");
    let (mut child, id) = started(&project, "20");
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let watched = project.recipe("watch").code(4);
    assert!(
        watched
            .err
            .contains(&format!("run '{id}' did not end: its process is gone")),
        "{}",
        watched.err
    );
    let runs = project.recipe("runs").code(0);
    assert!(runs.out.contains("died"), "{}", runs.out);
}

struct Server {
    port: u16,
    _process: Ends,
    _out: BufReader<ChildStdout>,
}

fn serve(project: &Project) -> Server {
    let mut command = project.command("serve --port 0");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let rest = line.strip_prefix("http://127.0.0.1:").unwrap();
    let port = rest.split('/').next().unwrap().parse().unwrap();
    Server {
        port,
        _process: Ends(child),
        _out: out,
    }
}

impl Server {
    fn ask(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn get(&self, path: &str) -> String {
        let host = format!("127.0.0.1:{}", self.port);
        let mut answer = String::new();
        let mut stream = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

#[test]
fn serve_shows_a_run_while_it_goes_on_to_this_machine_only() {
    let project = project("");
    let (mut child, id) = started(&project, "0.4");
    let server = serve(&project);
    let index = server.get("/");
    assert!(
        index.starts_with("HTTP/1.1 200 OK") && index.contains(&id) && index.contains("running"),
        "{index}"
    );
    let live = server.get(&format!("/runs/{id}"));
    assert!(
        live.contains("EventSource") && live.contains("running "),
        "{live}"
    );
    let events = server.get(&format!("/runs/{id}/events"));
    assert!(
        events.contains("event: more") && events.ends_with("event: end\ndata: \n\n"),
        "{events}"
    );
    assert!(child.0.wait().unwrap().success());
    let ended = server.get(&format!("/runs/{id}?with={id}"));
    assert!(
        !ended.contains("<script") && ended.contains("train/loss"),
        "{ended}"
    );
    // the same page as the report's
    project.recipe("report last --html report.html").code(0);
    let page = project.read("report.html");
    let main =
        |text: &str| text[text.find("<main>").unwrap()..text.find("</main>").unwrap()].to_owned();
    assert_eq!(main(&page), main(&server.get(&format!("/runs/{id}"))));

    let status = |request: String| {
        let mut line = String::new();
        BufReader::new(server.ask(&request))
            .read_line(&mut line)
            .unwrap();
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    let port = server.port;
    let host = format!("Host: 127.0.0.1:{port}\r\n\r\n");
    assert_eq!(
        status(format!(
            "GET / HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n"
        )),
        "403"
    );
    assert_eq!(status(format!("POST / HTTP/1.1\r\n{host}")), "405");
    for path in [
        "/nosuch",
        "/runs/nosuch",
        "/runs/..",
        "/runs/%2e%2e",
        "/runs/nosuch/events",
        "/runs/last",
    ] {
        let wanted = if path == "/runs/last" { "200" } else { "404" };
        assert_eq!(
            status(format!("GET {path} HTTP/1.1\r\n{host}")),
            wanted,
            "{path}"
        );
    }
    assert_eq!(status("nonsense\r\n\r\n".to_owned()), "400");
    let taken = ran(project.command(&format!("serve --port {port}"))).code(2);
    assert!(
        taken.err.contains("choose another port with --port"),
        "{}",
        taken.err
    );
}
