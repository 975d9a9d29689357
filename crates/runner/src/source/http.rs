//! Files over HTTP: what a server says of one, and a download that goes on where it broke.
//!
//! A token goes to the host that was asked, and to no host that it redirects to. Addresses that servers redirect to may
//! carry signatures, so no error tells them.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode};
use url::Url;

/// Attempts that bring nothing, one after the other, before a download fails.
const TRIES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Silence after which a connection counts as broken.
const SILENCE: Duration = Duration::from_secs(60);
/// Redirects within one host that are followed to learn about a file.
const REDIRECTS: usize = 10;

/// Why a server did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the server answers {status}{}", .message.as_deref().map(|m| format!(": {m}")).unwrap_or_default())]
    Status {
        status: u16,
        /// The hub's name for what is wrong, such as `GatedRepo`.
        code: Option<String>,
        message: Option<String>,
    },
    /// No answer, or one that broke off.
    #[error("{0}")]
    Transport(String),
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

impl Failure {
    /// Whether the same request may do better later.
    fn may_pass(&self) -> bool {
        match self {
            Failure::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Failure::Transport(_) => true,
            Failure::Write(_) => false,
        }
    }
}

/// What a server says of a file without sending it.
pub struct Head {
    /// The content's name: of what is elsewhere, that of the place it is at.
    pub etag: Option<String>,
    pub size: Option<u64>,
    /// Stored in pieces that the hub's own protocol fetches faster.
    pub in_pieces: bool,
}

/// Makes requests; shared by threads.
pub struct Client {
    /// Follows redirects.
    following: reqwest::Client,
    /// Does not.
    plain: reqwest::Client,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    pub fn new() -> Result<Client, Failure> {
        let client = |policy| {
            reqwest::Client::builder()
                .user_agent(concat!("recipe/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(Duration::from_secs(30))
                .read_timeout(SILENCE)
                .redirect(policy)
                .build()
                .map_err(transport)
        };
        Ok(Client {
            following: client(Policy::limited(REDIRECTS))?,
            plain: client(Policy::none())?,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?,
        })
    }

    /// Asks about a file. Follows redirects within the host only: one to another host is where the content is, and the
    /// answer that names it tells of the content.
    pub fn head(&self, url: &Url, token: Option<&str>) -> Result<Head, Failure> {
        let response = self.patiently(|| self.runtime.block_on(self.head_once(url, token)))?;
        let headers = response.headers();
        Ok(Head {
            etag: text(headers, "x-linked-etag")
                .or_else(|| text(headers, "etag"))
                .map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned()),
            size: text(headers, "x-linked-size")
                .or_else(|| text(headers, "content-length"))
                .and_then(|n| n.parse().ok()),
            in_pieces: headers.contains_key("x-xet-hash"),
        })
    }

    async fn head_once(&self, url: &Url, token: Option<&str>) -> Result<Response, Failure> {
        let mut url = url.clone();
        for _ in 0..REDIRECTS {
            let mut request = self.plain.request(Method::HEAD, url.clone());
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            let response = request.send().await.map_err(transport)?;
            if !response.status().is_redirection() {
                return checked(response).await;
            }
            let location = text(response.headers(), "location");
            match location.and_then(|to| url.join(&to).ok()) {
                Some(next) if next.origin() == url.origin() => url = next,
                _ => return Ok(response),
            }
        }
        Err(Failure::Transport("too many redirects".into()))
    }

    /// Brings a file to `to`, after what is there of it already; `size` is what it must come to, where that is known.
    /// Whether the bytes are the right ones is for the caller to check.
    pub fn get(
        &self,
        url: &Url,
        token: Option<&str>,
        to: &Path,
        size: Option<u64>,
    ) -> Result<(), Failure> {
        let mut file = OpenOptions::new().append(true).create(true).open(to)?;
        let mut tries = 0;
        // what the content is called, so that no other content is put behind what came of it
        let mut name: Option<String> = None;
        loop {
            let before = file.metadata()?.len();
            if size.is_some_and(|size| before > size) {
                file.set_len(0)?;
                continue;
            }
            if size.is_some_and(|size| before == size && before > 0) {
                return Ok(());
            }
            let failure = match self
                .runtime
                .block_on(self.get_once(url, token, &mut file, &mut name))
            {
                Ok(()) => match size {
                    Some(size) if file.metadata()?.len() != size => {
                        let came = file.metadata()?.len();
                        Failure::Transport(format!("{came} of {size} bytes came"))
                    }
                    _ => return Ok(()),
                },
                Err(failure) => failure,
            };
            if !failure.may_pass() {
                return Err(failure);
            }
            tries = if file.metadata()?.len() > before {
                1
            } else {
                tries + 1
            };
            if tries >= TRIES {
                return Err(failure);
            }
            std::thread::sleep(FIRST_PAUSE * 2u32.pow(tries - 1));
        }
    }

    async fn get_once(
        &self,
        url: &Url,
        token: Option<&str>,
        file: &mut File,
        name: &mut Option<String>,
    ) -> Result<(), Failure> {
        let from = file.metadata()?.len();
        let mut request = self.following.get(url.clone());
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
            if let Some(name) = name {
                request = request.header("if-range", name.as_str());
            }
        }
        let response = request.send().await.map_err(transport)?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && from > 0 {
            file.set_len(0)?;
            return Err(Failure::Transport(
                "the server has less than what came before".into(),
            ));
        }
        let mut response = checked(response).await?;
        // a weak name does not promise the same bytes
        *name = text(response.headers(), "etag").filter(|tag| !tag.starts_with("W/"));
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && text(response.headers(), "content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {from}-")));
        if from > 0 && !goes_on {
            if response.status() == StatusCode::PARTIAL_CONTENT {
                file.set_len(0)?;
                return Err(Failure::Transport(
                    "the server sent another range than was asked for".into(),
                ));
            }
            file.set_len(0)?;
        }
        while let Some(bytes) = response.chunk().await.map_err(transport)? {
            file.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Repeats a request that may do better later.
    fn patiently<T>(&self, mut ask: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut tries = 1;
        loop {
            match ask() {
                Err(failure) if failure.may_pass() && tries < TRIES => {
                    std::thread::sleep(FIRST_PAUSE * 2u32.pow(tries - 1));
                    tries += 1;
                }
                other => return other,
            }
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// An answer that is a success.
async fn checked(response: Response) -> Result<Response, Failure> {
    if response.status().is_success() {
        return Ok(response);
    }
    Err(Failure::Status {
        status: response.status().as_u16(),
        code: text(response.headers(), "x-error-code"),
        message: text(response.headers(), "x-error-message"),
    })
}

/// The causes of a transport error, without addresses.
fn transport(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(e) = cause {
        text = format!("{text}: {}", redact(&e.to_string()));
        cause = e.source();
    }
    Failure::Transport(text)
}

/// A text with what addresses in it carry behind their path taken out: signatures are there.
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let end = rest[at..]
            .find(|c: char| c.is_whitespace() || matches!(c, ')' | '\'' | '"' | '>'))
            .map_or(rest.len(), |n| at + n);
        let address = &rest[..end];
        match address[at..].find(['?', '#']) {
            Some(query) => {
                out.push_str(&address[..at + query]);
                out.push_str("?..");
            }
            None => out.push_str(address),
        }
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn signatures_are_not_told() {
        let text = "error sending request for url (https://cdn.x/a/b?X-Sig=secret&y=1): timed out; see http://h/x";
        assert_eq!(
            redact(text),
            "error sending request for url (https://cdn.x/a/b?..): timed out; see http://h/x"
        );
        assert_eq!(redact("no address"), "no address");
    }
}
