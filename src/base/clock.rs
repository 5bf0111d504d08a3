//! The time, and waiting for a later one.
//!
//! A board has no clock battery: it starts in 1970, or where it last was, until the network tells it the time. So
//! `now_ms` never goes back behind the latest value it has given or been told of (the store keeps one over a restart).
//! While the machine's clock is behind that, time goes on from there as it passes, so that what is to happen later still
//! happens. Code that measures a length of time uses `instant`, which only moves forward and never jumps.
//!
//! What needs the true time (certificates of others, signatures they shall believe, links that expire) asks
//! [`Clock::is_plausible`] and waits. When the true time comes, what was noted before lies behind it by the jump;
//! [`Clock::corrected_ms`] says when such a thing really was.
//!
//! A clock that was far ahead and is right again is not followed within a run, in which a thousand deadlines stand that were
//! reckoned from the wrong time; a start reads everything with what was kept of that time in mind
//! ([`Clock::remember`]). So the server starts again, by itself: [`Clock::mended`], [`Clock::begin_again`].
//!
//! What removes things for their age goes by [`Clock::settled_ms`], which does not follow a clock that jumps far ahead before it has
//! stood there for a while (`settled.rs`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::date::{date, span};
use super::settled::{Found, JUMP_MS_MAX, Settled};

/// The program was written later than this, in unix milliseconds: no right clock says less. A board's own first date
/// (1970, 2000, the day its system was made) is far before. To be raised with a release, never to a day still to come.
pub const EARLIEST_MS: u64 = 1_760_000_000_000;
/// A clock that is behind the latest known time by less than this has been corrected; it is waited for.
const CORRECTION_MS: u64 = 60_000;
/// A clock that is further behind than this has not been set. A day: nobody's mistake of hours stops what needs the time.
const BEHIND_MS_MAX: u64 = 86_400_000;
/// The clock is looked at so often, and is mended when it was at so many looks in a row: a clock that comes and goes starts
/// no server again.
const LOOK: Duration = Duration::from_secs(60);
const LOOKS: u32 = 3;
/// Made by systemd-timesyncd once the network has told the time.
const SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";

/// A clock that is passed in, never taken: the real one, or one a test moves by hand. Cloning is cheap and gives
/// the same clock.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    source: Source,
    /// The latest unix time in milliseconds given out or remembered.
    latest_ms: AtomicU64,
    /// What the latest time makes `instant` zero to be: from here time goes on while the source is behind.
    origin_ms: AtomicU64,
    /// Nothing less is plausible.
    earliest_ms: u64,
    /// The operator says that the machine's clock is right.
    is_trusted: AtomicBool,
    /// The source was behind what is plausible when it was last read.
    is_unset: AtomicBool,
    jump: Mutex<Option<Jump>>,
    /// None before the time is known at all.
    settled: Mutex<Option<Settled>>,
}

/// What the next run is told of the time, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeptTime {
    /// The latest time given out.
    pub latest_ms: u64,
    /// What things are removed by; none where that is not known.
    pub settled_ms: Option<u64>,
    /// How far the clock was ahead of it, and for how long of the time that the server ran; 0 where it was not doubted.
    pub ahead_ms: u64,
    pub stood_ms: u64,
}

/// A clock that jumped far ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Doubted {
    pub ahead_ms: u64,
    /// Then it is believed.
    pub left_ms: u64,
}

/// The last time that a clock was set that had not been: times from the beginning of the run until then were too early.
#[derive(Clone, Copy)]
struct Jump {
    from_ms: u64,
    until_ms: u64,
    by_ms: u64,
}

enum Source {
    Real { start: Instant },
    Simulated { start_ms: u64, elapsed: watch::Sender<Duration>, set_by_ms: AtomicU64 },
}

impl Clock {
    pub fn real() -> Self {
        Self::with(Source::Real { start: Instant::now() }, EARLIEST_MS)
    }

