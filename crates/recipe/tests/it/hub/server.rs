//! A hub on two hosts, as the real one: the hub itself, which knows tokens, commits and names of content, and a CDN that
//! serves large files to whoever has a signed address, and refuses requests that carry a token as well.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// A token whose account may read gated repositories, and one whose may not.
pub const MEMBER: &str = "hf_member_0d5f";
pub const STRANGER: &str = "hf_stranger_77aa";
/// What an address of the CDN must hold.
const SIGNATURE: &str = "5ec3e7";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `hub` or `cdn`.
    pub host: &'static str,
    pub method: String,
    pub path: String,
    pub token: Option<String>,
    pub range: Option<String>,
}

#[derive(Default)]
pub struct Repo {
    pub gated: bool,
    /// Commits by revision.
    pub revisions: BTreeMap<String, String>,
    /// Files by commit.
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

#[derive(Default)]
pub struct State {
    /// By `models/owner/name` or `datasets/owner/name`.
    pub repos: BTreeMap<String, Repo>,
    /// Files below `/files/` of the hub's host, for plain URLs.
    pub files: BTreeMap<String, Vec<u8>>,
    pub seen: Vec<Seen>,
    /// Answers of the CDN that break off after so many bytes, one after the other.
    pub cuts: Vec<usize>,
    /// The CDN answers 503.
    pub down: bool,
    /// The CDN serves other bytes than the address says.
    pub damage: bool,
    /// The CDN takes no notice of ranges.
    pub no_ranges: bool,
}

pub struct Hub {
    pub url: String,
    cdn: String,
    state: Mutex<State>,
}

impl Hub {
    pub fn start() -> Arc<Hub> {
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, cdn) = (listen(), listen());
        let port = |of: &TcpListener| of.local_addr().unwrap().port();
        let shared = Arc::new(Hub {
            url: format!("http://127.0.0.1:{}", port(&hub)),
            // another host, as clients see it
            cdn: format!("http://localhost:{}", port(&cdn)),
            state: Mutex::default(),
        });
        for (listener, host) in [(hub, "hub"), (cdn, "cdn")] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let shared = shared.clone();
                    std::thread::spawn(move || while shared.answer(&stream, host).is_some() {});
                }
            });
        }
        shared
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A new commit of a repository, which its revision stands for from now on; its name.
    pub fn commit(&self, repo: &str, revision: &str, files: &[(&str, &[u8])]) -> String {
        let mut state = self.state();
        let repo = state.repos.entry(repo.to_owned()).or_default();
        let name = format!("{:040x}", 0xc0ffee + repo.commits.len());
        let files = files.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec()));
        repo.commits.insert(name.clone(), files.collect());
        repo.revisions.insert(revision.to_owned(), name.clone());
        name
    }

    /// Takes what was asked since the last time.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// Answers one request; none at the end of the connection.
    fn answer(&self, mut stream: &TcpStream, host: &'static str) -> Option<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let headers: Vec<(String, String)> = lines
            .map_while(Result::ok)
            .take_while(|l| !l.is_empty())
            .filter_map(|l| {
                l.split_once(':')
                    .map(|(k, v)| (k.to_lowercase(), v.trim().to_owned()))
            })
            .collect();
        let header = |name: &str| {
            headers
                .iter()
                .find(|(k, _)| k == name)
                .map(|(_, v)| v.clone())
        };
        let mut words = first.split(' ');
        let seen = Seen {
            host,
            method: words.next()?.to_owned(),
            path: words.next()?.to_owned(),
            token: header("authorization").map(|a| a.trim_start_matches("Bearer ").to_owned()),
            range: header("range"),
        };
        let mut state = self.state();
        state.seen.push(seen.clone());
        let mut answer = match host {
            "hub" => self.hub(&state, &seen),
            _ => cdn(&state, &seen),
        };
        let range = seen
            .range
            .as_deref()
            .filter(|_| answer.ranges && !state.no_ranges);
        let same = header("if-range").is_none_or(|name| answer.headers.contains(&("ETag", name)));
        if let (200, Some(range), true) = (answer.status, range, same) {
            let from: usize = range
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .ok()?;
            let size = answer.body.len();
            if from >= size {
                answer = Answer::status(416);
            } else {
                let content = format!("bytes {from}-{}/{size}", size - 1);
                answer.headers.push(("Content-Range", content));
                answer.body.drain(..from);
                answer.status = 206;
            }
        }
        let cut = (host == "cdn"
            && seen.method == "GET"
            && answer.status < 300
            && !state.cuts.is_empty())
        .then(|| state.cuts.remove(0));
        drop(state);
        let mut head = format!(
            "HTTP/1.1 {} X\r\nContent-Length: {}\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        if seen.method != "HEAD" {
            let n = cut.unwrap_or(answer.body.len()).min(answer.body.len());
            stream.write_all(&answer.body[..n]).ok()?;
        }
        if cut.is_some() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return None;
        }
        Some(())
    }

    fn hub(&self, state: &State, seen: &Seen) -> Answer {
        let path = seen.path.split('?').next().unwrap_or_default();
        if let Some(name) = path.strip_prefix("/files/") {
            return match state.files.get(name) {
                Some(bytes) => Answer::file(bytes.clone(), git_name(bytes)),
                None => Answer::status(404),
            };
        }
        if let Some(name) = path.strip_prefix("/elsewhere/") {
            let to = format!("{}/plain/{name}", self.cdn);
            return Answer::status(302).with("Location", to);
        }
        if let Some(rest) = path.strip_prefix("/api/") {
            let (repo, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
            return match lookup(state, repo, revision, seen) {
                Err(answer) => answer,
                Ok((commit, files)) => {
                    let siblings: Vec<_> = files
                        .keys()
                        .map(|f| serde_json::json!({ "rfilename": f }))
                        .collect();
                    let id = repo.split_once('/').map_or(repo, |(_, id)| id);
                    let info = serde_json::json!({ "id": id, "sha": commit, "siblings": siblings });
                    Answer::status(200).body(info.to_string().into_bytes())
                }
            };
        }
        let Some((repo, rest)) = path.trim_start_matches('/').split_once("/resolve/") else {
            return Answer::status(404);
        };
        // a repository that was renamed
        if repo == "org/old" {
            return Answer::status(307).with("Location", seen.path.replace("org/old", "org/tiny"));
        }
        let repo = match repo.strip_prefix("datasets/") {
            Some(id) => format!("datasets/{id}"),
            None => format!("models/{repo}"),
        };
        let (revision, file) = rest.split_once('/').unwrap_or((rest, ""));
        let (commit, files) = match lookup(state, &repo, revision, seen) {
            Err(answer) => return answer,
            Ok(found) => found,
        };
        if state.repos[&repo].gated && seen.token.as_deref() != Some(MEMBER) {
            let status = if seen.token.is_none() { 401 } else { 403 };
            let message = "Access to this model is restricted.".to_owned();
            let answer = Answer::status(status).with("X-Error-Code", "GatedRepo".into());
            return answer.with("X-Error-Message", message);
        }
        let Some(bytes) = files.get(file) else {
            return Answer::status(404).with("X-Error-Code", "EntryNotFound".into());
        };
        let answer = if bytes.len() < 1000 {
            Answer::file(bytes.clone(), git_name(bytes))
        } else {
            let name = sha256(bytes);
            let to = format!(
                "{}/blobs/{name}?X-Amz-Signature={SIGNATURE}&Expires=3600",
                self.cdn
            );
            Answer::status(302)
                .with("Location", to)
                .with("X-Linked-Etag", format!("\"{name}\""))
                .with("X-Linked-Size", bytes.len().to_string())
                .with("ETag", format!("\"{}\"", git_name(name.as_bytes())))
        };
        answer.with("X-Repo-Commit", commit)
    }
}

