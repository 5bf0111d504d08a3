//! The time, and waiting for a later one.
//!
//! A board has no clock battery: wall time may jump. `now_ms` therefore never goes back behind the latest value it has
//! given or been told of, and code that measures a length of time uses `instant`, which only moves forward.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// A clock that is passed in, never taken: the real one, or one a test moves by hand. Cloning is cheap and gives
/// the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    source: Source,
    /// The latest unix time in milliseconds given out or remembered.
    latest_ms: AtomicU64,
}

enum Source {
    Real { start: Instant },
    Simulated { start_ms: u64, elapsed: watch::Sender<Duration> },
}

impl Clock {
    pub fn real() -> Self {
        Self::with(Source::Real { start: Instant::now() })
    }

    /// A clock that stands still at `start_ms` (unix milliseconds) until `advance` is called.
    pub fn simulated(start_ms: u64) -> Self {
        Self::with(Source::Simulated { start_ms, elapsed: watch::channel(Duration::ZERO).0 })
    }

    fn with(source: Source) -> Self {
        Clock(Arc::new(Inner { source, latest_ms: AtomicU64::new(0) }))
    }

    /// Unix time in milliseconds; never less than a time given out or remembered before.
    pub fn now_ms(&self) -> u64 {
        let read = self.read_ms();
        self.0.latest_ms.fetch_max(read, Ordering::Relaxed).max(read)
    }

    /// The time of the source, which may lie behind `now_ms` when the board woke up with a wrong date.
    pub fn read_ms(&self) -> u64 {
        match &self.0.source {
            Source::Real { .. } => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
            }
            Source::Simulated { start_ms, elapsed } => start_ms + elapsed.borrow().as_millis() as u64,
        }
    }

    /// Tells the clock a time known to have passed (the latest one in the database), which it then never goes
    /// back behind.
    pub fn remember_ms(&self, seen_ms: u64) {
        self.0.latest_ms.fetch_max(seen_ms, Ordering::Relaxed);
    }

    /// Time since the clock was made; moves forward only.
    pub fn instant(&self) -> Duration {
        match &self.0.source {
            Source::Real { start } => start.elapsed(),
            Source::Simulated { elapsed, .. } => *elapsed.borrow(),
        }
    }

    /// Waits for `length` to pass on this clock.
    pub async fn sleep(&self, length: Duration) {
        match &self.0.source {
            Source::Real { .. } => tokio::time::sleep(length).await,
            Source::Simulated { elapsed, .. } => {
                let mut moved = elapsed.subscribe();
                let until = *moved.borrow_and_update() + length;
                // The sender lives as long as this clock, so waiting cannot fail.
                let _ = moved.wait_for(|now| *now >= until).await;
            }
        }
    }

    /// Runs `work` for at most `length` on this clock; `None` when the time was up first.
    ///
    /// The work is on the heap: otherwise each nested future would contain the size of the inner one twice, and a
    /// request's task, through a dozen of these, would be as large as a thread's stack.
    pub fn timeout<T>(&self, length: Duration, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
        let work = Box::pin(work);
        async move {
            tokio::select! {
                biased;
                done = work => Some(done),
                () = self.sleep(length) => None,
            }
        }
    }

    /// Moves a simulated clock forward and wakes the tasks that slept until then. A real clock is not moved.
    pub fn advance(&self, length: Duration) {
        if let Source::Simulated { elapsed, .. } = &self.0.source {
            elapsed.send_modify(|now| *now += length);
        }
    }
}

/// A moment in real time, for code that blocks a thread and must give up. Always real: a blocked thread cannot be
/// woken by a simulated clock.
#[derive(Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(length: Duration) -> Self {
        Deadline(Instant::now() + length)
    }

    /// How long is left; zero when it has passed.
    pub fn left(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Measures how long work took in real time, to size the next batch or to report.
#[derive(Clone, Copy)]
pub struct StopWatch(Instant);

impl StopWatch {
    pub fn start() -> Self {
        StopWatch(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_goes_back() {
        let clock = Clock::simulated(1_000);
        clock.remember_ms(5_000);
        assert_eq!(clock.now_ms(), 5_000);
        clock.advance(Duration::from_secs(10));
        assert_eq!(clock.now_ms(), 11_000);
    }

    #[tokio::test]
    async fn sleepers_wake_when_the_time_comes() {
        let clock = Clock::simulated(0);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep(Duration::from_millis(50)).await }
        });
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_millis(50));
        sleeper.await.unwrap();
    }
}
