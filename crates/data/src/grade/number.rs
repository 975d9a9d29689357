//! Numbers as people and LaTeX write them, by exact value.

use regex::Regex;
use std::sync::LazyLock;

/// A reduced fraction, `under` > 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    pub over: i128,
    pub under: i128,
}

impl Number {
    fn new(over: i128, under: i128) -> Option<Number> {
        if under == 0 {
            return None;
        }
        let (mut a, mut b) = (over.unsigned_abs(), under.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i128::try_from(a.max(1)).ok()?;
        let sign = if under < 0 { -1 } else { 1 };
        Some(Number {
            over: over.checked_div(divisor)?.checked_mul(sign)?,
            under: under.checked_div(divisor)?.checked_mul(sign)?,
        })
    }

    fn times(self, other: Number) -> Option<Number> {
        Number::new(
            self.over.checked_mul(other.over)?,
            self.under.checked_mul(other.under)?,
        )
    }

    fn plus(self, other: Number) -> Option<Number> {
        let left = self.over.checked_mul(other.under)?;
        let right = other.over.checked_mul(self.under)?;
        Number::new(
            left.checked_add(right)?,
            self.under.checked_mul(other.under)?,
        )
    }

    fn over(self, other: Number) -> Option<Number> {
        self.times(Number::new(other.under, other.over)?)
    }

    /// Ten to a power between -30 and 30: more does not fit.
    fn power_of_ten(exponent: i32) -> Option<Number> {
        let power = 10i128.checked_pow(exponent.unsigned_abs())?;
        if exponent >= 0 {
            Number::new(power, 1)
        } else {
            Number::new(1, power)
        }
    }

    /// Digits with an optional decimal point, separators and exponent.
    fn decimal(text: &str) -> Option<Number> {
        let text = text.replace(',', "");
        let (digits, exponent) = match text.find(['e', 'E']) {
            Some(at) => (&text[..at], text[at + 1..].parse().ok()?),
            None => (text.as_str(), 0),
        };
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        let all = format!("{whole}{part}");
        let value = Number::new(all.parse().ok()?, 1)?;
        let places = i32::try_from(part.len()).ok()?;
        value
            .over(Number::power_of_ten(places)?)?
            .times(Number::power_of_ten(exponent)?)
    }
}

/// One decimal number: thousands separators in the right places only.
const DECIMAL: &str = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3}\b)?";

static SHAPE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(&format!(
        r"(?x)^ (?P<sign>[-+]?) \s* (?:US)?[$€£¥]? \s* (?P<sign2>[-+]?) \s*
        (?: (?P<whole>\d+) \s+ (?P<num>\d+) \s*/\s* (?P<den>\d+)
          | (?P<value>{DECIMAL}) (?: \s*/\s* (?P<by>-?{DECIMAL}) )?
        )
        (?: \s* [*x] \s* 10 \s* \^ \s* [({{]? \s* (?P<exponent>[-+]?\d{{1,2}}) \s* [)}}]? )?
        (?P<rest>.*) $"
    ))
    .expect("a valid pattern")
});

static POWER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^(?P<sign>-?)10\s*\^\s*[({]?\s*(?P<exponent>-?\d{1,2})\s*[)}]?$")
        .expect("a valid pattern")
});

static FRACTION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\\[dtc]?frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}")
        .expect("a valid pattern")
});
static SHORT_FRACTION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\\[dtc]?frac\s*(\d)\s*(\d)").expect("a valid pattern"));
static TEXT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
        .expect("a valid pattern")
});
/// `x =` before a value.
static NAMED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"^[A-Za-z]\w{0,20}\s*=\s*").expect("a valid pattern"));
static SQUARE: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\^\s*\{?\s*[23]\s*\}?|[²³]").expect("a valid pattern"));

