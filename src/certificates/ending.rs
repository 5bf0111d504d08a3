//! Warnings of a certificate's end, 21 and 7 days before.
//!
//! A certificate that lives less than ninety days is warned of in proportion: one of six days with a day and a half and
//! with half a day left. Its renewal has failed for a while by then, whoever does it.

use serde::{Deserialize, Serialize};

use super::Certificates;
use crate::base::{Clock, date, timestamp};
use crate::http::tls::Certificate;

const DAY_MS: u64 = 86_400_000;
/// What a certificate usually lives.
const LIFE_DAYS: u64 = 90;
/// As many days before the end people are told.
const DAYS: [u64; 2] = [21, 7];

/// How near the end of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Ending {
    Soon,
    VerySoon,
    Over,
}

/// Of which end of a certificate people were told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pub until_ms: u64,
    pub ending: Ending,
}

/// A certificate that ends soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    pub ending: Ending,
    pub until_ms: u64,
    pub sentence: String,
}

/// Whether a certificate ends soon. `what` begins the sentence: "The certificate for apps". Nothing is said by a clock
/// that is wrong.
pub fn ending(what: &str, certificate: &Certificate, own: &Certificates, clock: &Clock) -> Option<Warning> {
    let now_ms = clock.now_ms();
    let validity = certificate.validity_ms().filter(|_| clock.is_plausible())?;
    let (ending, until_ms) = (Ending::of(validity, now_ms)?, validity.1);
    let advice = match (certificate.file(), own.status().said) {
        (Some(file), _) => format!("Its renewal seems to fail: {} is still the old one.", file.display()),
        (None, Some(said)) => format!("Its renewal fails. {said}"),
        (None, None) => "It is about to be renewed.".to_owned(),
    };
    Some(Warning { ending, until_ms, sentence: ending.sentence(what, until_ms, now_ms, &advice) })
}

impl Ending {
    /// None while the end is far.
    pub fn of((from_ms, until_ms): (u64, u64), now_ms: u64) -> Option<Ending> {
        let life_ms = until_ms.saturating_sub(from_ms).min(LIFE_DAYS * DAY_MS);
        let left_ms = until_ms.saturating_sub(now_ms);
        let within = |days: u64| left_ms <= life_ms / LIFE_DAYS * days;
        match () {
            () if left_ms == 0 => Some(Ending::Over),
            () if within(DAYS[1]) => Some(Ending::VerySoon),
            () if within(DAYS[0]) => Some(Ending::Soon),
            () => None,
        }
    }

    /// Whether people, who were told that, must be told this.
    pub fn is_news(self, until_ms: u64, told: Option<Told>) -> bool {
        told.is_none_or(|told| told.until_ms != until_ms || told.ending < self)
    }

    /// What is said of it. `what` is "The certificate for apps", `advice` a sentence.
    pub fn sentence(self, what: &str, until_ms: u64, now_ms: u64, advice: &str) -> String {
        let left_ms = until_ms.saturating_sub(now_ms);
        let end = match (self, left_ms / DAY_MS) {
            (Ending::Over, _) => {
                format!("has ended on {}: apps and other servers refuse to connect", date(until_ms))
            }
            (_, 0) => format!("ends at {}", timestamp(until_ms)),
            (_, 1) => format!("ends in one day, on {}", date(until_ms)),
            (_, days) => format!("ends in {days} days, on {}", date(until_ms)),
        };
        format!("{what} {end}. {advice}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_at_21_and_7_days() {
        let end_ms = 100 * DAY_MS;
        let at = |days: u64| Ending::of((0, end_ms), end_ms - days * DAY_MS);
        assert_eq!([at(30), at(22)], [None; 2]);
        assert_eq!([at(21), at(8)], [Some(Ending::Soon); 2]);
        assert_eq!([at(7), at(1)], [Some(Ending::VerySoon); 2]);
        assert_eq!(at(0), Some(Ending::Over));
        // Six days.
        let short = |hours: u64| Ending::of((0, 6 * DAY_MS), 6 * DAY_MS - hours * DAY_MS / 24);
        assert_eq!([short(47), short(33), short(11)], [None, Some(Ending::Soon), Some(Ending::VerySoon)]);
        // Dates that nobody should have written.
        assert_eq!(Ending::of((u64::MAX, 0), 5), Some(Ending::Over));
    }

    #[test]
    fn nobody_is_told_twice() {
        let told = |ending| Some(Told { until_ms: 9, ending });
        assert!(Ending::Soon.is_news(9, None) && Ending::VerySoon.is_news(9, told(Ending::Soon)));
        assert!(!Ending::Soon.is_news(9, told(Ending::Soon)) && !Ending::Soon.is_news(9, told(Ending::VerySoon)));
        assert!(Ending::Soon.is_news(10, told(Ending::Over)), "another certificate");
    }

    #[test]
    fn the_end_is_said_in_days() {
        let end_ms = 1_790_000_000_000;
        let said = |left_ms| {
            let ending = Ending::of((0, end_ms), end_ms - left_ms).unwrap();
            ending.sentence("The certificate for apps", end_ms, end_ms - left_ms, "Renew it.")
        };
        assert_eq!(said(7 * DAY_MS), "The certificate for apps ends in 7 days, on 2026-09-21. Renew it.");
        assert_eq!(said(DAY_MS), "The certificate for apps ends in one day, on 2026-09-21. Renew it.");
        assert!(said(1000).contains("ends at 2026-09-21T") && said(0).contains("has ended on 2026-09-21"));
    }
}
