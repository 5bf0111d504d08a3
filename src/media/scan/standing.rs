//! Whether the scanner answers, as those who asked it found.
//!
//! One that did not is tried again by one asker at a time, after a pause that grows; all others are told at once that it is away.

use std::time::Duration;

use parking_lot::Mutex;

/// The pause after the first failure; it doubles with each up to the longest.
const PAUSE_MIN: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// While somebody tries it.
const TRIED: Duration = Duration::from_secs(1);
/// Doublings that make the first pause at least the longest.
const DOUBLED_MAX: u32 = 5;

#[derive(Default)]
pub(super) struct Standing(Mutex<Option<Away>>);

struct Away {
    why: String,
    since: Duration,
    asked: Duration,
    /// In a row, beyond the first.
    again: u32,
    until: Duration,
    is_tried: bool,
}

/// That the scanner does not answer.
#[derive(Debug, Clone)]
pub struct ScannerAway {
    /// Which, and what went wrong.
    pub why: String,
    /// How long ago that was found first, and last.
    pub since: Duration,
    pub asked: Duration,
    /// When a file has it tried again.
    pub pause: Duration,
}

/// What somebody may do who has a file for the scanner.
pub(super) enum May<'a> {
    Ask,
    /// Try it with a few words first.
    Try(Trying<'a>),
    /// It is not asked for so long.
    Wait(Duration),
}

/// Held by who tries it.
pub(super) struct Trying<'a>(&'a Standing);

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if let Some(away) = &mut *self.0.0.lock() {
            away.is_tried = false;
        }
    }
}

impl Standing {
    pub(super) fn is_well(&self) -> bool {
        self.0.lock().is_none()
    }

    /// How long it is not to be asked; none when it may, or may be tried.
    pub(super) fn pause(&self, now: Duration) -> Option<Duration> {
        let standing = self.0.lock();
        let away = standing.as_ref()?;
        let left = away.until.saturating_sub(now);
        (!left.is_zero() || away.is_tried).then(|| left.max(TRIED))
    }

    pub(super) fn may_ask(&self, now: Duration) -> May<'_> {
        let mut away = self.0.lock();
        match &mut *away {
            None => May::Ask,
            Some(away) if away.until > now => May::Wait(away.until.saturating_sub(now)),
            Some(away) if away.is_tried => May::Wait(TRIED),
            Some(away) => {
                away.is_tried = true;
                May::Try(Trying(self))
            }
        }
    }

    /// It answered. Whether it was away.
    pub(super) fn answers(&self) -> bool {
        self.0.lock().take().is_some()
    }

    /// Answers the pause.
    pub(super) fn does_not_answer(&self, why: String, now: Duration) -> Duration {
        let mut standing = self.0.lock();
        let again = standing.as_ref().map_or(0, |away| away.again + 1);
        let pause = (PAUSE_MIN * (1 << again.min(DOUBLED_MAX))).min(PAUSE_MAX);
        if again == 0 {
            tracing::warn!("files wait for the scanner, which does not answer: {why}");
        }
        let (since, is_tried) = standing.as_ref().map_or((now, false), |away| (away.since, away.is_tried));
        *standing = Some(Away { why, since, asked: now, again, until: now + pause, is_tried });
        pause
    }

    pub(super) fn away(&self, now: Duration) -> Option<ScannerAway> {
        self.0.lock().as_ref().map(|away| ScannerAway {
            why: away.why.clone(),
            since: now.saturating_sub(away.since),
            asked: now.saturating_sub(away.asked),
            pause: away.until.saturating_sub(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scanner_that_is_away_is_tried_by_one_in_pauses_that_grow() {
        let (standing, at) = (Standing::default(), Duration::from_secs);
        assert!(matches!(standing.may_ask(at(0)), May::Ask));
        let mut now = at(100);
        for (failure, pause) in [10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
            if failure > 0 {
                let May::Try(_one) = standing.may_ask(now) else { panic!("it is tried again") };
                assert!(matches!(standing.may_ask(now), May::Wait(_)), "by one");
            }
            assert_eq!(standing.does_not_answer("it is off".to_owned(), now), at(pause));
            assert!(matches!(standing.may_ask(now + at(pause - 1)), May::Wait(left) if left == at(1)));
            now += at(pause);
        }
        let away = standing.away(now).unwrap();
        assert_eq!((away.since, away.asked, away.pause), (now - at(100), at(300), at(0)));
        drop(standing.may_ask(now));
        assert!(matches!(standing.may_ask(now), May::Try(_)), "who tried it went away");
        assert!(standing.answers() && standing.is_well() && !standing.answers());
    }
}
