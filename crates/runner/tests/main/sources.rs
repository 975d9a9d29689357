//! Sources over the network, from a server of our own that speaks enough of the hub's HTTP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::project::{Project, Ran, ran};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves a model `org/tiny` at any revision, and the same files below `/files/`.
struct Server {
    url: String,
    /// Request lines, in order.
    asked: Arc<Mutex<Vec<String>>>,
    files: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let files = BTreeMap::from([
            ("config.json", "{}".to_owned()),
            ("model.safetensors", "weights".to_owned()),
            ("pytorch_model.bin", "the same weights".to_owned()),
        ]);
        let server = Server {
            url,
            asked: Arc::default(),
            files: Arc::new(Mutex::new(files)),
        };
        let (asked, files) = (server.asked.clone(), server.files.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (asked, files) = (asked.clone(), files.clone());
                std::thread::spawn(move || while answer(&stream, &asked, &files).is_some() {});
            }
        });
        server
    }
}

/// Answers one request; `None` at the end of the connection.
fn answer(
    mut stream: &TcpStream,
    asked: &Mutex<Vec<String>>,
    files: &Mutex<BTreeMap<&'static str, String>>,
) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|l| !l.is_empty())
        .collect();
    let range = headers.iter().find_map(|h| {
        let (name, value) = h.split_once(": bytes=")?;
        let (from, to) = value.split_once('-')?;
        name.eq_ignore_ascii_case("range")
            .then(|| (from.parse::<usize>().ok(), to.parse::<usize>().ok()))
    });
    asked.lock().unwrap().push(first.clone());
    let mut words = first.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let path = path.split('?').next()?;
    let files = files.lock().unwrap();
    let (status, mut body) = if path.starts_with("/api/models/org/tiny/tree/") {
        let tree: Vec<_> = files
            .iter()
            .map(|(name, text)| serde_json::json!({"type": "file", "oid": "0", "size": text.len(), "path": name}))
            .collect();
        (200, serde_json::to_string(&tree).unwrap())
    } else if path.starts_with("/api/models/org/tiny") {
        let siblings: Vec<_> = files
            .keys()
            .map(|name| serde_json::json!({"rfilename": name}))
            .collect();
        (
            200,
            serde_json::json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).to_string(),
        )
    } else {
        let name = path.rsplit('/').next()?;
        let served = path.starts_with("/files/") || path.contains("/resolve/");
        match files.get(name).filter(|_| served) {
            Some(text) => (200, text.clone()),
            None => (404, String::new()),
        }
    };
    let etag = blake3::hash(body.as_bytes()).to_hex();
    let (mut status, mut extra) = (status, String::new());
    if let (200, Some((from, to))) = (status, range) {
        let (from, to) = (
            from.unwrap_or(0),
            to.map_or(body.len(), |t| t + 1).min(body.len()),
        );
        extra = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, body.len());
        body = body[from..to].to_owned();
        status = 206;
    }
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\n{extra}\
         Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n{}",
        body.len(),
        if method == "HEAD" { "" } else { &body }
    )
    .ok()
}

fn project(source: &str) -> Project {
    Project::new(&format!(
        "[recipe]\nname = \"net\"\nschema = 1\n[source.x]\n{source}\n[stage.a]\nkind = \"command\"\nin.x = \"source.x\"\n\
         cmd = [\"sh\", \"-c\", \"cd $IN_x 2>/dev/null && ls > $OUT_out && cat * >> $OUT_out || cat $IN_x > $OUT_out\"]\n\
         out = [\"out\"]\n"
    ))
}

fn online(p: &Project, server: &Server, env: &[(&str, &str)]) -> Ran {
    let mut command = p.command(&[]);
    command
        .env("HF_ENDPOINT", &server.url)
        .env("HF_HOME", p.path("hf"))
        .env_remove("HF_HUB_OFFLINE");
    command
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_TOKEN")
        .env("NO_PROXY", "127.0.0.1")
        .env("no_proxy", "127.0.0.1");
    command.envs(env.iter().copied());
    ran(command)
}

#[test]
fn the_hub_is_pinned_to_a_commit_and_asked_once() {
    let server = Server::start();
    let p = project("hf = \"org/tiny\"");
    let first = online(&p, &server, &[]);
    assert_eq!(
        first.code,
        0,
        "{} {:?}",
        first.stderr,
        server.asked.lock().unwrap()
    );
    assert_eq!(
        p.output(&first, "a", "out"),
        "config.json\nmodel.safetensors\n{}weights"
    );
    let lock = p.read("recipe.lock");
    assert!(
        lock.contains(COMMIT)
            && lock.contains("hf = \"org/tiny\"")
            && lock.contains("revision = \"main\""),
        "{lock}"
    );
    let asked = server.asked.lock().unwrap().len();
    assert!(
        !server
            .asked
            .lock()
            .unwrap()
            .iter()
            .any(|l| l.contains("pytorch_model.bin")),
        "other formats are left out"
    );

    // Pinned: neither a reused stage nor one that runs again asks the network.
    assert_eq!(online(&p, &server, &[]).status("a"), "reused");
    let mut forced = p.command(&["--force", "a"]);
    forced
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env("HF_HOME", p.path("hf"))
        .env("HF_HUB_OFFLINE", "1");
    let forced = ran(forced);
    assert_eq!(
        (forced.code, forced.status("a")),
        (0, "ran"),
        "{}",
        forced.stderr
    );
    assert_eq!(server.asked.lock().unwrap().len(), asked);

    // A cache that was tampered with is not served.
    server
        .files
        .lock()
        .unwrap()
        .insert("config.json", "{\"changed\": 1}".into());
    std::fs::remove_dir_all(p.path("hf")).unwrap();
    let mut again = p.command(&["--force", "a"]);
    again
        .env("HF_ENDPOINT", &server.url)
        .env("HF_HOME", p.path("hf"))
        .env("no_proxy", "127.0.0.1");
    let again = ran(again);
    assert_eq!(again.code, 5);
    assert!(
        again.stage("a")["error"]["message"]
            .as_str()
            .unwrap()
            .contains("recipe.lock pins")
    );
}

#[test]
fn the_hub_says_what_is_wrong() {
    let server = Server::start();
    let absent = online(&project("hf = \"org/absent\""), &server, &[]);
    assert!(
        absent.code == 2 && absent.stderr.contains("org/absent"),
        "{}",
        absent.stderr
    );
    let offline = online(
        &project("hf = \"org/tiny\""),
        &server,
        &[("HF_HUB_OFFLINE", "1")],
    );
    assert!(
        offline.code == 4 && offline.stderr.contains("not in the hub cache"),
        "{}",
        offline.stderr
    );
}

#[test]
fn urls_are_fetched_once_into_the_store() {
    let server = Server::start();
    let p = project(&format!("url = \"{}/files/config.json\"", server.url));
    let first = online(&p, &server, &[]);
    assert_eq!(
        first.code,
        0,
        "{} {:?}",
        first.stderr,
        server.asked.lock().unwrap()
    );
    assert_eq!(p.output(&first, "a", "out"), "{}");
    let asked = server.asked.lock().unwrap().len();
    let mut forced = p.command(&["--force", "a"]);
    forced.env("no_proxy", "127.0.0.1");
    assert_eq!(ran(forced).status("a"), "ran");
    assert_eq!(
        server.asked.lock().unwrap().len(),
        asked,
        "the store has it"
    );
    let none = online(
        &project(&format!("url = \"{}/files/none\"", server.url)),
        &server,
        &[],
    );
    assert!(
        none.code == 2 && none.stderr.contains("/files/none"),
        "{}",
        none.stderr
    );
}
