//! One account and the grants drawn from it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::base::{Deadline, StopWatch, block_on_until};

/// Waiters of one account at most. Later callers are refused: a queue of waiters is memory too.
const WAITERS_MAX: usize = 1024;

/// The wait that a refusal suggests when the account sets no time of its own.
const RETRY_AFTER_MS_DEFAULT: u64 = 2_000;

/// An amount of bytes for one purpose. Cloning gives the same account.
#[derive(Clone)]
pub struct Account(Arc<Ledger>);

struct Ledger {
    row: AccountRow,
    /// One book is shared by several accounts where a profile has one within another.
    book: Arc<Book>,
    high_water: AtomicU64,
    refusals: AtomicU64,
    /// When it was last, in milliseconds of the watch, of which 0 is none.
    refused_ms: AtomicU64,
    since: StopWatch,
    nth: Arc<Nth>,
}

struct Book {
    bytes: u64,
    /// The part of them that only [`Account::take_small`] gives out.
    for_small: AtomicU64,
    state: Mutex<State>,
}

impl Book {
    /// What ordinary askers may have in use, small ones included.
    fn ordinary(&self) -> u64 {
        self.bytes.saturating_sub(self.for_small.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct State {
    used: u64,
    /// First come, first served, so that a large request is not starved by small ones.
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    account: Account,
    bytes: u64,
    turn: oneshot::Sender<Grant>,
}

/// Bytes that belong to the holder of this value. They return to the account on drop.
pub struct Grant {
    account: Account,
    bytes: u64,
}

/// No memory: the account, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub account: String,
    pub asked: u64,
    pub limit: u64,
    /// The time until a retry is worthwhile, in milliseconds; meaningless when `too_large`.
    pub retry_after_ms: u64,
    /// It can never fit: waiting does not help.
    pub too_large: bool,
}

impl Account {
    pub(super) fn new(row: AccountRow, nth: Arc<Nth>) -> Self {
        let book = Arc::new(Book { bytes: row.bytes, for_small: AtomicU64::new(0), state: Mutex::default() });
        Self::with(row, book, nth)
    }

    fn with(row: AccountRow, book: Arc<Book>, nth: Arc<Nth>) -> Self {
        let zero = || AtomicU64::new(0);
        let (high_water, refusals, refused_ms) = (zero(), zero(), zero());
        Account(Arc::new(Ledger { row, book, high_water, refusals, refused_ms, since: StopWatch::start(), nth }))
    }

    /// An account whose bytes are drawn from another's.
    pub(super) fn within(outer: &Account, row: AccountRow) -> Self {
        let (book, nth) = (outer.0.book.clone(), outer.0.nth.clone());
        Self::with(row, book, nth)
    }

    /// An account of its own beside the book, with the name of the account that paid for it.
    pub(super) fn part_of(paying: &Account, bytes: u64) -> Self {
        Self::new(AccountRow { bytes, ..paying.0.row.clone() }, paying.0.nth.clone())
    }

    /// Sets `bytes` aside as an account of their own, for work that other waiters must not stop: it lives as long as
    /// the grant is kept.
    pub async fn part(&self, bytes: u64) -> Result<(Account, Grant), Refused> {
        let grant = self.take(bytes).await?;
        Ok((Account::part_of(self, bytes), grant))
    }

    /// The bytes now, or a refusal.
    pub fn try_take(&self, bytes: u64) -> Result<Grant, Refused> {
        self.check(bytes)?;
        let mut book = self.lock();
        if book.somebody_waits() || book.used + bytes > self.0.book.ordinary() {
            drop(book);
            return Err(self.refuse(bytes));
        }
        book.used += bytes;
        Ok(self.granted(book, bytes))
    }

    /// Whether so much would be given out now: nobody waits, and it is there.
    pub fn has_now(&self, bytes: u64) -> bool {
        let mut book = self.lock();
        !book.somebody_waits() && book.used + bytes <= self.0.book.ordinary()
    }

    pub fn is_awaited(&self) -> bool {
        self.lock().somebody_waits()
    }

    /// Sets a part of the account aside for what is small ([`Account::take_small`]).
    pub fn keep_for_small(&self, bytes: u64) {
        self.0.book.for_small.store(bytes, Ordering::Relaxed);
    }

    /// The bytes for something small, which passes by those who wait for more while the part set aside has room;
    /// otherwise as [`Account::take`].
    pub async fn take_small(&self, bytes: u64) -> Result<Grant, Refused> {
        match self.at_once(bytes)? {
            Some(grant) => Ok(grant),
            None => self.take(bytes).await,
        }
    }

    /// The bytes out of all there are, whoever waits; none when they are not there.
    fn at_once(&self, bytes: u64) -> Result<Option<Grant>, Refused> {
        self.check(bytes)?;
        let mut book = self.lock();
        if book.used + bytes > self.0.book.bytes {
            return Ok(None);
        }
        book.used += bytes;
        Ok(Some(self.granted(book, bytes)))
    }

    /// The bytes, waiting for them at most the account's `wait_ms`. Refused at once when they can never fit.
    pub async fn take(&self, bytes: u64) -> Result<Grant, Refused> {
        match self.take_or_queue(bytes)? {
            Turn::Now(grant) => Ok(grant),
            Turn::Later(turn) => {
                // Also when this future is dropped: the next waiter may be first now.
                let _left = Leaving(self);
                match tokio::time::timeout(self.wait(), turn).await {
                    Ok(Ok(grant)) => Ok(grant),
                    _ => Err(self.refuse(bytes)),
                }
            }
        }
    }

    /// The same on a thread that may block. Never call it on a thread that runs async tasks.
    pub fn take_blocking(&self, bytes: u64) -> Result<Grant, Refused> {
        match self.take_or_queue(bytes)? {
            Turn::Now(grant) => Ok(grant),
            Turn::Later(turn) => {
                let _left = Leaving(self);
                match block_on_until(turn, Some(Deadline::after(self.wait()))) {
                    Some(Ok(grant)) => Ok(grant),
                    _ => Err(self.refuse(bytes)),
                }
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.0.row.name
    }

    pub fn limit(&self) -> u64 {
        self.0.row.bytes
    }

    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// The most that was ever in use at once.
    pub fn high_water(&self) -> u64 {
        self.0.high_water.load(Ordering::Relaxed)
    }

    pub fn refusals(&self) -> u64 {
        self.0.refusals.load(Ordering::Relaxed)
    }

    /// How long ago it last refused somebody.
    pub fn refused_ago(&self) -> Option<Duration> {
        match self.0.refused_ms.load(Ordering::Relaxed) {
            0 => None,
            at => Some(self.0.since.elapsed().saturating_sub(Duration::from_millis(at))),
        }
    }

    pub fn row(&self) -> &AccountRow {
        &self.0.row
    }

    /// The most that one asker can have.
    fn most(&self) -> u64 {
        self.limit().min(self.0.book.ordinary())
    }

    fn wait(&self) -> Duration {
        Duration::from_millis(self.0.row.wait_ms)
    }

    fn take_or_queue(&self, bytes: u64) -> Result<Turn, Refused> {
        self.check(bytes)?;
        let mut book = self.lock();
        if !book.somebody_waits() && book.used + bytes <= self.0.book.ordinary() {
            book.used += bytes;
            return Ok(Turn::Now(self.granted(book, bytes)));
        }
        if book.waiting.len() >= WAITERS_MAX || self.0.row.wait_ms == 0 {
            drop(book);
            return Err(self.refuse(bytes));
        }
        let (turn, later) = oneshot::channel();
        book.waiting.push_back(Waiter { account: self.clone(), bytes, turn });
        Ok(Turn::Later(later))
    }

    fn check(&self, bytes: u64) -> Result<(), Refused> {
        if bytes > self.most() || self.0.nth.refuse_now() { Err(self.refuse(bytes)) } else { Ok(()) }
    }

    fn refuse(&self, asked: u64) -> Refused {
        self.0.refusals.fetch_add(1, Ordering::Relaxed);
        self.0.refused_ms.store((self.0.since.elapsed().as_millis() as u64).max(1), Ordering::Relaxed);
        let retry_after_ms = if self.0.row.wait_ms > 0 { self.0.row.wait_ms } else { RETRY_AFTER_MS_DEFAULT };
        let (account, limit) = (self.name().to_owned(), self.limit());
        Refused { account, asked, limit, retry_after_ms, too_large: asked > self.most() }
    }

    fn granted(&self, book: MutexGuard<'_, State>, bytes: u64) -> Grant {
        self.0.high_water.fetch_max(book.used, Ordering::Relaxed);
        Grant { account: self.clone(), bytes }
    }

    fn give_back(&self, bytes: u64) {
        let mut book = self.lock();
        // A drop may run during a panic: a second panic there would end the process, so the error is only logged.
        if book.used < bytes {
            tracing::error!(account = self.name(), "more bytes were returned to an account than it had given out");
        }
        book.used = book.used.saturating_sub(bytes);
        let nobody_waits = book.waiting.is_empty();
        drop(book);
        if !nobody_waits {
            self.serve();
        }
    }

    /// Hands the free bytes to the waiters at the front of the line. One at a time, with the book closed while handing
    /// over: when the receiver is gone, the grant comes back by its drop, which opens the book again.
    fn serve(&self) {
        loop {
            let mut book = self.lock();
            if !book.somebody_waits() || book.used + book.waiting[0].bytes > self.0.book.ordinary() {
                return;
            }
            let Some(Waiter { account, bytes, turn }) = book.waiting.pop_front() else { return };
            book.used += bytes;
            let grant = account.granted(book, bytes);
            let _ = turn.send(grant);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.book.state.lock()
    }
}

impl State {
    /// Whether the line has a waiter. Waiters that gave up are removed here: they must not hold up those behind them.
    fn somebody_waits(&mut self) -> bool {
        self.waiting.retain(|waiter| !waiter.turn.is_closed());
        !self.waiting.is_empty()
    }
}

/// A waiter leaves the line, served or not; the first of the others may then already fit.
struct Leaving<'a>(&'a Account);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.serve();
    }
}

enum Turn {
    Now(Grant),
    Later(oneshot::Receiver<Grant>),
}

impl Grant {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Asks for `more` bytes without waiting; on a refusal the grant stays as it was.
    pub fn grow(&mut self, more: u64) -> Result<(), Refused> {
        let added = self.account.try_take(more)?;
        self.absorb(added);
        Ok(())
    }

    /// Gives `less` bytes back (all of them when it holds fewer).
    pub fn shrink(&mut self, less: u64) {
        let less = less.min(self.bytes);
        self.bytes -= less;
        self.account.give_back(less);
    }

    /// Moves `bytes` (at most what it holds) into a grant of their own.
    pub fn split(&mut self, bytes: u64) -> Grant {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Grant { account: self.account.clone(), bytes }
    }

    /// Joins two grants of one account.
    pub fn absorb(&mut self, mut other: Grant) {
        assert!(Arc::ptr_eq(&self.account.0, &other.account.0), "grants of two accounts are never joined");
        self.bytes += std::mem::take(&mut other.bytes);
    }

    pub fn account(&self) -> &Account {
        &self.account
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.give_back(self.bytes);
        }
    }
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grant({} {})", self.account.name(), self.bytes)
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Account({} {}/{})", self.name(), self.used(), self.limit())
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refused { account, asked, limit, .. } = self;
        if self.too_large {
            write!(f, "{asked} bytes are more than the whole memory account {account} has ({limit} bytes)")
        } else {
            write!(f, "the memory account {account} ({limit} bytes) has less than {asked} bytes left")
        }
    }
}