    /// A clock that stands still at `start_ms` (unix milliseconds) until `advance` is called.
    pub fn simulated(start_ms: u64) -> Self {
        let elapsed = watch::channel(Duration::ZERO).0;
        Self::with(Source::Simulated { start_ms, elapsed, set_by_ms: AtomicU64::new(0) }, 0)
    }

    /// A simulated clock that begins in 1970, as a board's does.
    #[cfg(test)]
    pub fn unset() -> Self {
        let elapsed = watch::channel(Duration::ZERO).0;
        Self::with(Source::Simulated { start_ms: 0, elapsed, set_by_ms: AtomicU64::new(0) }, EARLIEST_MS)
    }

    fn with(source: Source, earliest_ms: u64) -> Self {
        Clock(Arc::new(Inner {
            source,
            latest_ms: AtomicU64::new(0),
            origin_ms: AtomicU64::new(earliest_ms),
            earliest_ms,
            is_trusted: AtomicBool::new(false),
            is_unset: AtomicBool::new(false),
            jump: Mutex::new(None),
            settled: Mutex::new(None),
        }))
    }

    /// Unix time in milliseconds; never less than a time given out or remembered before.
    pub fn now_ms(&self) -> u64 {
        let (read, passed) = (self.read_ms(), self.instant().as_millis() as u64);
        let Inner { latest_ms, origin_ms, earliest_ms, is_unset, .. } = &*self.0;
        let latest = latest_ms.load(Ordering::Relaxed);
        if read < *earliest_ms || read + CORRECTION_MS < latest {
            if !self.is_near(read, latest) {
                is_unset.store(true, Ordering::Relaxed);
            }
            let kept = origin_ms.load(Ordering::Relaxed) + passed;
            return latest_ms.fetch_max(kept, Ordering::Relaxed).max(kept);
        }
        if is_unset.load(Ordering::Relaxed) && is_unset.swap(false, Ordering::Relaxed) {
            self.note_jump(read, passed);
        }
        origin_ms.fetch_max(read.saturating_sub(passed), Ordering::Relaxed);
        latest_ms.fetch_max(read, Ordering::Relaxed).max(read)
    }

    /// The clock was set: what was noted in this run was so much too early.
    fn note_jump(&self, read_ms: u64, passed_ms: u64) {
        let from_ms = self.0.origin_ms.load(Ordering::Relaxed);
        let until_ms = from_ms + passed_ms;
        let by_ms = read_ms.saturating_sub(until_ms);
        *self.0.jump.lock() = Some(Jump { from_ms, until_ms, by_ms });
        tracing::info!("the clock was set: it is {} s later than it seemed", by_ms / 1000);
    }

    fn is_near(&self, read_ms: u64, latest_ms: u64) -> bool {
        read_ms >= self.0.earliest_ms && read_ms + BEHIND_MS_MAX >= latest_ms
    }

    /// Whether the machine's clock can be right: it is not before this program was written, and not by more than a day
    /// before the latest time kept; or whoever set it says that it is right.
    pub fn is_plausible(&self) -> bool {
        let read = self.read_ms();
        self.is_near(read, self.0.latest_ms.load(Ordering::Relaxed)) || self.is_known_right(read)
    }

    fn is_known_right(&self, read_ms: u64) -> bool {
        let is_real = matches!(self.0.source, Source::Real { .. });
        read_ms >= self.0.earliest_ms
            && (self.0.is_trusted.load(Ordering::Relaxed) || is_real && Path::new(SYNCHRONISED).exists())
    }

    /// From now on the machine's clock counts as right, unless it is before this program was written.
    pub fn trust(&self) {
        self.0.is_trusted.store(true, Ordering::Relaxed);
    }

