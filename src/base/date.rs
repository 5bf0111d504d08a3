//! Dates and times in a readable form, in UTC.

use std::time::{Duration, SystemTime};

/// The last second of the year 9999, the last that `httpdate` writes.
const LAST_UNIX_S: u64 = 253_402_300_799;

/// The date of a Unix time in milliseconds: `2026-11-29`. A time beyond the year 9999 is its last day.
pub fn date(unix_ms: u64) -> String {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let text = in_http(unix_ms);
    let month = MONTHS.find(&text[8..11]).map_or(0, |at| at / 3 + 1);
    format!("{}-{month:02}-{}", &text[12..16], &text[5..7])
}

/// Date and time of a Unix time in milliseconds: `2026-11-29T10:15:00Z`.
pub fn timestamp(unix_ms: u64) -> String {
    format!("{}T{}Z", date(unix_ms), &in_http(unix_ms)[17..25])
}

/// Such as `Sun, 06 Nov 1994 08:49:37 GMT`, always as long.
fn in_http(unix_ms: u64) -> String {
    let unix_s = (unix_ms / 1000).min(LAST_UNIX_S);
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s))
}

/// A length of time in its largest unit: `45 s`, `12 min`, `3 h`, `5 d`.
pub fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_for_people() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(1_709_210_096_000), "2024-02-29");
        assert_eq!(date(1_735_603_200_000), "2024-12-31");
        assert_eq!(date(u64::MAX), "9999-12-31");
        assert_eq!(timestamp(1_709_210_096_999), "2024-02-29T12:34:56Z");
    }

    #[test]
    fn a_length_of_time_is_in_its_largest_unit() {
        let check = |ms: u64, expected: &str| assert_eq!(span(ms), expected);
        check(119_999, "119 s");
        check(120_000, "2 min");
        check(7_200_000, "2 h");
        check(172_800_000, "2 d");
    }
}