impl std::error::Error for Refused {}

/// A test's order to refuse one grant: counts down to it.
#[derive(Default)]
pub(super) struct Nth(AtomicU64);

impl Nth {
    pub(super) fn set(&self, n: u64) {
        self.0.store(n, Ordering::SeqCst);
    }

    pub(super) fn pending(&self) -> bool {
        self.0.load(Ordering::SeqCst) > 0
    }

    fn refuse_now(&self) -> bool {
        // The usual case costs one relaxed load.
        self.0.load(Ordering::Relaxed) > 0
            && self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) == Ok(1)
    }
}

#[derive(Debug, Clone)]
pub struct AccountRow {
    pub name: String,
    /// The most that may be in use at once.
    pub bytes: u64,
    /// The account that these bytes are drawn from, where they have none of their own: the two are never in use at
    /// once.
    pub within: Option<String>,
    pub reason: String,
    pub when_empty: WhenEmpty,
    /// The time an asker waits before it is refused; also the wait that a refusal suggests.
    pub wait_ms: u64,
}

/// The result of asking an empty account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenEmpty {
    /// Waits its turn, and is refused after `wait_ms`.
    Wait,
    /// HTTP 429 `M_LIMIT_EXCEEDED` with `retry_after_ms`.
    #[serde(rename = "refuse_429")]
    Refuse429,
    /// HTTP 413 `M_TOO_LARGE`.
    #[serde(rename = "refuse_413")]
    Refuse413,
    /// The connection is closed.
    Close,
    /// The job is put off and tried again later.
    Postpone,
    /// The oldest entries of the cache make room.
    DropCache,
}