    /// Unix time in milliseconds, for what removes things for their age: [`now_ms`](Clock::now_ms), but that a clock which jumps
    /// far ahead is not followed before it has stood there for days.
    pub fn settled_ms(&self) -> u64 {
        let (read, passed) = (self.read_ms(), self.instant());
        let is_set = read >= self.0.earliest_ms;
        let is_trusted = is_set && self.0.is_trusted.load(Ordering::Relaxed);
        let mut settled = self.0.settled.lock();
        let known = match &mut *settled {
            Some(known) => known,
            None if is_set => settled.insert(Settled::new(read, passed)),
            None => return self.now_ms(),
        };
        let found = known.look(read, passed, is_trusted);
        let now_ms = known.now_ms(passed);
        drop(settled);
        match found {
            Found::AsBefore => {}
            Found::Ahead(ahead_ms) => tracing::warn!(
                "the clock jumped to {}, {} ahead: nothing is removed for its age until it has stood there for three days",
                date(read),
                span(ahead_ms)
            ),
            Found::Believed => tracing::info!("the clock, which had jumped far ahead, is believed from now on"),
        }
        now_ms
    }

    /// How far `now_ms` is ahead of `settled_ms`.
    pub fn doubted_ms(&self) -> u64 {
        let settled_ms = self.settled_ms();
        self.now_ms().saturating_sub(settled_ms)
    }

    /// Whether and how the clock is doubted, being far ahead.
    pub fn doubt(&self) -> Option<Doubted> {
        let (_, passed) = (self.settled_ms(), self.instant());
        let (ahead_ms, left_ms) = (*self.0.settled.lock())?.doubt(passed)?;
        Some(Doubted { ahead_ms, left_ms })
    }

    /// Whether the clock was far ahead in this run and is not any more, so that `now_ms` goes on from a time that never was.
    pub fn was_ahead(&self) -> bool {
        let (read, settled_ms, latest) = (self.read_ms(), self.settled_ms(), self.0.latest_ms.load(Ordering::Relaxed));
        !self.is_near(read, latest) && self.is_back(read, settled_ms, latest)
    }

    /// Whether a start would go by the machine's clock, from which this run is far ahead.
    pub fn is_mended(&self) -> bool {
        let (read, latest) = (self.read_ms(), self.0.latest_ms.load(Ordering::Relaxed));
        self.was_ahead() || !self.is_near(read, latest) && self.is_known_right(read)
    }

    /// Resolves when the machine's clock was far ahead in this run, or in the one before, and has been right again for minutes:
    /// it agrees with the time that has passed since it was last believed, or is known to be right.
    pub async fn mended(&self) {
        let mut looks = 0;
        while looks < LOOKS {
            self.sleep(LOOK).await;
            looks = if self.is_mended() { looks + 1 } else { 0 };
        }
    }

    /// Forgets what time it was, but not how much has passed: for a server that starts again in the same process, while
    /// nothing goes by this clock. It is told then what the last run wrote down.
    pub fn begin_again(&self) {
        let Inner { latest_ms, origin_ms, earliest_ms, is_unset, jump, settled, .. } = &*self.0;
        latest_ms.store(0, Ordering::Relaxed);
        origin_ms.store(*earliest_ms, Ordering::Relaxed);
        is_unset.store(false, Ordering::Relaxed);
        (*jump.lock(), *settled.lock()) = (None, None);
    }

    /// Whether the clock agrees with the settled time, and the latest was far ahead of both.
    fn is_back(&self, read_ms: u64, settled_ms: u64, latest_ms: u64) -> bool {
        latest_ms > settled_ms + JUMP_MS_MAX && self.is_near(read_ms, settled_ms) && read_ms <= settled_ms + JUMP_MS_MAX
    }

    /// What is to be written down for the next run.
    pub fn to_keep(&self) -> KeptTime {
        let (latest_ms, _, passed) = (self.now_ms(), self.settled_ms(), self.instant());
        let settled = self.0.settled.lock().map(|settled| settled.to_keep(passed));
        let (settled_ms, ahead_ms, stood_ms) =
            settled.map_or((None, 0, 0), |(at, ahead, stood)| (Some(at), ahead, stood));
        KeptTime { latest_ms, settled_ms, ahead_ms, stood_ms }
    }

    /// Whether the settled time is known.
    pub fn is_settled(&self) -> bool {
        self.0.settled.lock().is_some()
    }

