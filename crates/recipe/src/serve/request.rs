//! A request as far as it is understood: GET, a path, and whose name it was sent to.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

/// A head longer than this is refused, and one that takes longer to come.
const LONGEST: usize = 16 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
const HEADERS: usize = 64;

pub struct Request {
    /// Without what follows a question mark.
    pub path: String,
    /// Values of `with` in the query.
    pub with: Vec<String>,
}

pub enum Refused {
    /// There is nobody to answer.
    Gone(std::io::Error),
    Status(u16, &'static str),
}

impl Request {
    pub fn read(mut stream: &TcpStream, port: u16) -> Result<Request, Refused> {
        stream
            .set_read_timeout(Some(PATIENCE))
            .map_err(Refused::Gone)?;
        stream
            .set_write_timeout(Some(PATIENCE))
            .map_err(Refused::Gone)?;
        let mut bytes = Vec::new();
        loop {
            let mut part = [0; 2048];
            match stream.read(&mut part) {
                Ok(0) => return Err(Refused::Gone(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => bytes.extend_from_slice(&part[..n]),
                Err(e) => return Err(Refused::Gone(e)),
            }
            if bytes.len() > LONGEST {
                return Err(Refused::Status(431, "the request is too long"));
            }
            if let Some(request) = Request::parse(&bytes, port)? {
                return Ok(request);
            }
        }
    }

    /// None while the head is not whole.
    fn parse(bytes: &[u8], port: u16) -> Result<Option<Request>, Refused> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(Refused::Status(400, "this is no HTTP request")),
        }
        let mut hosts = request
            .headers
            .iter()
            .filter(|h| h.name.eq_ignore_ascii_case("host"));
        let host = hosts.next().and_then(|h| std::str::from_utf8(h.value).ok());
        if hosts.next().is_some() || !host.is_some_and(|host| is_here(host, port)) {
            return Err(Refused::Status(
                403,
                "only this machine's own names are answered",
            ));
        }
        if request.method != Some("GET") {
            return Err(Refused::Status(405, "pages can only be read"));
        }
        let target = request.path.unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let with = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("with="));
        Ok(Some(Request {
            path: path.to_owned(),
            with: with.map(str::to_owned).collect(),
        }))
    }
}

/// Whether a Host header names this machine: an address or a name that no other can have.
fn is_here(host: &str, port: u16) -> bool {
    let (name, given) = host.rsplit_once(':').unwrap_or((host, "80"));
    given == port.to_string() && (name == "127.0.0.1" || name.eq_ignore_ascii_case("localhost"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Request>, u16> {
        Request::parse(text.as_bytes(), 7878).map_err(|refused| match refused {
            Refused::Status(status, _) => status,
            Refused::Gone(_) => 0,
        })
    }

    #[test]
    fn only_reading_and_only_for_this_machine() {
        let request = parse("GET /runs/a?with=b&with=c HTTP/1.1\r\nHost: localhost:7878\r\n\r\n");
        let request = request.unwrap().unwrap();
        assert_eq!(
            (request.path.as_str(), request.with),
            ("/runs/a", vec!["b".into(), "c".into()])
        );
        assert!(parse("GET / HTTP/1.1\r\nHost: local").unwrap().is_none());
        for (host, status) in [
            ("Host: evil.example:7878\r\n", 403),
            ("Host: 127.0.0.1:80\r\n", 403),
            ("Host: 127.0.0.1\r\n", 403),
            ("Host: 127.0.0.1.evil.example:7878\r\n", 403),
            ("Host: 127.0.0.1:7878\r\nHost: evil.example:7878\r\n", 403),
            ("", 403),
        ] {
            assert_eq!(
                parse(&format!("GET / HTTP/1.1\r\n{host}\r\n")).err(),
                Some(status),
                "{host}"
            );
        }
        let post = parse("POST / HTTP/1.1\r\nHost: 127.0.0.1:7878\r\n\r\n");
        assert_eq!(post.err(), Some(405));
        assert_eq!(parse("\u{1}\u{2}\r\n\r\n").err(), Some(400));
    }
}
