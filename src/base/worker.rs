//! Background workers: each has a name, says what it does, and is listed for the operator (`snug workers`).
//!
//! A [`Worker`] is given to the work itself, which reports through it. Reports cost a lock and at most a short text; all
//! texts are bounded, and a process has as many workers as the code names.

use std::fmt::{self, Display, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tracing::Instrument;

use super::Clock;
use super::panics::caught_in;

/// The pause before a worker that panicked is started again; doubled each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A worker that ran this long was healthy: its next panic counts as the first.
const WELL_AFTER: Duration = Duration::from_secs(900);

/// Of what a worker says it does.
const DOING_CHARS_MAX: usize = 60;
/// Of an error: it may contain text of another server.
const ERROR_CHARS_MAX: usize = 300;

/// The handle of one background worker; clones are the same worker.
#[derive(Clone)]
pub struct Worker(Arc<Inner>);

struct Inner {
    name: &'static str,
    clock: Clock,
    status: Mutex<Status>,
}

/// The status of a worker. Times are Unix milliseconds.
#[derive(Debug, Clone)]
pub struct Status {
    pub name: &'static str,
    pub doing: Doing,
    /// Since when it does that.
    pub since_ms: u64,
    /// Units of work since the start of the server; what a unit is depends on the worker.
    pub done: u64,
    /// The last error, and when it was.
    pub error: Option<(u64, String)>,
    /// Errors since anything was last done.
    pub failures: u32,
    /// Restarts after a panic.
    pub restarts: u32,
    /// When it works again, where that is known.
    pub next_ms: Option<u64>,
}

/// What a worker does now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doing {
    Idle,
    Working(String),
    /// Waits after a panic, to be started again.
    Panicked,
    /// Has done everything there was.
    Ended,
}

impl Worker {
    pub fn new(name: &'static str, clock: &Clock) -> Worker {
        let status = Status {
            name,
            doing: Doing::Idle,
            since_ms: clock.now_ms(),
            done: 0,
            error: None,
            failures: 0,
            restarts: 0,
            next_ms: None,
        };
        Worker(Arc::new(Inner { name, clock: clock.clone(), status: Mutex::new(status) }))
    }

    /// Works on `what`, a few words.
    pub fn works_on(&self, what: impl Display) {
        self.enter(Doing::Working(bounded(what, DOING_CHARS_MAX)), None);
    }

    /// Waits for something to do.
    pub fn idle(&self) {
        self.enter(Doing::Idle, None);
    }

    /// Waits for something to do, at the longest for `pause`.
    pub fn idle_for(&self, pause: Duration) {
        self.enter(Doing::Idle, Some(pause));
    }

    /// `units` more are done.
    pub fn done(&self, units: u64) {
        let mut status = self.lock();
        status.done = status.done.saturating_add(units);
        if units > 0 {
            status.failures = 0;
        }
    }

    /// Something went wrong; the worker goes on. This does not log it.
    pub fn failed(&self, error: impl Display) {
        let error = (self.0.clock.now_ms(), bounded(error, ERROR_CHARS_MAX));
        let mut status = self.lock();
        status.error = Some(error);
        status.failures = status.failures.saturating_add(1);
    }

    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// The time of `Doing` counts from its first report: a worker that looks again every second is idle all the while.
    fn enter(&self, doing: Doing, pause: Option<Duration>) {
        let now_ms = self.0.clock.now_ms();
        let mut status = self.lock();
        if status.doing != doing {
            status.since_ms = now_ms;
            status.doing = doing;
        }
        status.next_ms = pause.map(|pause| now_ms.saturating_add(pause.as_millis() as u64));
    }

    fn panicked(&self, what: &str, pause: Duration) {
        self.failed(format_args!("a panic: {what}"));
        self.enter(Doing::Panicked, Some(pause));
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.status.lock()
    }

    /// Runs `work` until it ends by itself. A panic in it is logged, and it is started again after a pause that grows
    /// each time. `stopped` ends such a pause, and nothing is started after it. Lines of the log that come from the work
    /// name the worker.
    pub async fn keep_going<F>(&self, stopped: impl Future<Output = ()>, mut work: impl FnMut() -> F)
    where
        F: Future<Output = ()>,
    {
        let clock = &self.0.clock;
        let (mut stopped, mut pause) = (std::pin::pin!(stopped), PAUSE_MIN);
        loop {
            let span = tracing::info_span!("worker", name = self.0.name);
            let begun = clock.instant();
            let ended = caught_in(Box::pin(work())).instrument(span.clone()).await;
            let Err(panicked) = ended else { return self.enter(Doing::Ended, None) };
            if clock.instant().saturating_sub(begun) >= WELL_AFTER {
                pause = PAUSE_MIN;
            }
            let what = panicked.say();
            self.panicked(&what, pause);
            span.in_scope(|| tracing::error!(pause_s = pause.as_secs(), "panicked and is started again: {what}"));
            tokio::select! {
                () = &mut stopped => return,
                () = clock.sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
            let mut status = self.lock();
            status.restarts = status.restarts.saturating_add(1);
        }
    }
}

/// The list of a server's workers, in the order they were named.
#[derive(Clone, Default)]
pub struct Workers(Arc<Mutex<Vec<Worker>>>);

impl Workers {
    /// Names a worker and lists it. For the start of a server: the list has no other bound than the code's.
    pub fn add(&self, name: &'static str, clock: &Clock) -> Worker {
        let worker = Worker::new(name, clock);
        self.0.lock().push(worker.clone());
        worker
    }