    /// Takes the settled time from what an earlier run wrote down.
    pub fn settle(&self, kept: KeptTime) {
        let (passed, settled_ms) = (self.instant(), kept.settled_ms.unwrap_or(kept.latest_ms));
        *self.0.settled.lock() = Some(Settled::kept(settled_ms, kept.ahead_ms, kept.stood_ms, passed));
    }

    /// Tells the clock what an earlier run wrote down, as [`remember_ms`](Clock::remember_ms) with its latest time. False when that
    /// was wrong, since the clock was far ahead then: all that is known of it is forgotten.
    pub fn remember(&self, kept: KeptTime) -> bool {
        let (read, passed) = (self.read_ms(), self.instant().as_millis() as u64);
        self.settle(kept);
        let latest = self.0.latest_ms.load(Ordering::Relaxed).max(kept.latest_ms);
        if let Some(settled_ms) = kept.settled_ms.filter(|settled_ms| self.is_back(read, *settled_ms, latest)) {
            let ms = settled_ms.max(read);
            self.0.origin_ms.store(ms.saturating_sub(passed), Ordering::Relaxed);
            self.0.latest_ms.store(ms, Ordering::Relaxed);
            self.0.is_unset.store(false, Ordering::Relaxed);
            return false;
        }
        let is_right = self.remember_ms(kept.latest_ms);
        if !is_right {
            self.settle(KeptTime { latest_ms: read, settled_ms: None, ahead_ms: 0, stood_ms: 0 });
        }
        is_right
    }

    /// A time given out in this run, as it is known now: one from before the clock was set is moved by what it was wrong
    /// by. For what shall last some time and not until some date.
    pub fn corrected_ms(&self, at_ms: u64) -> u64 {
        match *self.0.jump.lock() {
            Some(jump) if (jump.from_ms..=jump.until_ms).contains(&at_ms) => at_ms + jump.by_ms,
            _ => at_ms,
        }
    }

