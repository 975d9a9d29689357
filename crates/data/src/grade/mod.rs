//! Graders: does an answer equal the reference?

mod number;

use number::{Number, number};
use regex::Regex;
use std::sync::LazyLock;

/// Whether the final answer in `completion` equals that of `reference` as mathematics: by exact
/// value where both are numbers, else as text with notation set aside.
///
/// A reference is an answer (`"1,234"`, `"\frac{3}{4}"`) or a worked solution that marks it with
/// `####` or `\boxed{..}`. Units, currency and percent signs are set aside (`50%` equals `50`).
pub fn math(completion: &str, reference: &str) -> bool {
    let wanted = marked(reference).unwrap_or_else(|| reference.trim().to_string());
    match (canonical(completion), canonical_answer(&wanted)) {
        (Some(given), Some(wanted)) => given == wanted,
        _ => false,
    }
}

/// The final answer of a completion in a form that is equal for equal answers: what a majority
/// vote counts. `None` where the text has no answer.
pub fn canonical(completion: &str) -> Option<String> {
    canonical_answer(&final_answer(completion)?)
}

/// The final answer of a completion as it is written there: after the last `####`; in the last
/// `\boxed{..}`; after the last "answer is"; the whole text where it is a number, an expression
/// or a name; else the last number in it.
pub fn final_answer(completion: &str) -> Option<String> {
    if let Some(answer) = marked(completion) {
        return Some(narrowed(&answer));
    }
    let text = completion.trim();
    if let Some(found) = ANSWER_IS.find_iter(text).last()
        && let Some(line) = first_line(&text[found.end()..])
    {
        return Some(narrowed(&line));
    }
    if number(text).is_some() || is_phrase(text) {
        return Some(text.to_string());
    }
    NUMBERS
        .find_iter(text)
        .last()
        .map(|m| m.as_str().to_string())
}

/// Whether two texts are equal with outer whitespace set aside, and case too where asked.
pub fn exact_match(completion: &str, reference: &str, ignore_case: bool) -> bool {
    let (given, wanted) = (completion.trim(), reference.trim());
    given == wanted || (ignore_case && given.to_lowercase() == wanted.to_lowercase())
}

static ANSWER_IS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\banswer\s*(?:\bis\b|:|=)\s*:?").expect("a valid pattern"));

/// Numbers inside a text. A minus sign counts where it does not follow a digit or a bracket.
static NUMBERS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x) \\[dt]?frac \s* \{ [^{}]* \} \s* \{ [^{}]* \}
        | (?: \B [-−] )? [$€£]? (?: \d{1,3} (?: ,\d{3} )+ \b | \d+ ) (?: \.\d+ )? (?: /\d+ )? %?
        | (?: \B [-−] )? \.\d+",
    )
    .expect("a valid pattern")
});

/// One short line that is an answer as a whole, a name or an expression, rather than a sentence
/// with a number in it.
fn is_phrase(text: &str) -> bool {
    if text.is_empty() || text.contains('\n') || text.chars().count() > 60 {
        return false;
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let expression =
        text.contains(['\\', '^']) || words.iter().any(|word| ["pi", "sqrt"].contains(word));
    let number = text.contains(|c: char| c.is_ascii_digit());
    words.len() == 1 || !number || (expression && words.len() <= 4)
}

fn first_line(text: &str) -> Option<String> {
    let line = text.trim_start().lines().next().unwrap_or("").trim();
    (!line.is_empty()).then(|| line.to_string())
}

/// After the last `####`, else in the last `\boxed{..}`.
fn marked(text: &str) -> Option<String> {
    match text.rfind("####") {
        Some(at) => first_line(&text[at + 4..]),
        None => boxed(text),
    }
}

/// What the last `\boxed{..}` or `\fbox{..}` encloses, braces matched.
fn boxed(text: &str) -> Option<String> {
    let at = ["\\boxed", "\\fbox"]
        .iter()
        .filter_map(|tag| text.rfind(tag).map(|at| at + tag.len()))
        .max()?;
    let rest = text[at..].trim_start();
    let Some(inner) = rest.strip_prefix('{') else {
        // `\boxed 5`
        let word = rest.split_whitespace().next()?;
        return Some(word.trim_end_matches(['$', '.', ',']).to_string());
    };
    let mut depth = 1;
    for (i, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(inner[..i].trim().to_string());
        }
    }
    None
}

/// An answer line that is more than an answer ("5 apples, since 2 + 3 = 5"): the number in it.
fn narrowed(line: &str) -> String {
    if number(line).is_some() || !line.contains(char::is_whitespace) {
        return line.to_string();
    }
    let value = line
        .rsplit_once('=')
        .map_or(line, |(_, value)| value.trim());
    if number(value).is_some() {
        return value.to_string();
    }
    // A text answer that merely holds digits ("(3, 4)") stays whole; a sentence does not.
    let words = line
        .split_whitespace()
        .filter(|w| w.len() > 1 && w.chars().all(char::is_alphabetic));
    match NUMBERS.find(line) {
        Some(found) if words.count() > 0 => found.as_str().to_string(),
        _ => line.to_string(),
    }
}

fn canonical_answer(answer: &str) -> Option<String> {
    if let Some(Number { over, under }) = number(answer) {
        return Some(format!("{over}/{under}"));
    }
    let text: String = number::clean(answer)
        .chars()
        .filter(|c| !c.is_whitespace())
        .flat_map(char::to_lowercase)
        .collect();
    let text = text.trim_end_matches(['.', ',']);
    // A choice: (a), a) and a are one.
    let bare = text.trim_matches(['(', ')']);
    let text = if bare.chars().count() == 1 {
        bare
    } else {
        text
    };
    (!text.is_empty()).then(|| text.to_string())
}
