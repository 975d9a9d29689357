//! TOML text into a tree of values that know their places.

use crate::codes;
use crate::diagnostic::Diagnostic;
use crate::tree::{At, Entry, Files, Node, Table, Value};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Parses the text of `file`.
pub fn parse(files: &Files, file: u32) -> Result<Node, Box<Diagnostic>> {
    let text = files.text(file);
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
                .at(files, at(file, &span))
                .help(help),
        )
    })?;
    let span = document.span();
    Ok(Node {
        value: Value::Table(table(files, file, document.get_ref())?),
        at: at(file, &(span.start..span.start)),
    })
}

fn at(file: u32, span: &Range<usize>) -> At {
    let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    At {
        file,
        start: clamp(span.start),
        end: clamp(span.end),
    }
}

fn table(files: &Files, file: u32, table: &DeTable<'_>) -> Result<Table, Box<Diagnostic>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
        .into_iter()
        .map(|(key, value)| {
            let entry = Entry {
                key_at: at(file, &key.span()),
                node: node(files, file, value)?,
            };
            Ok((key.get_ref().to_string(), entry))
        })
        .collect()
}

fn node(files: &Files, file: u32, value: &Spanned<DeValue<'_>>) -> Result<Node, Box<Diagnostic>> {
    let at = at(file, &value.span());
    let refuse = |code, message: String, help: &str| {
        Box::new(Diagnostic::new(code, message).at(files, at).help(help))
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
                .map(|item| node(files, file, item))
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(inner) => Value::Table(table(files, file, inner)?),
    };
    Ok(Node { value, at })
}
