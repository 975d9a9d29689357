//! Text as it stands in HTML.

/// Escaped, also for an attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// At most so many characters.
pub fn short(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The style's class of a state.
pub fn class(state: &str) -> &'static str {
    match state {
        "failed" | "assertion_failed" | "killed" => "bad",
        "ran" | "reused" | "adopted" => "good",
        "running" => "live",
        "stopped" => "warn",
        _ => "dim",
    }
}

/// A state in a frame of its colour.
pub fn pill(class: &str, text: &str) -> String {
    format!("<span class=\"pill {class}\">{}</span>", escape(text))
}