/// The commit and files of a revision, or why they are not told.
fn lookup(
    state: &State,
    repo: &str,
    revision: &str,
    seen: &Seen,
) -> Result<(String, BTreeMap<String, Vec<u8>>), Answer> {
    let known = |t: &str| t == MEMBER || t == STRANGER;
    if seen.token.as_deref().is_some_and(|t| !known(t)) {
        let message = "Invalid credentials in Authorization header".to_owned();
        return Err(Answer::status(401).with("X-Error-Message", message));
    }
    let Some(repo) = state.repos.get(repo) else {
        let status = if seen.token.is_none() { 401 } else { 404 };
        return Err(Answer::status(status).with("X-Error-Code", "RepoNotFound".into()));
    };
    let commit = repo
        .revisions
        .get(revision)
        .cloned()
        .unwrap_or_else(|| revision.to_owned());
    match repo.commits.get(&commit) {
        Some(files) => Ok((commit, files.clone())),
        None => Err(Answer::status(404).with("X-Error-Code", "RevisionNotFound".into())),
    }
}

fn cdn(state: &State, seen: &Seen) -> Answer {
    if state.down {
        return Answer::status(503);
    }
    // as object stores do with a signed address and another authorization
    if seen.token.is_some() {
        return Answer::status(400);
    }
    if let Some(name) = seen.path.strip_prefix("/plain/") {
        return match state.files.get(name) {
            Some(bytes) => Answer::file(bytes.clone(), git_name(bytes)),
            None => Answer::status(404),
        };
    }
    // the signature is for GET alone
    let signed = seen.path.contains(&format!("X-Amz-Signature={SIGNATURE}&"));
    if !signed || seen.method != "GET" {
        return Answer::status(403);
    }
    let name = seen
        .path
        .trim_start_matches("/blobs/")
        .split('?')
        .next()
        .unwrap_or_default();
    let all = state
        .repos
        .values()
        .flat_map(|r| r.commits.values())
        .flat_map(|c| c.values());
    match { all }.find(|bytes| sha256(bytes) == name) {
        Some(bytes) => {
            let mut bytes = bytes.clone();
            if state.damage {
                bytes[0] ^= 1;
            }
            Answer::file(bytes, format!("cdn-{name}"))
        }
        None => Answer::status(404),
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    ranges: bool,
}

impl Answer {
    fn status(status: u16) -> Answer {
        Answer {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            ranges: false,
        }
    }

    fn file(body: Vec<u8>, name: String) -> Answer {
        let answer = Answer::status(200)
            .body(body)
            .with("ETag", format!("\"{name}\""));
        Answer {
            ranges: true,
            ..answer
        }
    }

    fn with(mut self, name: &'static str, value: String) -> Answer {
        self.headers.push((name, value));
        self
    }

    fn body(mut self, body: Vec<u8>) -> Answer {
        self.body = body;
        self
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// What git calls a file's content.
pub fn git_name(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
