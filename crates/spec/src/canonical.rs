//! Canonical JSON: one text for one value, so that equal values hash alike.
//!
//! Keys sorted by their bytes, no spaces, numbers in the shortest form that reads back equal, -0.0
//! written as 0.0, strings escaped as serde_json does. Integers and floats stay apart (`1` and
//! `1.0` are two values): typed configuration has already decided which a field is.

use serde_json::{Number, Value};

/// The canonical text of a value.
pub fn text(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// Adds the canonical text of a value.
pub(crate) fn write(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                string(key, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Number(number) => out.push_str(&canonical_number(number)),
        Value::String(text) => string(text, out),
        other => out.push_str(&other.to_string()),
    }
}

/// Adds a string in quotes.
pub(crate) fn string(text: &str, out: &mut String) {
    let plain = |b: u8| b >= 0x20 && b != b'"' && b != b'\\';
    if text.bytes().all(plain) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::to_string(text).expect("a string is JSON"));
    }
}

fn canonical_number(number: &Number) -> String {
    match number.as_f64() {
        Some(0.0) if number.is_f64() => "0.0".to_owned(),
        _ => number.to_string(),
    }
}
