//! JSON over HTTP, one request at a time, each with a deadline.

use std::time::Duration;

use serde_json::Value;

use super::Failure;

/// A whole request with its answer, and the connection alone.
const DEADLINE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
/// Characters of a refusal that are told.
const SHOWN: usize = 200;

/// A client of one server, and the thread's own runtime for it.
pub struct Http {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    authorization: Option<Authorization>,
}

/// What a server is told about who asks; never written down.
pub enum Authorization {
    Token(String),
    Basic { user: String, password: String },
}

/// What a server answered.
pub struct Answer {
    pub status: u16,
    /// Null where it is no JSON.
    pub body: Value,
}

impl Http {
    pub fn new(authorization: Option<Authorization>) -> Result<Http, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start the network runtime: {e}"))?;
        let client = reqwest::Client::builder()
            .timeout(DEADLINE)
            .connect_timeout(CONNECT)
            .user_agent(concat!("recipe/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("cannot make a client: {}", reason(&e)))?;
        Ok(Http {
            runtime,
            client,
            authorization,
        })
    }

    /// Asks; an answer of any status is one.
    pub fn get(&self, url: &str) -> Result<Answer, Failure> {
        self.send(self.client.get(url))
    }

    /// Sends a JSON value.
    pub fn post(&self, url: &str, body: &Value) -> Result<Answer, Failure> {
        let request = self.client.post(url);
        let request = request.header("content-type", "application/json");
        self.send(request.body(body.to_string()))
    }

    fn send(&self, request: reqwest::RequestBuilder) -> Result<Answer, Failure> {
        let request = match &self.authorization {
            Some(Authorization::Token(token)) => request.bearer_auth(token),
            Some(Authorization::Basic { user, password }) => {
                request.basic_auth(user, Some(password))
            }
            None => request,
        };
        self.runtime.block_on(async {
            let later = |e: reqwest::Error| Failure::Later(reason(&e));
            let answer = request.send().await.map_err(later)?;
            let status = answer.status().as_u16();
            let bytes = answer.bytes().await.map_err(later)?;
            let body = serde_json::from_slice(&bytes);
            let body = body.unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into());
            Ok(Answer { status, body })
        })
    }
}

impl Answer {
    /// The answer where the server did what was asked.
    pub fn accepted(self) -> Result<Value, Failure> {
        if self.status < 300 {
            return Ok(self.body);
        }
        let said = self.body["message"].as_str().or(self.body.as_str());
        let said: String = said.unwrap_or_default().chars().take(SHOWN).collect();
        let text = format!("the server answers {}: {}", self.status, said.trim());
        match self.status {
            408 | 425 | 429 | 500.. => Err(Failure::Later(text)),
            _ => Err(Failure::Never(text)),
        }
    }
}

/// The innermost cause, which says what happened; without the URL.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        let seconds = if error.is_connect() {
            CONNECT
        } else {
            DEADLINE
        }
        .as_secs();
        return format!("the server does not answer within {seconds} s");
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    format!("the server cannot be reached: {cause}")
}