    /// The time of the source, which may lie behind `now_ms` when the board woke up with a wrong date.
    pub fn read_ms(&self) -> u64 {
        match &self.0.source {
            Source::Real { .. } => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
            }
            Source::Simulated { start_ms, elapsed, set_by_ms } => {
                start_ms + elapsed.borrow().as_millis() as u64 + set_by_ms.load(Ordering::Relaxed)
            }
        }
    }

    /// Tells the clock a time known to have passed (the latest one in the database), which it then never goes
    /// back behind. False when that time was wrong, since the machine's clock is known to be right and is far behind it:
    /// then it is not remembered.
    pub fn remember_ms(&self, seen_ms: u64) -> bool {
        let read = self.read_ms();
        if !self.is_near(read, seen_ms) && self.is_known_right(read) {
            return false;
        }
        let passed = self.instant().as_millis() as u64;
        self.0.origin_ms.fetch_max(seen_ms.saturating_sub(passed), Ordering::Relaxed);
        self.0.latest_ms.fetch_max(seen_ms, Ordering::Relaxed);
        true
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

    /// Sets a simulated clock forward, as the network does: no time passes.
    pub fn set_forward(&self, by: Duration) {
        if let Source::Simulated { set_by_ms, .. } = &self.0.source {
            set_by_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Sets a simulated clock back to what it was before that.
    pub fn set_back(&self, by: Duration) {
        if let Source::Simulated { set_by_ms, .. } = &self.0.source {
            set_by_ms.fetch_sub(by.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Moves a simulated clock forward once everybody in the runtime of this thread, its only one, waits for time or the
    /// network: a busy machine, whose other threads are late, is then not taken for a long wait.
    #[cfg(test)]
    pub(crate) async fn pass(&self, length: Duration) {
        super::testing::settled().await;
        self.advance(length);
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

    /// A board without a battery started in 1970: time stood still at the latest known, so that no message was sent to
    /// another server again once it had failed.
    #[test]
    fn without_a_clock_time_goes_on_from_the_latest_known() {
        const KEPT: u64 = EARLIEST_MS + 400 * BEHIND_MS_MAX;
        let clock = Clock::simulated(0);
        assert!(clock.is_plausible());
        clock.remember_ms(KEPT);
        assert!(!clock.is_plausible());
        let first = clock.now_ms();
        clock.advance(Duration::from_secs(60));
        let second = clock.now_ms();
        assert_eq!((first, second), (KEPT, KEPT + 60_000));
        clock.set_forward(Duration::from_millis(KEPT + 10 * BEHIND_MS_MAX));
        let third = clock.now_ms();
        assert!(clock.is_plausible());
        assert_eq!(third, KEPT + 10 * BEHIND_MS_MAX + 60_000);
        assert_eq!(clock.corrected_ms(second), third, "a length that began before the clock was set is known");
        assert_eq!(clock.corrected_ms(first) + 60_000, third);
        assert_eq!(clock.corrected_ms(KEPT - 1), KEPT - 1, "times of earlier runs stay");
        assert_eq!(clock.corrected_ms(third + 5), third + 5);
    }

    #[test]
    fn a_correction_is_waited_for_and_a_clock_set_back_is_not() {
        let clock = Clock::simulated(EARLIEST_MS);
        assert!(clock.remember_ms(EARLIEST_MS + 30_000));
        clock.advance(Duration::from_secs(1));
        assert_eq!((clock.now_ms(), clock.is_plausible()), (EARLIEST_MS + 30_000, true));
        let clock = Clock::simulated(EARLIEST_MS);
        assert!(clock.remember_ms(EARLIEST_MS + 3_600_000));
        clock.advance(Duration::from_secs(1));
        assert_eq!((clock.now_ms(), clock.is_plausible()), (EARLIEST_MS + 3_601_000, true));
    }

    #[test]
    fn the_time_is_never_before_the_program_was_written() {
        let clock = Clock::unset();
        assert_eq!((clock.now_ms(), clock.is_plausible()), (EARLIEST_MS, false));
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.now_ms(), EARLIEST_MS + 5_000);
        clock.set_forward(Duration::from_millis(2 * EARLIEST_MS));
        assert!(clock.now_ms() > 2 * EARLIEST_MS && clock.is_plausible());
        assert!(Clock::real().is_plausible(), "the clock of the machine that tests this");
    }

    /// A clock was in the year 2099 for a moment, which the database then kept.
    #[test]
    fn a_clock_known_to_be_right_overrules_what_was_kept() {
        let clock = Clock::simulated(EARLIEST_MS);
        clock.trust();
        assert!(!clock.remember_ms(EARLIEST_MS * 2));
        assert_eq!((clock.now_ms(), clock.is_plausible()), (EARLIEST_MS, true));
    }

    const YEARS_MS: u64 = 10 * 365 * BEHIND_MS_MAX;

    /// A wrong answer of NTP, ten years ahead, had backups, old messages and guests removed within the hour.
    #[test]
    fn a_clock_that_is_years_ahead_removes_nothing() {
        let clock = Clock::simulated(2 * EARLIEST_MS);
        assert_eq!(clock.settled_ms(), 2 * EARLIEST_MS);
        clock.set_forward(Duration::from_millis(YEARS_MS));
        clock.advance(Duration::from_secs(3600));
        assert_eq!(clock.now_ms(), 2 * EARLIEST_MS + 3_600_000 + YEARS_MS);
        assert_eq!((clock.settled_ms(), clock.doubted_ms()), (2 * EARLIEST_MS + 3_600_000, YEARS_MS));
        assert_eq!(clock.doubt().map(|doubted| doubted.ahead_ms), Some(YEARS_MS));
        assert!(!clock.was_ahead());
        clock.advance(Duration::from_millis(4 * BEHIND_MS_MAX));
        assert_eq!((clock.settled_ms(), clock.doubt()), (clock.now_ms(), None), "it was right");
    }

    /// Who had NTP mend the clock had a server that believed the true time to be the wrong one, for ever.
    #[test]
    fn a_start_after_the_clock_was_mended_forgets_that_it_was_ahead() {
        let clock = Clock::simulated(2 * EARLIEST_MS);
        clock.settled_ms();
        clock.set_forward(Duration::from_millis(YEARS_MS));
        clock.now_ms();
        let kept = clock.to_keep();
        assert_eq!((kept.settled_ms, kept.ahead_ms), (Some(2 * EARLIEST_MS), YEARS_MS));
        // The next run, an hour later, with a clock that is right.
        let right_ms = 2 * EARLIEST_MS + 3_600_000;
        let clock = Clock::simulated(right_ms);
        clock.remember_ms(kept.latest_ms); // The database's file was written then.
        assert!(!clock.remember(kept));
        assert_eq!((clock.now_ms(), clock.settled_ms(), clock.is_plausible()), (right_ms, right_ms, true));
        // With a clock that is still wrong the doubt goes on.
        let clock = Clock::simulated(right_ms + YEARS_MS);
        assert!(clock.remember(kept));
        assert_eq!((clock.now_ms(), clock.settled_ms()), (right_ms + YEARS_MS, 2 * EARLIEST_MS));
    }

    #[test]
    fn a_clock_that_is_mended_in_the_same_run_is_known_to_have_been_ahead() {
        let clock = Clock::simulated(2 * EARLIEST_MS);
        clock.settled_ms();
        clock.remember_ms(2 * EARLIEST_MS + YEARS_MS);
        assert!(clock.was_ahead() && !clock.is_plausible());
        assert_eq!(clock.settled_ms(), 2 * EARLIEST_MS);
    }

    /// Only an operator who read the finding and started the server again brought the time back.
    #[tokio::test]
    async fn a_clock_that_is_mended_in_the_same_run_is_gone_by_again() {
        let (start_ms, hour_ms) = (2 * EARLIEST_MS, 3_600_000);
        let clock = Clock::simulated(start_ms);
        clock.settled_ms();
        let mended = tokio::spawn({
            let clock = clock.clone();
            async move { clock.mended().await }
        });
        let minutes = async |count: u64| {
            for _ in 0..count {
                clock.pass(LOOK).await;
                clock.now_ms();
            }
            super::super::testing::settled().await;
        };
        minutes(30).await;
        clock.set_forward(Duration::from_millis(YEARS_MS));
        minutes(25).await;
        // It comes and goes.
        clock.set_back(Duration::from_millis(YEARS_MS));
        minutes(2).await;
        clock.set_forward(Duration::from_millis(YEARS_MS));
        minutes(1).await;
        assert!(!mended.is_finished());
        clock.set_back(Duration::from_millis(YEARS_MS));
        minutes(2).await;
        assert!(!mended.is_finished());
        assert!(clock.now_ms() >= start_ms + YEARS_MS && !clock.is_plausible());
        assert_eq!(clock.settled_ms(), start_ms + hour_ms, "nothing is removed for its age meanwhile");
        minutes(1).await;
        assert!(mended.is_finished());
        // The server starts again.
        let kept = clock.to_keep();
        clock.begin_again();
        clock.remember_ms(kept.latest_ms); // The database's file was written then.
        assert!(!clock.remember(kept));
        let now_ms = start_ms + hour_ms + 60_000;
        assert_eq!((clock.now_ms(), clock.settled_ms(), clock.is_plausible()), (now_ms, now_ms, true));
        assert!(!clock.was_ahead() && clock.doubt().is_none());
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now_ms(), now_ms + 1000);
    }

    #[tokio::test]
    async fn a_clock_that_is_right_all_along_or_was_set_late_is_never_mended() {
        for late_ms in [0, 2 * EARLIEST_MS + YEARS_MS] {
            let clock = if late_ms == 0 { Clock::simulated(2 * EARLIEST_MS) } else { Clock::unset() };
            clock.remember_ms(2 * EARLIEST_MS);
            let mended = tokio::spawn({
                let clock = clock.clone();
                async move { clock.mended().await }
            });
            for minute in 0..20 {
                if minute == 10 {
                    clock.set_forward(Duration::from_millis(late_ms));
                }
                clock.pass(LOOK).await;
                clock.now_ms();
            }
            super::super::testing::settled().await;
            assert!(!mended.is_finished());
        }
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
