//! How often each path was asked, how it was answered, and how long that took.
//!
//! Bounded by the table of paths: a count stands under the template of a route, never under what a caller wrote, and what
//! has no route is one more. An answer costs two readings of the clock and three additions; a route that nobody asks costs
//! nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::StatusCode;

/// The upper bounds of the buckets; one more has what took longer. A sync that waits for news takes up to half a minute.
pub const BOUNDS_MS: [u32; 7] = [5, 25, 100, 500, 2_500, 10_000, 40_000];
/// The classes of status, from 2xx on.
pub const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The counts of one route, since the start. Clones of what a scrape reads may be off by an answer that is just given.
#[derive(Default)]
pub struct Counts {
    classes: [AtomicU32; CLASSES.len()],
    within: [AtomicU32; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Counts {
    pub fn note(&self, status: StatusCode, took: Duration) {
        let class = (usize::from(status.as_u16() / 100)).saturating_sub(2).min(CLASSES.len() - 1);
        self.classes[class].fetch_add(1, Relaxed);
        let ms = took.as_millis().min(u128::from(u32::MAX)) as u32;
        let bucket = BOUNDS_MS.iter().position(|bound| ms <= *bound).unwrap_or(BOUNDS_MS.len());
        self.within[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(took.as_micros() as u64, Relaxed);
    }

    /// Answers by class.
    pub fn classes(&self) -> [u32; CLASSES.len()] {
        std::array::from_fn(|at| self.classes[at].load(Relaxed))
    }

    /// Answers by time, each bucket for itself, and the seconds of all.
    pub fn times(&self) -> ([u32; BOUNDS_MS.len() + 1], f64) {
        (std::array::from_fn(|at| self.within[at].load(Relaxed)), self.sum_us.load(Relaxed) as f64 / 1e6)
    }
}

/// The counts of all routes, by method and template. Kept when the table of paths is built again. Cloning gives the same.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<(String, String), Arc<Counts>>>>);

impl Tally {
    /// The counts of a route; made when it is first asked for.
    pub(super) fn of(&self, method: &str, template: &str) -> Arc<Counts> {
        self.0.lock().entry((template.to_owned(), method.to_owned())).or_default().clone()
    }

    /// Template, method and counts of each route that was ever asked.
    pub fn list(&self) -> Vec<(String, String, Arc<Counts>)> {
        let all = self.0.lock();
        all.iter().map(|((template, method), counts)| (template.clone(), method.clone(), counts.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_in_one_class_and_one_bucket() {
        let tally = Tally::default();
        let counts = tally.of("GET", "/a/{b}");
        counts.note(StatusCode::OK, Duration::from_millis(5));
        counts.note(StatusCode::NOT_FOUND, Duration::from_millis(6));
        counts.note(StatusCode::SWITCHING_PROTOCOLS, Duration::from_secs(3600));
        tally.of("GET", "/a/{b}").note(StatusCode::SERVICE_UNAVAILABLE, Duration::ZERO);
        let (template, method, counts) = &tally.list()[0];
        assert_eq!((template.as_str(), method.as_str()), ("/a/{b}", "GET"));
        assert_eq!(counts.classes(), [2, 0, 1, 1]);
        let (within, seconds) = counts.times();
        assert_eq!(within, [2, 1, 0, 0, 0, 0, 0, 1]);
        assert!((3600.0..3600.1).contains(&seconds));
    }
}
