//! Callers that found no place: one line of the log a minute says who they were and how many.

use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::{Clock, sort_few_by};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(60);
/// Callers named in a line; the rest is counted.
const NAMED_MAX: usize = 5;
/// Callers counted apart.
const CALLERS_MAX: usize = 64;

/// What was not said yet. Bounded by [`CALLERS_MAX`].
pub struct TurnedAway {
    clock: Clock,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    said_at: Option<Duration>,
    waiting_said_at: Option<Duration>,
    count: u64,
    callers: Vec<(IpAddr, u64)>,
}

impl TurnedAway {
    pub fn new(clock: Clock) -> Self {
        Self { clock, noted: Mutex::default() }
    }

    /// A caller was turned away; `open`: the connections open now.
    pub fn note(&self, ip: IpAddr, open: usize) {
        if let Some(line) = self.line(ip, open) {
            tracing::warn!("{line}");
        }
    }

    /// For a while there has been no memory for another connection, and none gives way: callers wait in the kernel.
    pub fn note_waiting(&self, open: usize) {
        let now = self.clock.instant();
        let mut noted = self.noted.lock();
        if noted.waiting_said_at.is_none_or(|at| now >= at + PAUSE) {
            noted.waiting_said_at = Some(now);
            tracing::warn!("{open} connections are open, and there is no place for another");
        }
    }

    /// The line to log, once a minute.
    fn line(&self, ip: IpAddr, open: usize) -> Option<String> {
        let now = self.clock.instant();
        let mut noted = self.noted.lock();
        noted.count += 1;
        match noted.callers.iter().position(|(known, _)| *known == ip) {
            Some(at) => noted.callers[at].1 += 1,
            None if noted.callers.len() < CALLERS_MAX => noted.callers.push((ip, 1)),
            None => {}
        }
        if noted.said_at.is_some_and(|at| now < at + PAUSE) {
            return None;
        }
        let Noted { count, mut callers, waiting_said_at, .. } = std::mem::take(&mut *noted);
        (noted.said_at, noted.waiting_said_at) = (Some(now), waiting_said_at);
        sort_few_by(&mut callers, |(_, count)| std::cmp::Reverse(*count));
        let named: Vec<String> = callers.iter().take(NAMED_MAX).map(|(ip, count)| format!("{count} of {ip}")).collect();
        let rest = count - callers.iter().take(NAMED_MAX).map(|(_, count)| count).sum::<u64>();
        let others = if rest > 0 { format!(", {rest} of others") } else { String::new() };
        let named = named.join(", ");
        Some(format!("no place was left for {count} connections or requests: {named}{others}; {open} are open"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A caller without a place was cut off, and the log said nothing.
    #[test]
    fn one_line_a_minute_says_who_found_no_place_and_how_many() {
        let clock = Clock::simulated(1_000_000);
        let away = TurnedAway::new(clock.clone());
        let ip = |last: u8| IpAddr::from([203, 0, 113, last]);
        let line = away.line(ip(1), 23).expect("the first at once");
        assert_eq!(line, "no place was left for 1 connections or requests: 1 of 203.0.113.1; 23 are open");
        for n in 0..300 {
            assert_eq!(away.line(ip(if n < 200 { 9 } else { n as u8 }), 23), None);
        }
        clock.advance(PAUSE);
        let line = away.line(ip(9), 20).unwrap();
        assert!(
            line.starts_with("no place was left for 301 connections or requests: 202 of 203.0.113.9, 1 of "),
            "{line}"
        );
        assert!(line.ends_with(", 95 of others; 20 are open"), "{line}");
        assert!(away.noted.lock().callers.is_empty());
    }
}
