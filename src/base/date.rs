//! Dates and times in a readable form, in UTC.

const DAY_MS: u64 = 86_400_000;

/// The date of a Unix time in milliseconds: `2026-11-29`.
pub fn date(unix_ms: u64) -> String {
    // Counted from March of the year 0, so that the leap day is the last of its year.
    let days = unix_ms / DAY_MS + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// Date and time of a Unix time in milliseconds: `2026-11-29T10:15:00Z`.
pub fn timestamp(unix_ms: u64) -> String {
    let second = unix_ms % DAY_MS / 1000;
    format!("{}T{:02}:{:02}:{:02}Z", date(unix_ms), second / 3600, second / 60 % 60, second % 60)
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
