//! A small HTTP server for people on this machine: the list of runs, a run's page, and a stream of
//! events that says when there is more to see.
//!
//! | path | what |
//! |---|---|
//! | `/` | the runs, newest first |
//! | `/runs/ID` | the page of `recipe report`; `?with=ID` lays another run's curves over it |
//! | `/runs/ID/events` | server-sent events: `more` when the run wrote something, `end` when it ended |
//!
//! It listens on 127.0.0.1 alone and answers requests for this machine's own names alone, so that a
//! page from elsewhere whose name was bent to this address (DNS rebinding) reads nothing. It only
//! ever reads the store.

mod live;
mod pages;
mod request;

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cache::Store;

use crate::fail::Fail;
use crate::past::Reader;
use request::{Refused, Request};

/// Where it listens if that is free.
const PORT: u16 = 7878;
/// Connections at once; more are turned away.
const MOST: usize = 64;

pub struct Server {
    listener: TcpListener,
    port: u16,
    shared: Arc<Shared>,
}

/// What all connections share.
struct Shared {
    store: Store,
    /// One page is made at a time: what was read for one is remembered for the next.
    reader: Mutex<Reader>,
    connections: AtomicUsize,
}

impl Server {
    /// Takes a port: the one that is asked for, or any where the usual one is taken.
    pub fn bind(store: Store, asked: Option<u16>) -> Result<Server, Fail> {
        let at = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let listener = match asked {
            Some(port) => at(port),
            None => at(PORT).or_else(|_| at(0)),
        };
        let bound = listener.and_then(|l| Ok((l.local_addr()?.port(), l)));
        let (port, listener) = bound.map_err(|e| {
            let port = asked.unwrap_or(PORT);
            let what = format!("cannot listen on 127.0.0.1:{port}: {e}");
            Fail::usage(
                what,
                "choose another port with --port; 0 takes any that is free",
            )
        })?;
        let shared = Arc::new(Shared {
            reader: Mutex::new(Reader::new(store.clone())),
            store,
            connections: AtomicUsize::new(0),
        });
        Ok(Server {
            listener,
            port,
            shared,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Answers until the process ends.
    pub fn run(&self) {
        for stream in self.listener.incoming().flatten() {
            let (shared, port) = (Arc::clone(&self.shared), self.port);
            if shared.connections.fetch_add(1, Ordering::SeqCst) >= MOST {
                shared.connections.fetch_sub(1, Ordering::SeqCst);
                let _ = answer(&stream, 503, "text/plain", "too many connections at once\n");
                continue;
            }
            let work = move || {
                // who hung up misses nothing
                let _ = serve(&shared, &stream, port);
                shared.connections.fetch_sub(1, Ordering::SeqCst);
            };
            let started = std::thread::Builder::new().name("serve".into()).spawn(work);
            if let Err(e) = started {
                crate::output::error(&format!("warning: cannot start a thread: {e}"));
            }
        }
    }
}

/// One request on a connection; it is closed afterwards.
fn serve(shared: &Shared, stream: &TcpStream, port: u16) -> std::io::Result<()> {
    let request = match Request::read(stream, port) {
        Ok(request) => request,
        Err(Refused::Gone(e)) => return Err(e),
        Err(Refused::Status(status, why)) => {
            return answer(stream, status, "text/plain", &format!("{why}\n"));
        }
    };
    let parts: Vec<&str> = request.path.split('/').skip(1).collect();
    if let ["runs", id, "events"] = parts[..] {
        return live::stream(shared, stream, id);
    }
    let made = match parts[..] {
        [""] => pages::index(shared),
        ["runs", id] => pages::run(shared, id, &request.with),
        _ => Err(Fail::not_stored(
            "there is no such page",
            "/ lists the runs",
        )),
    };
    match made {
        Ok(html) => answer(stream, 200, "text/html; charset=utf-8", &html),
        Err(fail) => {
            let status = if fail.exit_code() == 2 { 404 } else { 500 };
            answer(
                stream,
                status,
                "text/plain; charset=utf-8",
                &format!("{}\n", fail.report()),
            )
        }
    }
}

/// What a page may do: its own style and script, and ask this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

fn head(status: u16, kind: &str) -> String {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Security-Policy: {POLICY}\r\n\
         X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n\
         Cross-Origin-Resource-Policy: same-origin\r\nCache-Control: no-store\r\nConnection: close\r\n"
    )
}

fn answer(mut stream: &TcpStream, status: u16, kind: &str, body: &str) -> std::io::Result<()> {
    let head = head(status, kind);
    let length = body.len();
    stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes())
}

/// Whether a text can be a run's id: it becomes part of a path.
fn is_id(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !text.is_empty() && text.chars().all(plain) && Path::new(text).components().count() == 1
}
