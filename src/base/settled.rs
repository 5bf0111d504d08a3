//! The time by which things are removed for their age, for good.
//!
//! A clock may be years ahead for an hour: a wrong answer of NTP, a mistake at the keyboard. What asks only what time it is
//! goes wrong for that hour; what was removed meanwhile stays gone. So a clock that jumps far ahead is doubted: this time goes
//! on as it passes, until the clock has said the same for [`DOUBTED_MS`] of running. A board that was switched off for weeks
//! jumps as well, and removes a few days later what is old. It is written down with the latest time, the doubt too: a
//! restart neither ends nor renews it.

use std::time::Duration;

/// A clock that is further ahead of what is expected is doubted: longer than a board is off for a holiday's week.
pub const JUMP_MS_MAX: u64 = 8 * DAY_MS;
/// For so long, of the time that the server runs.
pub const DOUBTED_MS: u64 = 3 * DAY_MS;
const DAY_MS: u64 = 86_400_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// The latest time that was believed, in unix milliseconds, and when that was, on the clock that only moves forward.
    at_ms: u64,
    at: Duration,
    doubt: Option<Doubt>,
}

/// That the clock is far ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Doubt {
    ahead_ms: u64,
    /// For how long it had been when `since` was.
    stood_ms: u64,
    since: Duration,
}

/// What a look at the clock found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    AsBefore,
    /// It is so far ahead, from now on.
    Ahead(u64),
    /// It has said so for long enough.
    Believed,
}

impl Settled {
    pub fn new(at_ms: u64, at: Duration) -> Settled {
        Settled { at_ms, at, doubt: None }
    }

    /// As it was written down. `ahead_ms` is 0 when there was no doubt.
    pub fn kept(at_ms: u64, ahead_ms: u64, stood_ms: u64, at: Duration) -> Settled {
        let doubt = (ahead_ms > 0).then_some(Doubt { ahead_ms, stood_ms, since: at });
        Settled { at_ms, at, doubt }
    }

    /// The settled time, and the doubt as it is written down: how far the clock is ahead and for how long it has been.
    pub fn to_keep(self, passed: Duration) -> (u64, u64, u64) {
        let (ahead_ms, stood_ms) = self.doubt.map_or((0, 0), |doubt| (doubt.ahead_ms, doubt.stood_ms(passed)));
        (self.now_ms(passed), ahead_ms, stood_ms)
    }

    /// The time as it has passed since it was last believed.
    pub fn now_ms(self, passed: Duration) -> u64 {
        self.at_ms + millis(passed.saturating_sub(self.at))
    }

    /// How far the clock is ahead, and for how long that is still doubted; none while it is believed.
    pub fn doubt(self, passed: Duration) -> Option<(u64, u64)> {
        self.doubt.map(|doubt| (doubt.ahead_ms, DOUBTED_MS.saturating_sub(doubt.stood_ms(passed))))
    }

    /// Takes in what the clock says. With `is_trusted` it is believed whatever it says.
    pub fn look(&mut self, read_ms: u64, passed: Duration, is_trusted: bool) -> Found {
        let expected_ms = self.now_ms(passed);
        if is_trusted || read_ms <= expected_ms + JUMP_MS_MAX {
            // A clock that is behind has not been set yet, or is waited for.
            let at_ms = if is_trusted { read_ms } else { read_ms.max(expected_ms) };
            *self = Settled::new(at_ms, passed);
            return Found::AsBefore;
        }
        let ahead_ms = read_ms - expected_ms;
        match self.doubt {
            // Between two runs it gets ahead by what the board was off.
            Some(doubt) if ahead_ms.abs_diff(doubt.ahead_ms) <= JUMP_MS_MAX => {
                if doubt.stood_ms(passed) < DOUBTED_MS {
                    return Found::AsBefore;
                }
                *self = Settled::new(read_ms, passed);
                Found::Believed
            }
            _ => {
                self.doubt = Some(Doubt { ahead_ms, stood_ms: 0, since: passed });
                Found::Ahead(ahead_ms)
            }
        }
    }
}