impl fmt::Display for WhenEmpty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WhenEmpty::Wait => "waits",
            WhenEmpty::Refuse429 => "429, try later",
            WhenEmpty::Refuse413 => "413, too large",
            WhenEmpty::Close => "connection closed",
            WhenEmpty::Postpone => "postponed",
            WhenEmpty::DropCache => "cache shrinks",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::WhenEmpty;

    fn account(bytes: u64, wait_ms: u64) -> Account {
        let when_empty = WhenEmpty::Wait;
        let (name, reason) = ("test".into(), String::new());
        let row = AccountRow { name, bytes, within: None, reason, when_empty, wait_ms };
        Account::new(row, Arc::default())
    }

    #[test]
    fn grants_return_on_drop() {
        let account = account(100, 0);
        let mut grant = account.try_take(60).unwrap();
        assert!(account.try_take(41).is_err());
        let part = grant.split(20);
        drop(part);
        grant.grow(60).unwrap();
        assert_eq!(account.used(), 100);
        grant.shrink(1000);
        assert_eq!((account.used(), account.high_water(), account.refusals()), (0, 100, 1));
        assert!(account.try_take(101).unwrap_err().too_large);
    }

    /// A message waited up to two seconds behind those who asked for most of the account.
    #[tokio::test]
    async fn what_is_small_passes_by_those_who_wait_for_more() {
        let account = account(100, 60_000);
        account.keep_for_small(20);
        assert!(account.try_take(81).unwrap_err().too_large);
        let large = account.try_take(70).unwrap();
        let other = account.clone();
        let waits = tokio::spawn(async move { other.take(60).await.unwrap() });
        while account.lock().waiting.is_empty() {
            tokio::task::yield_now().await;
        }
        let small = account.take_small(25).await.unwrap();
        assert_eq!(account.used(), 95);
        // Nothing is left for another: it waits as all do.
        let more = account.take_small(10);
        assert!(tokio::time::timeout(Duration::from_millis(20), more).await.is_err());
        drop(large);
        assert!(!waits.is_finished(), "the small one counts as well");
        drop(small);
        assert_eq!(waits.await.unwrap().bytes(), 60);
        assert_eq!(account.used(), 0);
    }

    #[tokio::test]
    async fn waiters_are_served_in_order_and_may_give_up() {
        let account = account(100, 60_000);
        let held = account.try_take(100).unwrap();
        let gave_up = tokio::spawn({
            let account = account.clone();
            async move { account.take(90).await.map(|_| ()) }
        });
        let served = tokio::spawn({
            let account = account.clone();
            async move { account.take(50).await }
        });
        tokio::task::yield_now().await;
        gave_up.abort();
        let _ = gave_up.await;
        drop(held);
        assert_eq!(served.await.unwrap().unwrap().bytes(), 50);
        assert_eq!(account.used(), 0);
    }

    /// A line with a large request in front that has given up, and 60 of 100 bytes in use.
    async fn with_a_dead_front(account: &Account) -> Grant {
        let held = account.try_take(60).unwrap();
        let gave_up = tokio::spawn({
            let account = account.clone();
            async move { account.take(90).await.map(|_| ()) }
        });
        tokio::task::yield_now().await;
        assert_eq!(account.lock().waiting.len(), 1);
        gave_up.abort();
        let _ = gave_up.await;
        held
    }

    #[tokio::test]
    async fn who_gave_up_holds_up_nobody() {
        let account = account(100, 60_000);
        let mut held = with_a_dead_front(&account).await;
        drop(account.try_take(40).unwrap());
        let _held = with_a_dead_front(&Account::part_of(&account, 100)).await;
        held.grow(40).unwrap();
    }

    /// The first waiter leaves without any bytes coming back: those behind it fit at once.
    #[tokio::test]
    async fn when_the_front_gives_up_the_next_is_served() {
        let account = account(100, 60_000);
        let _held = account.try_take(60).unwrap();
        let take = |bytes| {
            let account = account.clone();
            tokio::spawn(async move { account.take(bytes).await.map(|grant| grant.bytes()) })
        };
        let large = take(90);
        tokio::task::yield_now().await;
        let small = take(40);
        tokio::task::yield_now().await;
        assert!(!small.is_finished());
        large.abort();
        assert!(large.await.unwrap_err().is_cancelled());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(small.is_finished());
        assert_eq!(small.await.unwrap(), Ok(40));
    }

    /// The same when the first waiter's time is over.
    #[tokio::test]
    async fn a_line_whose_front_ran_out_of_time_moves_on() {
        let account = account(100, 1);
        let held = account.try_take(60).unwrap();
        assert!(account.take(90).await.is_err());
        let (sender, later) = oneshot::channel();
        account.lock().waiting.push_back(Waiter { account: account.clone(), bytes: 40, turn: sender });
        let late = account.clone();
        assert!(std::thread::spawn(move || late.take_blocking(90).is_err()).join().unwrap());
        assert_eq!(later.await.unwrap().bytes(), 40);
        drop(held);
    }

    /// Two accounts that are never large at once share one book: the second asker waits for the first.
    #[tokio::test]
    async fn an_account_within_another_draws_from_it() {
        let outer = account(100, 60_000);
        let row = AccountRow { name: "inner".into(), bytes: 80, ..outer.row().clone() };
        let inner = Account::within(&outer, row);
        let held = outer.try_take(60).unwrap();
        assert!(inner.try_take(50).is_err());
        assert!(inner.try_take(81).unwrap_err().too_large);
        let waiting = tokio::spawn({
            let inner = inner.clone();
            async move { inner.take(50).await }
        });
        tokio::task::yield_now().await;
        assert!(outer.try_take(10).is_err(), "a line is a line");
        drop(held);
        let grant = waiting.await.unwrap().unwrap();
        assert_eq!((grant.account().name(), outer.used(), inner.used()), ("inner", 50, 50));
        drop(grant);
        assert_eq!(outer.used(), 0);
    }

    #[test]
    fn a_blocked_thread_gets_its_turn() {
        let account = account(10, 60_000);
        let held = account.try_take(10).unwrap();
        let thread = std::thread::spawn({
            let account = account.clone();
            move || account.take_blocking(5).map(|grant| grant.bytes())
        });
        drop(held);
        assert_eq!(thread.join().unwrap(), Ok(5));
    }
}
