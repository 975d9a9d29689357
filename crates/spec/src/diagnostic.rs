//! What a user reads when a recipe is wrong: code, cause, place, fix.

use crate::tree::{At, Files};
use std::fmt;

/// One error, complete in itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// From [`crate::codes::TABLE`].
    pub code: &'static str,
    /// Lower-case fragment that quotes the failing value.
    pub message: String,
    pub place: Option<Place>,
    /// What to do about it; empty where there is nothing to say.
    pub help: String,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The whole line.
    pub text: String,
    /// Characters of the line that are marked, at least 1.
    pub width: usize,
}

impl Place {
    /// Line and column of a span.
    pub fn of(files: &Files, at: At) -> Self {
        let text = files.text(at.file);
        let start = floor(text, at.start as usize);
        let end = floor(text, (at.end as usize).max(start));
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let marked = text[start..end.min(line_end)].chars().count().max(1);
        Self {
            file: files.name(at.file).to_owned(),
            line: text[..line_start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            text: text[line_start..line_end].trim_end_matches('\r').to_owned(),
            width: marked,
        }
    }
}

fn floor(text: &str, mut index: usize) -> usize {
    index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

impl Diagnostic {
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            place: None,
            help: String::new(),
        }
    }

    #[must_use]
    pub fn at(mut self, files: &Files, at: At) -> Self {
        self.place = Some(Place::of(files, at));
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    /// Names the nearest of `known`, and all of them when they are few.
    #[must_use]
    pub fn suggest<'a>(self, wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let help = suggestion(wrong, known);
        self.help(help)
    }
}

/// `did you mean 'x'?`, or the list of known names.
pub fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let list = || {
        known
            .iter()
            .map(|k| format!("'{k}'"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (nearest(wrong, known.iter().copied()), known.len()) {
        (_, 0) => "there are none".to_owned(),
        (Some(near), 1) => format!("did you mean '{near}'?"),
        (Some(near), ..=12) => format!("did you mean '{near}'? known: {}", list()),
        (Some(near), _) => format!("did you mean '{near}'?"),
        (None, _) => format!("known: {}", list()),
    }
}

/// The known name closest to what was written, if it is close at all.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|k| {
            (
                strsim::damerau_levenshtein(&wrong.to_lowercase(), &k.to_lowercase()),
                k,
            )
        })
        .filter(|&(distance, k)| {
            distance <= (wrong.chars().count().max(k.chars().count()) / 3).max(1)
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, k)| k)
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(place) = &self.place {
            let number = place.line.to_string();
            let margin = " ".repeat(number.len());
            write!(
                f,
                "\n{margin}--> {}:{}:{}",
                place.file, place.line, place.column
            )?;
            // a tab in the line is a tab in the margin, so that the mark stays below its text
            let indent: String = place
                .text
                .chars()
                .take(place.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            write!(f, "\n{margin} |\n{number} | {}", place.text)?;
            write!(f, "\n{margin} | {indent}{}", "^".repeat(place.width))?;
        }
        if !self.help.is_empty() {
            write!(f, "\nhelp: {}", self.help)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}
