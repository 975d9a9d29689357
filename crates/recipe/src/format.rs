//! Numbers, durations and tables for people.

/// `0.4s`, `12s`, `3m05s`, `2h07m`, `3d04h`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    if seconds < 0.0995 {
        return format!("{:.0}ms", seconds * 1000.0);
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{:02}h", whole / 86400, whole % 86400 / 3600),
    }
}

/// Reads `90s`, `15m`, `12h` or `30d`.
pub fn parse_age(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || "write it like 12h or 30d".to_owned();
    let unit = text.char_indices().last().ok_or_else(wrong)?;
    let scale = match unit.1 {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..unit.0].parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(scale).ok_or_else(wrong)?;
    Ok(std::time::Duration::from_secs(seconds))
}

/// Four significant digits, without a long tail of zeros.
pub fn number(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e6 {
        return format!("{value}");
    }
    let magnitude = value.abs();
    if !(1e-3..1e6).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let digits = (3 - magnitude.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{value:.digits$}")
}

/// `981`, `3.1k`, `1.2M`.
pub fn count(value: f64) -> String {
    match value {
        v if v.abs() >= 1e9 => format!("{:.1}G", v / 1e9),
        v if v.abs() >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v.abs() >= 1e4 => format!("{:.0}k", v / 1e3),
        v if v.abs() >= 1e3 => format!("{:.1}k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

/// `812 B`, `3.4 KiB`, `1.2 GiB`.
pub fn bytes(value: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1024.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{value} B")
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// `1 file`, `2 files`.
pub fn plural(n: usize, word: &str) -> String {
    if n == 1 {
        format!("1 {word}")
    } else {
        format!("{n} {word}s")
    }
}

/// Columns padded to their widest cell, two spaces between; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter()
            .filter_map(|r| r.get(c))
            .map(|s| s.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut text = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(cell);
            text.push_str(&" ".repeat(width - cell.chars().count() + 2));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out.pop();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let cases = [
            (0.004, "4ms"),
            (0.5, "0.5s"),
            (12.3, "12s"),
            (59.6, "1m00s"),
            (3725.0, "1h02m"),
            (90_000.0, "1d01h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(duration(f64::NAN), "?");
    }

    #[test]
    fn numbers_keep_four_digits() {
        let cases = [
            (0.123_45, "0.1235"),
            (12.345_67, "12.35"),
            (1e-5, "1.000e-5"),
            (1.0, "1"),
            (0.0, "0"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }
}