    pub fn list(&self) -> Vec<Status> {
        self.0.lock().iter().map(Worker::status).collect()
    }
}

/// The reason of a refusal as an answer or the log has it: a parser's error quotes strings that an app or another server
/// has chosen, whatever their length.
pub fn brief(wrong: impl Display) -> String {
    const CHARS_MAX: usize = 300;
    bounded(wrong, CHARS_MAX)
}

/// The text of `what` as one line of at most `chars_max` characters. No more than that is ever made.
pub fn bounded(what: impl Display, chars_max: usize) -> String {
    struct Line {
        text: String,
        left: usize,
    }
    impl Write for Line {
        fn write_str(&mut self, piece: &str) -> fmt::Result {
            for char in piece.chars() {
                if self.left == 0 {
                    return Err(fmt::Error);
                }
                self.left -= 1;
                self.text.push(if char.is_control() { ' ' } else { char });
            }
            Ok(())
        }
    }
    let mut line = Line { text: String::new(), left: chars_max };
    if write!(line, "{what}").is_err() && line.left == 0 {
        line.text.pop();
        line.text.push('…');
    }
    line.text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_worker_says_what_it_does_and_since_when() {
        let clock = Clock::simulated(1_000);
        let workers = Workers::default();
        let worker = workers.add("sweep", &clock);
        clock.advance(Duration::from_millis(500));
        worker.idle_for(Duration::from_secs(60));
        let status = &workers.list()[0];
        assert_eq!((status.name, status.since_ms, status.next_ms), ("sweep", 1_000, Some(61_500)));
        worker.works_on("x".repeat(5000));
        worker.failed("two\nlines");
        worker.done(3);
        let status = worker.status();
        let Doing::Working(what) = &status.doing else { panic!("{status:?}") };
        assert_eq!((what.chars().count(), status.since_ms, status.next_ms), (DOING_CHARS_MAX, 1_500, None));
        assert_eq!((status.done, status.error), (3, Some((1_500, "two lines".to_owned()))));
    }

    #[test]
    fn a_text_is_one_line_and_bounded() {
        assert_eq!(bounded("abc", 3), "abc");
        assert_eq!(bounded("abcd", 3), "ab…");
        assert_eq!(bounded("a\r\n\u{1b}b", 9), "a   b");
    }

    /// A worker that panicked used to take the server with it or, in tests, was missing from then on.
    #[tokio::test]
    async fn a_worker_is_begun_again_after_growing_pauses_until_it_is_well() {
        let clock = Clock::simulated(0);
        let (runs, clock_of) = (Arc::new(AtomicU32::new(0)), clock.clone());
        let worker = Worker::new("the test's", &clock);
        let kept = tokio::spawn({
            let (runs, worker) = (runs.clone(), worker.clone());
            async move {
                let work = || {
                    let (run, clock) = (runs.fetch_add(1, Ordering::SeqCst) + 1, clock_of.clone());
                    async move {
                        match run {
                            1..=3 => panic!("run {run}"),
                            4 => {
                                clock.sleep(WELL_AFTER).await;
                                panic!("run 4, after a long time")
                            }
                            _ => {}
                        }
                    }
                };
                worker.keep_going(std::future::pending(), work).await;
            }
        });
        let waits = [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4, WELL_AFTER, PAUSE_MIN];
        for (before, wait) in [(1, waits[0]), (2, waits[1]), (3, waits[2]), (4, waits[3]), (4, waits[4])] {
            settle().await;
            assert_eq!(runs.load(Ordering::SeqCst), before);
            clock.advance(wait - Duration::from_millis(1));
            settle().await;
            assert_eq!(runs.load(Ordering::SeqCst), before);
            clock.advance(Duration::from_millis(1));
        }
        kept.await.unwrap();
        assert_eq!(runs.load(Ordering::SeqCst), 5);
        let status = worker.status();
        assert_eq!((status.restarts, status.doing), (4, Doing::Ended));
        assert!(status.error.unwrap().1.starts_with("a panic: run 4, after a long time"));
    }

    #[tokio::test]
    async fn nothing_is_begun_again_once_all_stops() {
        let worker = Worker::new("the test's", &Clock::simulated(0));
        worker.keep_going(std::future::ready(()), || async { panic!("once") }).await;
        let status = worker.status();
        assert_eq!((status.restarts, status.doing), (0, Doing::Panicked));
    }

    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}
