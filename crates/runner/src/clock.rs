//! Wall-clock time as text. Times are for people and for sorting runs; nothing is decided by them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, as `2026-01-31T12:00:00.000Z`.
pub fn now() -> String {
    text(millis())
}

fn text(millis: u64) -> String {
    let (y, mo, d, h, mi, s, ms) = civil(millis);
    format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}.{ms:03}Z")
}

/// [`now`] for many moments: events come by the thousand in a millisecond.
#[derive(Default)]
pub struct Stamps {
    at: u64,
    text: String,
}

impl Stamps {
    pub fn now(&mut self) -> &str {
        let at = millis();
        if self.at != at {
            (self.at, self.text) = (at, text(at));
        }
        &self.text
    }
}

/// A time in seconds since 1970 as `20260131_120000`.
pub fn compact(seconds: f64) -> String {
    let (y, mo, d, h, mi, s, _) = civil((seconds * 1e3) as u64);
    format!("{y:04}{mo:02}{d:02}_{h:02}{mi:02}{s:02}")
}

/// The seconds since 1970 of what [`now`] wrote; none where it is something else.
pub fn seconds(text: &str) -> Option<f64> {
    let mut numbers = text.strip_suffix('Z')?.split(['-', 'T', ':', '.']);
    let mut next = || numbers.next()?.parse::<i64>().ok();
    let [y, mo, d] = [next()?, next()?, next()?];
    let [h, mi, s, ms] = [next()?, next()?, next()?, next()?];
    let y = if mo <= 2 { y - 1 } else { y };
    let (era, yoe) = (y.div_euclid(400), y.rem_euclid(400));
    let doy = (153 * (if mo > 2 { mo - 3 } else { mo + 9 }) + 2) / 5 + d - 1;
    let days = era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468;
    Some((days * 86_400 + h * 3600 + mi * 60 + s) as f64 + ms as f64 / 1e3)
}

/// An id for a run that sorts by time: `20260131-120000-000-1a2b3c`.
pub fn run_id() -> String {
    let at = millis();
    let (y, mo, d, h, mi, s, ms) = civil(at);
    let mut seed = blake3::Hasher::new();
    seed.update(
        &SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos())
            .to_le_bytes(),
    );
    seed.update(&std::process::id().to_le_bytes());
    seed.update(
        std::fs::read("/proc/sys/kernel/random/uuid")
            .unwrap_or_default()
            .as_slice(),
    );
    let tail = &seed.finalize().to_hex()[..6];
    format!("{y:04}{mo:02}{d:02}-{h:02}{mi:02}{s:02}-{ms:03}-{tail}")
}

fn millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// Year, month, day, hour, minute, second, millisecond of the Gregorian calendar, UTC.
/// Days to date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil(millis: u64) -> (u64, u64, u64, u64, u64, u64, u64) {
    let (days, rest) = (millis / 86_400_000, millis % 86_400_000);
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (
        year,
        month,
        day,
        rest / 3_600_000,
        rest / 60_000 % 60,
        rest / 1000 % 60,
        rest % 1000,
    )
}

#[cfg(test)]
mod tests {
    use super::{civil, now, seconds};

    #[test]
    fn dates() {
        assert_eq!(civil(0), (1970, 1, 1, 0, 0, 0, 0));
        assert_eq!(civil(951_782_400_000), (2000, 2, 29, 0, 0, 0, 0));
        assert_eq!(civil(1_767_225_599_999), (2025, 12, 31, 23, 59, 59, 999));
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(seconds("1970-01-01T00:00:00.000Z"), Some(0.0));
        assert_eq!(seconds("2000-02-29T00:00:00.250Z"), Some(951_782_400.25));
        assert!(seconds(&now()).is_some_and(|at| at > 1.7e9));
        assert_eq!(seconds("yesterday"), None);
    }
}
