//! Writing to the terminal: a closed pipe is no error, colour only where someone sees it.

use std::io::{IsTerminal, Write};

/// Writes to stdout and adds a newline.
pub fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    // a reader that closed the pipe (`| head`) has seen what it wanted
    let _ = writeln!(out, "{}", text.as_ref());
}

/// Writes bytes to stdout as they are.
pub fn bytes(bytes: &[u8]) {
    let _ = std::io::stdout().lock().write_all(bytes);
}

/// A JSON value on stdout, indented.
pub fn json(value: &serde_json::Value) {
    line(format!("{value:#}"));
}

/// Writes an error report to stderr, its first word in red.
pub fn error(report: &str) {
    let mut err = std::io::stderr().lock();
    let text = match report.split_once(": ") {
        Some((head, rest)) if colour(&std::io::stderr()) => {
            format!("{}: {rest}", Colour::Red.paint(head))
        }
        _ => report.to_owned(),
    };
    let _ = writeln!(err, "{text}");
}

/// Whether a stream shows colours.
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// The few colours in use.
#[derive(Clone, Copy)]
pub enum Colour {
    Red,
    Green,
    Yellow,
    Dim,
}

impl Colour {
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Red => "31;1",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Turns a panic into a report: it is an error in `recipe` itself, whatever the input was.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let what = payload
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        let place = info
            .location()
            .map_or_else(String::new, |l| format!(" ({}:{})", l.file(), l.line()));
        error(&crate::fail::text(
            spec::codes::INTERNAL,
            &format!("internal error: {what}{place}"),
            Some(concat!(
                "this is a mistake in recipe ",
                env!("CARGO_PKG_VERSION"),
                ", please report it with the command and the recipe; the store is unharmed"
            )),
        ));
    }));
}
