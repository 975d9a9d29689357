//! TOML text into a tree of values that know their places. A long text is parsed in pieces, side by side.

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::parts;
use crate::tree::{At, Entry, Files, Node, Table, Value};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Parses the text of `file`.
pub fn parse(files: &Files, file: u32) -> Result<Node, Box<Diagnostic>> {
    let text = files.text(file);
    if text.len() >= LONG
        && let Some(root) = in_pieces(files, file, PIECE)
    {
        return Ok(root);
    }
    let whole = Place {
        files,
        file,
        base: 0,
    };
    let document = DeTable::parse(text).map_err(|e| {
        let span = e.span().unwrap_or(0..0);
        // toml reports a duplicate as a syntax error; it is one of the errors we name
        let code = if e.message().contains("duplicate key") {
            codes::DUPLICATE
        } else {
            codes::SYNTAX
        };
        let message = e.message().lines().collect::<Vec<_>>().join("; ");
        let message = if code == codes::DUPLICATE {
            format!(
                "'{}' is declared twice",
                text.get(span.clone()).unwrap_or_default().trim_matches('"')
            )
        } else {
            format!("not valid TOML: {message}")
        };
        let help = if code == codes::DUPLICATE {
            "keep one of the two"
        } else {
            ""
        };
        Box::new(
            Diagnostic::new(code, message)
                .at(files, whole.at(&span))
                .help(help),
        )
    })?;
    let span = document.span();
    Ok(Node {
        value: Value::Table(whole.table(document.get_ref())?),
        at: whole.at(&(span.start..span.start)),
    })
}

/// Bytes of text from which pieces pay for their threads.
const LONG: usize = 1 << 16;
/// Bytes of a piece. What the parser makes of it, tens of times as many, is freed before the next one is parsed: the
/// memory that one has filled serves all.
const PIECE: usize = 1 << 14;

/// The tree of a long text, from pieces of about `size` bytes that are valid by themselves. Nothing where it has no
/// such pieces, or where they could mean something else together: the whole is parsed then, which also finds the error
/// to tell.
///
/// A piece begins at a line `[stage.NAME]`. No string and no list is cut in two by that, since the piece before would
/// not be valid. All but the first hold nothing but stages, each under headers of its own, that no other piece holds.
fn in_pieces(files: &Files, file: u32, size: usize) -> Option<Node> {
    let text = files.text(file);
    // the first piece has a stage: those of the others join it
    let first = stage_after(text, size.max(stage_after(text, 0)?))?;
    let cuts: Vec<usize> =
        std::iter::successors(Some(first), |cut| stage_after(text, cut + size)).collect();
    let ends = cuts.iter().copied().chain([text.len()]);
    let pieces: Vec<Range<usize>> = std::iter::once(0)
        .chain(cuts.iter().copied())
        .zip(ends)
        .map(|(a, b)| a..b)
        .collect();
    let shares: Vec<&[Range<usize>]> = pieces
        .chunks(pieces.len().div_ceil(parts::cores()))
        .collect();
    let parsed = parts::side_by_side(&shares, |share| {
        let piece = |piece: &Range<usize>| {
            let document = DeTable::parse(&text[piece.clone()]).ok()?;
            let base = piece.start;
            Place { files, file, base }.table(document.get_ref()).ok()
        };
        share.iter().map(piece).collect::<Option<Vec<Table>>>()
    });
    let parsed: Option<Vec<Vec<Table>>> = parsed.into_iter().collect();
    let mut parsed = parsed?.into_iter().flatten();
    let mut root = parsed.next()?;
    for mut piece in parsed {
        let Value::Table(found) = piece.shift_remove("stage")?.node.value else {
            return None;
        };
        if !piece.is_empty() {
            return None;
        }
        let stages = root
            .get_mut("stage")
            .filter(|stages| under_header(text, stages.key_at, "["))?;
        let Value::Table(stages) = &mut stages.node.value else {
            return None;
        };
        stages.reserve(found.len());
        for (name, stage) in found {
            if !under_header(text, stage.key_at, "[stage.") || stages.insert(name, stage).is_some()
            {
                return None;
            }
        }
    }
    let (value, at) = (
        Value::Table(root),
        At {
            file,
            start: 0,
            end: 0,
        },
    );
    Some(Node { value, at })
}

/// Where the first line `[stage.NAME]` after `from` bytes begins.
fn stage_after(text: &str, from: usize) -> Option<usize> {
    const HEADER: &str = "\n[stage.";
    let mut from = (from..text.len()).find(|i| text.is_char_boundary(*i))?;
    loop {
        let at = from + text[from..].find(HEADER)?;
        let name = &text[at + HEADER.len()..];
        if name
            .find(']')
            .is_some_and(|end| crate::recipe::is_name(&name[..end]))
        {
            return Some(at + 1);
        }
        from = at + 1;
    }
}

