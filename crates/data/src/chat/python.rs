//! What chat templates expect of Python: `json.dumps`, `strftime`, and string methods that
//! minijinja's compatibility layer lacks.

use minijinja::value::{Kwargs, Rest, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use serde_json::Value as Json;

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, the
/// signature that transformers gives the `tojson` filter.
pub fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson of an undefined value",
        ));
    }
    let argument = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let value: Option<Value> = match args.get(at) {
            Some(value) => Some(value.clone()),
            None => kwargs.get(name)?,
        };
        Ok(value.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = argument(1, "indent")?.map(|value| match value.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(usize::try_from(value).unwrap_or(0)),
    });
    let (item, key) = match argument(2, "separators")? {
        Some(pair) => {
            let part = |i: usize| -> Result<String, Error> {
                Ok(pair.get_item(&Value::from(i))?.to_string())
            };
            (part(0)?, part(1)?)
        }
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let sort = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, format!("tojson: {e}")))?;
    let style = Style {
        ascii,
        indent,
        item,
        key,
        sort,
    };
    let mut out = String::new();
    style.write(&mut out, &json, 0);
    Ok(Value::from_safe_string(out))
}

struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

impl Style {
    fn write(&self, out: &mut String, value: &Json, depth: usize) {
        match value {
            Json::Null => out.push_str("null"),
            Json::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Json::Number(n) => match n.as_f64() {
                Some(x) if n.is_f64() => out.push_str(&float(x)),
                _ => out.push_str(&n.to_string()),
            },
            Json::String(text) => self.string(out, text),
            Json::Array(items) => {
                self.list(out, depth, '[', ']', items, |out, item, depth| {
                    self.write(out, item, depth);
                });
            }
            Json::Object(map) => {
                let mut fields: Vec<(&String, &Json)> = map.iter().collect();
                if self.sort {
                    fields.sort_by_key(|(name, _)| *name);
                }
                self.list(out, depth, '{', '}', &fields, |out, (name, item), depth| {
                    self.string(out, name);
                    out.push_str(&self.key);
                    self.write(out, item, depth);
                });
            }
        }
    }

    fn list<T>(
        &self,
        out: &mut String,
        depth: usize,
        open: char,
        close: char,
        items: &[T],
        write: impl Fn(&mut String, &T, usize),
    ) {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(out, depth + 1);
            write(out, item, depth + 1);
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(close);
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

/// `repr` of a Python float: shortest digits, an exponent below 1e-4 and from 1e16 on.
fn float(x: f64) -> String {
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        if plain.contains('.') {
            plain
        } else {
            plain + ".0"
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// `strftime_now(format)` at a fixed moment, Wednesday 1 January 2025 00:00:00: what a template
/// prints must not depend on when it runs, or equal keys would not mean equal tokens. A template's
/// date is given through `chat_template_kwargs` where it matters.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = String::from(chars.next().unwrap_or('%'));
        if code == "-" {
            code.extend(chars.next());
        }
        out.push_str(match code.as_str() {
            "Y" => "2025",
            "y" => "25",
            "m" | "d" => "01",
            "-m" | "-d" | "-j" => "1",
            "j" => "001",
            "B" => "January",
            "b" | "h" => "Jan",
            "A" => "Wednesday",
            "a" => "Wed",
            "w" | "u" => "3",
            "H" | "M" | "S" => "00",
            "-H" | "-M" | "-S" => "0",
            "I" | "-I" => "12",
            "p" => "AM",
            "f" => "000000",
            "Z" | "z" => "",
            "F" => "2025-01-01",
            "T" | "X" => "00:00:00",
            "x" | "D" => "01/01/25",
            "c" => "Wed Jan  1 00:00:00 2025",
            "%" => "%",
            other => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: unknown format '%{other}'"),
                ));
            }
        });
    }
    Ok(out)
}

/// Python methods: minijinja's, and a few strings' more.
pub fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match name {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(text.strip_prefix(prefix).unwrap_or(text).into());
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(text.strip_suffix(suffix).unwrap_or(text).into());
            }
            "partition" => {
                let (sep,): (&str,) = from_args(args)?;
                let (head, sep, tail) = match text.split_once(sep) {
                    Some((head, tail)) => (head, sep, tail),
                    None => (text, "", ""),
                };
                return Ok([head, sep, tail].map(String::from).to_vec().into());
            }
            "rpartition" => {
                let (sep,): (&str,) = from_args(args)?;
                let (head, sep, tail) = match text.rsplit_once(sep) {
                    Some((head, tail)) => (head, sep, tail),
                    None => ("", "", text),
                };
                return Ok([head, sep, tail].map(String::from).to_vec().into());
            }
            "rsplit" => {
                let (sep, most): (&str, Option<usize>) = from_args(args)?;
                let mut parts: Vec<&str> = match most {
                    Some(most) => text.rsplitn(most + 1, sep).collect(),
                    None => text.rsplit(sep).collect(),
                };
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "split" if args.first().is_some_and(|sep| sep.as_str() == Some("")) => {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_python_prints_them() {
        for (x, want) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e16, "1.5e+16"),
            (123456789012345.0, "123456789012345.0"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-2.5e-7, "-2.5e-07"),
            (1e100, "1e+100"),
        ] {
            assert_eq!(float(x), want);
        }
    }

    #[test]
    fn dates_are_fixed() {
        assert_eq!(strftime_now("%d %b %Y").unwrap(), "01 Jan 2025");
        assert_eq!(strftime_now("%-d%%").unwrap(), "1%");
        assert!(strftime_now("%Q").is_err());
    }
}