impl Doubt {
    fn stood_ms(self, passed: Duration) -> u64 {
        self.stood_ms + millis(passed.saturating_sub(self.since))
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const YEAR_MS: u64 = 365 * DAY_MS;

    fn after(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_clock_that_is_years_ahead_for_an_hour_changes_nothing() {
        let mut settled = Settled::new(NOW_MS, Duration::ZERO);
        assert_eq!(settled.look(NOW_MS + 1000, after(1000), false), Found::AsBefore);
        assert_eq!(settled.look(NOW_MS + 2000 + 9 * YEAR_MS, after(2000), false), Found::Ahead(9 * YEAR_MS));
        assert_eq!(settled.look(NOW_MS + 3_600_000 + 9 * YEAR_MS, after(3_600_000), false), Found::AsBefore);
        assert_eq!(settled.now_ms(after(3_600_000)), NOW_MS + 3_600_000);
        assert_eq!(settled.doubt(after(3_600_000)), Some((9 * YEAR_MS, DOUBTED_MS - 3_598_000)));
        assert_eq!(settled.look(NOW_MS + 3_700_000, after(3_700_000), false), Found::AsBefore);
        assert_eq!((settled.now_ms(after(3_700_000)), settled.doubt(after(3_700_000))), (NOW_MS + 3_700_000, None));
    }

    #[test]
    fn what_was_right_all_along_is_believed_after_three_days_of_running() {
        let mut settled = Settled::new(NOW_MS, Duration::ZERO);
        let off_ms = 30 * DAY_MS;
        assert_eq!(settled.look(NOW_MS + off_ms, Duration::ZERO, false), Found::Ahead(off_ms));
        let two_days = after(2 * DAY_MS);
        let (at_ms, ahead_ms, stood_ms) = settled.to_keep(two_days);
        assert_eq!((at_ms, ahead_ms, stood_ms), (NOW_MS + 2 * DAY_MS, off_ms, 2 * DAY_MS));
        // It is off for an hour more.
        let mut settled = Settled::kept(at_ms, ahead_ms, stood_ms, Duration::ZERO);
        let read_ms = at_ms + off_ms + 3_600_000;
        assert_eq!(settled.look(read_ms, Duration::ZERO, false), Found::AsBefore);
        assert_eq!(settled.look(read_ms + DAY_MS - 1, after(DAY_MS - 1), false), Found::AsBefore);
        assert_eq!(settled.look(read_ms + DAY_MS, after(DAY_MS), false), Found::Believed);
        assert_eq!(settled.now_ms(after(DAY_MS)), read_ms + DAY_MS);
    }

    #[test]
    fn another_jump_is_another_doubt_and_a_week_is_none() {
        let mut settled = Settled::new(NOW_MS, Duration::ZERO);
        assert_eq!(settled.look(NOW_MS + 8 * DAY_MS, Duration::ZERO, false), Found::AsBefore);
        assert_eq!(settled.now_ms(Duration::ZERO), NOW_MS + 8 * DAY_MS);
        assert_eq!(settled.look(NOW_MS + YEAR_MS, after(1), false), Found::Ahead(YEAR_MS - 8 * DAY_MS - 1));
        let later = after(DOUBTED_MS);
        assert!(matches!(settled.look(NOW_MS + 5 * YEAR_MS, later, false), Found::Ahead(_)));
        assert_eq!(settled.look(NOW_MS + 5 * YEAR_MS, later, true), Found::AsBefore);
        assert_eq!(settled.now_ms(later), NOW_MS + 5 * YEAR_MS, "whoever set it says that it is right");
    }

    #[test]
    fn a_clock_that_was_not_set_yet_goes_on_from_what_is_known() {
        let mut settled = Settled::new(NOW_MS, Duration::ZERO);
        assert_eq!(settled.look(5, after(5), false), Found::AsBefore);
        assert_eq!(settled.now_ms(after(5)), NOW_MS + 5);
    }
}