/// Notation without meaning taken out; fractions as `a/b`, products as `*`.
pub fn clean(text: &str) -> String {
    let mut text = text.trim().to_string();
    for (from, to) in [
        ("−", "-"),
        ("–", "-"),
        ("\u{a0}", " "),
        ("{,}", ","),
        ("\\left", ""),
        ("\\right", ""),
        ("\\!", ""),
        ("\\,", ""),
        ("\\;", " "),
        ("\\:", " "),
        ("\\ ", " "),
        ("~", " "),
        ("\\$", "$"),
        ("\\%", "%"),
        ("\\(", ""),
        ("\\)", ""),
        ("\\[", ""),
        ("\\]", ""),
        ("\\times", "*"),
        ("\\cdot", "*"),
        ("×", "*"),
        ("^{\\circ}", "°"),
        ("^\\circ", "°"),
        ("\\degree", "°"),
        ("**", ""),
        ("`", ""),
    ] {
        if text.contains(from) {
            text = text.replace(from, to);
        }
    }
    text = TEXT.replace_all(&text, " $1").into_owned();
    text = FRACTION.replace_all(&text, " $1/$2").into_owned();
    text = SHORT_FRACTION.replace_all(&text, " $1/$2").into_owned();
    let mut text = text.trim();
    loop {
        let inner = text.trim_end_matches(['.', ',', ';']).trim();
        // Math mode is $..$; a single dollar sign is money.
        let inner = match inner.strip_prefix('$').and_then(|t| t.strip_suffix('$')) {
            Some(inner) => inner.trim(),
            None => inner,
        };
        let inner = match inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
            Some(inner) => inner.trim(),
            None => inner,
        };
        if inner == text {
            return text.to_string();
        }
        text = inner;
    }
}

/// The value of a text that is one number and nothing else but notation: separators, currency,
/// percent, a unit, `x =`, LaTeX. `None` for other text and for what 128 bits do not hold.
pub fn number(text: &str) -> Option<Number> {
    let text = clean(text);
    let text = NAMED.replace(&text, "");
    let negative = |sign: &str| if sign == "-" { -1 } else { 1 };
    if let Some(found) = POWER.captures(&text) {
        let power = Number::power_of_ten(found["exponent"].parse().ok()?)?;
        return power.times(Number::new(negative(&found["sign"]), 1)?);
    }
    let found = SHAPE.captures(&text)?;
    let group = |name: &str| found.name(name).map(|m| m.as_str());
    let mut value = match (group("whole"), group("value")) {
        (Some(whole), _) => {
            let part = Number::decimal(group("num")?)?.over(Number::decimal(group("den")?)?)?;
            Number::decimal(whole)?.plus(part)?
        }
        (None, Some(value)) => {
            let value = Number::decimal(value)?;
            match group("by") {
                Some(by) => {
                    let (sign, by) = match by.strip_prefix('-') {
                        Some(by) => (-1, by),
                        None => (1, by),
                    };
                    value
                        .over(Number::decimal(by)?)?
                        .times(Number::new(sign, 1)?)?
                }
                None => value,
            }
        }
        _ => return None,
    };
    if let Some(exponent) = group("exponent") {
        value = value.times(Number::power_of_ten(exponent.parse().ok()?)?)?;
    }
    let sign = negative(&found["sign"]) * negative(&found["sign2"]);
    value
        .times(Number::new(sign, 1)?)?
        .times(unit(&found["rest"])?)
}

/// Words that make what they follow more than a number with a unit.
const NOT_UNITS: [&str; 10] = [
    "pi", "sqrt", "and", "or", "to", "plus", "minus", "times", "divided", "mod",
];

/// What a unit multiplies by (`million`); `None` where the rest is not a unit.
fn unit(rest: &str) -> Option<Number> {
    let one = Number::new(1, 1);
    let attached = !rest.starts_with(char::is_whitespace);
    let rest = SQUARE.replace_all(rest.trim(), "");
    let rest = rest
        .trim_start_matches(['%', '°', '$', '€', '£', '-'])
        .trim();
    if rest.is_empty() {
        return one;
    }
    let allowed = |c: char| c.is_alphabetic() || " /.-'()$€£°,".contains(c);
    if !rest.chars().all(allowed) {
        return None;
    }
    let words: Vec<String> = rest
        .split(|c: char| !c.is_alphabetic() && c != '\'')
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect();
    let first = words.first()?;
    if words.len() > 6 || words.iter().any(|word| NOT_UNITS.contains(&word.as_str())) {
        return None;
    }
    // A single letter is a variable unless it is a unit that is written so.
    if first.chars().count() == 1 && !"mgslhckfvwjn".contains(first.as_str()) {
        return None;
    }
    if attached && first == "n" {
        return None;
    }
    match first.as_str() {
        "hundred" => Number::new(100, 1),
        "thousand" => Number::new(1_000, 1),
        "million" => Number::new(1_000_000, 1),
        "billion" => Number::new(1_000_000_000, 1),
        "trillion" => Number::new(1_000_000_000_000, 1),
        "dozen" => Number::new(12, 1),
        _ => one,
    }
}