/// Whether a key was written in a line that begins with `header`.
fn under_header(text: &str, key: At, header: &str) -> bool {
    let before = &text[..key.start as usize];
    before
        .strip_suffix(header)
        .is_some_and(|before| before.is_empty() || before.ends_with('\n'))
}

/// Where a text, or a piece of one, stands.
struct Place<'a> {
    files: &'a Files,
    file: u32,
    /// Bytes before the piece.
    base: usize,
}

impl Place<'_> {
    fn at(&self, span: &Range<usize>) -> At {
        let clamp = |n: usize| u32::try_from(self.base + n).unwrap_or(u32::MAX);
        At {
            file: self.file,
            start: clamp(span.start),
            end: clamp(span.end),
        }
    }

    fn table(&self, table: &DeTable<'_>) -> Result<Table, Box<Diagnostic>> {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries
            .into_iter()
            .map(|(key, value)| {
                let entry = Entry {
                    key_at: self.at(&key.span()),
                    node: self.node(value)?,
                };
                Ok((key.get_ref().to_string(), entry))
            })
            .collect()
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Result<Node, Box<Diagnostic>> {
        let at = self.at(&value.span());
        let refuse = |code, message: String, help: &str| {
            Box::new(Diagnostic::new(code, message).at(self.files, at).help(help))
        };
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Str(text.to_string()),
            DeValue::Boolean(b) => Value::Bool(*b),
            DeValue::Integer(n) => match i64::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => Value::Int(n),
                Err(_) => {
                    return Err(refuse(
                        codes::RANGE,
                        format!("the whole number {n} is too large"),
                        "whole numbers have 63 bits",
                    ));
                }
            },
            DeValue::Float(x) => match x.as_str().parse::<f64>() {
                Ok(value) if value.is_finite() => Value::Float(value),
                _ => {
                    return Err(refuse(
                        codes::NOT_FINITE,
                        format!("the number is {}", x.as_str()),
                        "write a finite number",
                    ));
                }
            },
            DeValue::Datetime(date) => {
                return Err(refuse(
                    codes::DATE,
                    format!("the value is the date {date}"),
                    "write it as a string, in quotes",
                ));
            }
            DeValue::Array(items) => Value::List(
                items
                    .iter()
                    .map(|item| self.node(item))
                    .collect::<Result<_, _>>()?,
            ),
            DeValue::Table(inner) => Value::Table(self.table(inner)?),
        };
        Ok(Node { value, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(from: usize, to: usize) -> String {
        let stage = |i| {
            let head = format!("[stage.s{i}]\nkind = \"command\"\nin.x = \"source.text\"\n");
            head + &format!("[[stage.s{i}.assert]]\nmetric = \"é{i}\"\n")
        };
        (from..to).map(stage).collect()
    }

    /// The whole, and the same from pieces of several sizes, where it has such.
    fn both(text: &str) -> (Option<String>, Vec<Option<String>>) {
        let mut files = Files::default();
        let file = files.add("a", text);
        let show = |node: Node| format!("{:?}", node.value);
        let sizes = [1, 150, 999, 3000, text.len() / 2];
        let pieces = sizes.map(|size| in_pieces(&files, file, size).map(show));
        (parse(&files, file).map(show).ok(), pieces.into())
    }

    #[test]
    fn pieces_are_the_whole() {
        let head = "[recipe]\nname = \"x\"\n[source.text]\npath = \"in.txt\"\n";
        let (whole, pieces) = both(&(head.to_owned() + &stages(0, 300)));
        for piece in pieces {
            assert!(piece.is_some() && piece == whole);
        }
    }

    #[test]
    fn what_pieces_cannot_say_is_parsed_whole() {
        let with = |what: &str| stages(0, 100) + what + &stages(100, 110);
        let texts = [
            // a stage that two pieces hold
            stages(0, 100) + &stages(99, 200),
            with("[stage.s3.with]\nsteps = 1\n"),
            // something else among the stages
            with("[params]\nlr = 1\n"),
            with("[stage]\nx = 1\n"),
            // strings and lists that hold what looks like a stage
            format!("[params]\nx = \"\"\"\n{}\"\"\"\n", stages(0, 200)),
            format!("x = ['''\n{0}''', '''\n{0}''']\n", stages(0, 100)),
            // tables that headers may not add to
            "stage.a.kind = \"x\"\n".to_owned() + &stages(0, 200),
            "stage = { a = { kind = \"x\" } }\n".to_owned() + &stages(0, 200),
            "[[stage]]\na = 1\n".to_owned() + &stages(0, 200),
            // a value that is refused
            with("[stage.z]\nx = 2020-01-01\n"),
        ];
        for text in texts {
            let (whole, pieces) = both(&text);
            for piece in pieces.into_iter().flatten() {
                assert_eq!(Some(&piece), whole.as_ref(), "{}", &text[..40]);
            }
        }
    }
}
