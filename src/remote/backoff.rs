//! Backoff: which servers may be asked now.
//!
//! A failing server is left alone for a while, twice as long each time; that survives a restart. What people ask is not
//! held back by a failure, but by silence: a server that gave no sign is not waited for again at once. While the Internet
//! is gone (`outage.rs`), no server's standing suffers, and requests resume as soon as it is back.
//!
//! Bounds: [`KNOWN_MAX`] servers in memory, [`UNSAVED_MAX`] changes waiting to be written (a lost one costs one early
//! retry), each once for known servers and once for unknown ones.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Notify;

use super::Failed;
use super::circle::Circle;
use super::contact::Whence;
use super::eviction::Due;
use super::outage::Internet;
use super::request::Urgency;
use crate::{
    base::{self, Clock, Owner, Random, Shares},
    store::{
        Store,
        tables::server::{self, Standing},
    },
};

const KNOWN_MAX: usize = 512;
const UNSAVED_MAX: usize = 512;
/// The first pause; short, since most failures are restarts.
const FIRST_MS: u64 = 10_000;
const LONGEST_MS: u64 = 12 * 3_600_000;
/// What people ask is held back by a server's silence for this long at most.
const SILENCE_MS_MAX: u64 = 5 * 60_000;
/// The same while the Internet is gone, where silence has no standing to follow.
const SILENCE_OFFLINE_MS: u64 = 60_000;
/// Recovered servers remembered until they are taken; the others are tried when their time comes.
const RECOVERED_MAX: usize = 64;
/// A server that contacts us is retried at once this often and no more: many that contact us cannot be reached.
const EXCUSED_MS: u64 = 60_000;
/// While this machine's clock has not been set, whether it is by now is looked at after so long.
const UNSET_MS: u64 = 5_000;

/// How other servers do, as far as they are in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reached {
    /// Since when the Internet is gone, in unix milliseconds.
    pub gone_since_ms: Option<u64>,
    /// Servers that people here have to do with and that answered last time they were asked.
    pub well: usize,
    /// Those of them that failed three times in a row or more.
    pub failing: usize,
    /// Some of those.
    pub examples: Vec<OwnedServerName>,
}

/// Failures in a row after which a server counts as failing: after fewer it may be starting again.
const FAILING_MIN: u32 = 3;
const EXAMPLES_MAX: usize = 3;

#[derive(Clone)]
pub struct Backoff(Arc<Inner>);

struct Inner {
    book: Mutex<Book>,
    store: Store,
    clock: Clock,
    random: Random,
    back: Notify,
    gone: Notify,
    recovered: Mutex<Shares<OwnedServerName, ()>>,
    recovering: Notify,
    due: Arc<Due>,
    circle: Arc<Circle>,
}

struct Book {
    known: Shares<OwnedServerName, Known>,
    unsaved: Shares<OwnedServerName, Standing>,
    internet: Internet,
}

#[derive(Clone, Copy, Default)]
struct Known {
    standing: Standing,
    /// When its own request last ended its backoff, in unix milliseconds.
    excused_ms: Option<u64>,
    /// When it last contacted us, in unix milliseconds.
    heard_ms: Option<u64>,
    /// It gave no sign: until when what people ask is not sent to it, and the number of outages by then.
    silent: Option<(u64, u64)>,
    /// It answered from an address of the home network, last time.
    near: bool,
    /// While the Internet is gone, what can wait is not sent to it before, in unix milliseconds.
    trial_at_ms: u64,
}

impl Backoff {
    pub(super) fn new(store: Store, clock: Clock, random: Random, due: Arc<Due>, circle: Arc<Circle>) -> Backoff {
        let book = Book {
            known: Shares::new(KNOWN_MAX, KNOWN_MAX),
            unsaved: Shares::new(UNSAVED_MAX, UNSAVED_MAX),
            internet: Internet::default(),
        };
        Backoff(Arc::new(Inner {
            book: Mutex::new(book),
            store,
            clock,
            random,
            back: Notify::new(),
            gone: Notify::new(),
            recovered: Mutex::new(Shares::new(RECOVERED_MAX, RECOVERED_MAX)),
            recovering: Notify::new(),
            due,
            circle,
        }))
    }

    /// Whether a server may be asked now, and how long it may be without a sign. `fixed`: it is reached without DNS, so
    /// that the Internet being gone does not matter.
    pub(super) async fn admit(&self, server: &ServerName, fixed: bool, urgency: Urgency) -> Result<Duration, Failed> {
        if !self.0.clock.is_plausible() {
            return Err(Failed::NoTime { retry_after_ms: UNSET_MS });
        }
        let standing = self.standing(server).await;
        let now = self.0.clock.now_ms();
        let mut book = self.book();
        let known = book.known.get(server).copied().unwrap_or_default();
        let closed_until_ms = match urgency {
            Urgency::Later => standing.retry_at_ms,
            Urgency::Person => known.silent_until_ms(book.internet.outages),
            Urgency::Contacted => 0,
        };
        if closed_until_ms > now {
            return Err(Failed::BackingOff { retry_after_ms: closed_until_ms - now });
        }
        let is_exempt = fixed || known.is_within_reach(&book.internet);
        let Book { internet, known, .. } = &mut *book;
        let mut unknown = 0;
        let trial_at_ms = known.get(server).map_or(&mut unknown, |known| &mut known.trial_at_ms);
        internet.admit(is_exempt, urgency, now, trial_at_ms)
    }

    /// When a server may be asked again, in unix milliseconds; 0 when now. From memory and the database.
    pub async fn retry_at_ms(&self, server: &ServerName) -> u64 {
        self.standing(server).await.retry_at_ms
    }

    /// The server answered: it is reachable now, whatever failed before.
    pub fn success(&self, server: &ServerName, whence: Whence) {
        let owner = self.0.circle.remembered(server);
        let mut book = self.book();
        if whence == Whence::Far {
            self.sign_of_life(&mut book);
            book.internet.note_good(server, matches!(owner, Owner::Known(_)));
        }
        let known = book.known.get(server).map(|known| known.standing);
        let is_news = known != Some(Standing::default());
        let known = book.set(owner, server, Standing::default(), is_news);
        known.silent = None;
        if whence != Whence::Nowhere {
            known.near = whence == Whence::Near;
        }
    }

    /// A server contacted us, so it can probably be reached again. Believed once a minute. Says nothing about our own
    /// way out.
    pub async fn heard_from(&self, server: &ServerName) {
        let standing = self.standing(server).await;
        let now = self.0.clock.now_ms();
        {
            let mut book = self.book();
            if let Some(known) = book.known.get(server) {
                (known.heard_ms, known.silent) = (Some(now), None);
            }
            if standing.failures == 0 {
                return;
            }
            let excused = book.known.get(server).and_then(|known| known.excused_ms);
            if excused.is_some_and(|at| now < at + EXCUSED_MS) {
                return;
            }
            let owner = self.0.circle.remembered(server);
            book.set(owner, server, Standing::default(), true).excused_ms = Some(now);
        }
        self.0.recovered.lock().put(self.0.circle.remembered(server), server.to_owned(), ());
        self.0.recovering.notify_one();
    }

    /// How each of these servers does: failures in a row, and when it is asked again. Notes nothing.
    pub async fn standings(&self, servers: Vec<OwnedServerName>) -> crate::store::Result<Vec<Standing>> {
        let (store, names) = (self.0.store.clone(), servers.clone());
        let stored = base::blocking(move || {
            let read = store.read()?;
            names.iter().map(|name| server::standing(&read, name)).collect::<crate::store::Result<Vec<_>>>()
        });
        let (stored, now) = (stored.await?, self.0.clock.now_ms());
        let stored = stored.into_iter().map(|standing| standing.map(|standing| standing.within_reason(now)));
        let book = self.book();
        let newer = |name: &OwnedServerName| {
            let known = book.known.peek(name).map(|known| known.standing);
            known.or(book.unsaved.peek(name).copied())
        };
        Ok(servers.iter().zip(stored).map(|(name, stored)| newer(name).or(stored).unwrap_or_default()).collect())
    }

    /// An administrator wants a server tried now: its failures are forgotten, and what waits for it is sent.
    pub fn try_now(&self, server: &ServerName) {
        let owner = self.0.circle.remembered(server);
        self.book().set(owner.clone(), server, Standing::default(), true).silent = None;
        self.0.recovered.lock().put(owner, server.to_owned(), ());
        self.0.recovering.notify_one();
    }

    /// The servers that failed and have been heard from since the last call. For parts with data waiting for them.
    pub fn take_recovered(&self) -> Vec<OwnedServerName> {
        let recovered = self.0.recovered.lock().drain();
        recovered.into_iter().map(|(server, ())| server).collect()
    }

    /// Resolves when there are servers to take by [`Backoff::take_recovered`]; at once when some came since the last call.
    /// For one waiter.
    pub async fn recovered(&self) {
        self.0.recovering.notified().await;
    }

    /// Another machine answered in the server's place. That shows that our way out is open, and says nothing about the
    /// server.
    pub(super) fn answered(&self, whence: Whence) {
        if whence == Whence::Far {
            self.sign_of_life(&mut self.book());
        }
    }

    /// The server failed in a way that shows that it, or its network, is there. `pause_ms`: how long it asks to be left
    /// alone.
    pub fn failure(&self, server: &ServerName, whence: Whence, pause_ms: Option<u64>) {
        let mut book = self.book();
        if whence == Whence::Far {
            self.sign_of_life(&mut book);
        }
        self.worsen(&mut book, server, pause_ms);
    }

    /// There was no answer at all.
    pub fn silence(&self, server: &ServerName, fixed: bool) {
        let now = self.0.clock.now_ms();
        let owner = self.0.circle.remembered(server);
        let mut book = self.book();
        let is_near = book.known.get(server).is_some_and(|known| known.near);
        if !fixed && !is_near {
            book.internet.note_silent(server);
            if book.internet.is_gone() {
                let outages = book.internet.outages;
                let known = book.known.get_or_put(owner, server.to_owned(), Known::default);
                known.silent = Some((now + SILENCE_OFFLINE_MS, outages));
                return;
            }
        }
        self.worsen(&mut book, server, None);
        self.remember_silence(&mut book, server);
    }

    fn remember_silence(&self, book: &mut Book, server: &ServerName) {
        let (now, outages) = (self.0.clock.now_ms(), book.internet.outages);
        if let Some(known) = book.known.get(server) {
            known.silent = Some((known.standing.retry_at_ms.min(now + SILENCE_MS_MAX), outages));
        }
    }

    /// How the servers do that people here have to do with. Looks through [`KNOWN_MAX`] entries.
    pub fn reached(&self) -> Reached {
        let book = self.book();
        let mut reached = Reached {
            gone_since_ms: book.internet.is_gone().then_some(book.internet.gone_since_ms),
            ..Reached::default()
        };
        for (server, _, known) in book.known.iter().filter(|(_, is_known, _)| *is_known) {
            match known.standing.failures {
                0 => reached.well += 1,
                1..FAILING_MIN => {}
                _ => {
                    reached.failing += 1;
                    if reached.examples.len() < EXAMPLES_MAX {
                        reached.examples.push(server.clone());
                    }
                }
            }
        }
        reached
    }

    pub fn is_offline(&self) -> bool {
        self.book().internet.is_gone()
    }

    /// Resolves when the Internet is gone; at once when it is.
    pub(super) async fn offline(&self) {
        let told = self.0.gone.notified();
        if !self.is_offline() {
            told.await;
        }
    }

    /// The failure of what is not asked now.
    pub(super) fn offline_now(&self) -> Failed {
        self.book().internet.offline()
    }

    /// Whether the server last answered from an address of the home network.
    pub(super) fn is_near(&self, server: &ServerName) -> bool {
        self.book().known.get(server).is_some_and(|known| known.near)
    }

    /// Whether the Internet is gone, and with it the way to a server that is neither in the home network nor has
    /// contacted us meanwhile. Servers that are reached without DNS are not known here.
    pub(super) fn is_cut_off(&self, server: &ServerName) -> bool {
        let book = self.book();
        book.internet.is_gone() && !book.known.peek(server).is_some_and(|known| known.is_within_reach(&book.internet))
    }

    /// Resolves when the Internet comes back.
    pub async fn back_online(&self) {
        self.0.back.notified().await;
    }

    pub(super) fn with_internet<T>(&self, look: impl FnOnce(&mut Internet) -> T) -> T {
        look(&mut self.book().internet)
    }

    /// Takes the result of a probe; returns whether the Internet is gone.
    pub(super) fn conclude(&self, is_there: bool) -> bool {
        let mut book = self.book();
        let (is_gone, is_new) = book.internet.conclude(is_there, self.0.clock.now_ms());
        match (is_gone, is_new) {
            (true, true) => {
                tracing::warn!("no other server can be reached: requests wait until the Internet connection is back");
                self.0.gone.notify_waiters();
            }
            (false, true) => self.say_back(),
            (_, false) => {}
        }
        is_gone
    }

    /// Writes down the changes, one short write for all of them. Called now and then, and at the end.
    pub async fn flush(&self) -> crate::store::Result<()> {
        let unsaved = self.book().unsaved.drain();
        if unsaved.is_empty() {
            return Ok(());
        }
        self.0.due.written(unsaved.len());
        let written = self.0.store.write(move |write| {
            for (server, standing) in &unsaved {
                server::set_standing(write, server, *standing)?;
            }
            Ok::<_, crate::store::Error>(())
        });
        written.await?;
        Ok(())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock()
    }

    async fn standing(&self, server: &ServerName) -> Standing {
        if let Some(known) = self.book().known.get(server) {
            return known.standing;
        }
        let (store, circle, name) = (self.0.store.clone(), self.0.circle.clone(), server.to_owned());
        let stored = base::blocking(move || {
            circle.look(&name)?;
            server::standing(&store.read()?, &name)
        })
        .await;
        let stored = stored.unwrap_or_else(|error: crate::store::Error| {
            tracing::warn!(%error, "the stored failures of a server could not be read");
            None
        });
        let now = self.0.clock.now_ms();
        let stored = stored.map(|standing| standing.within_reason(now));
        let mut book = self.book();
        // A newer change may have been noted meanwhile.
        let unsaved = book.unsaved.peek(server).copied();
        let known = book.known.get(server).map(|known| known.standing);
        let standing = known.or(unsaved).or(stored).unwrap_or_default();
        book.set(self.0.circle.remembered(server), server, standing, false);
        standing
    }

    fn worsen(&self, book: &mut Book, server: &ServerName, pause_ms: Option<u64>) {
        let now = self.0.clock.now_ms();
        let before = book.known.get(server).map(|known| known.standing).unwrap_or_default();
        // Requests in flight together fail together: that is one failure.
        if before.retry_at_ms > now {
            return;
        }
        let failures = before.failures.saturating_add(1);
        let pause = pause_ms.unwrap_or(0).min(LONGEST_MS).max(pause_ms_after(failures, self.0.random.u64()));
        let standing = Standing { failures, retry_at_ms: now + pause };
        book.set(self.0.circle.remembered(server), server, standing, true);
    }

    fn sign_of_life(&self, book: &mut Book) {
        if book.internet.note_sign(self.0.clock.now_ms()) {
            self.say_back();
        }
    }

    fn say_back(&self) {
        tracing::info!("other servers can be reached again");
        self.0.back.notify_waiters();
    }
}

impl Known {
    /// Whether the Internet being gone does not matter to it.
    fn is_within_reach(&self, internet: &Internet) -> bool {
        self.near || self.heard_ms.is_some_and(|at| at >= internet.gone_since_ms)
    }

    fn silent_until_ms(&self, outages: u64) -> u64 {
        self.silent.map_or(0, |(until_ms, at)| if at == outages { until_ms } else { 0 })
    }
}

impl Book {
    fn set(&mut self, owner: Owner<String>, server: &ServerName, standing: Standing, save: bool) -> &mut Known {
        if save {
            self.unsaved.put(owner.clone(), server.to_owned(), standing);
        }
        let known = self.known.get_or_put(owner, server.to_owned(), Known::default);
        known.standing = standing;
        known
    }
}

/// The pause after so many failures, but for chance; 0 after none.
pub fn pause_ms(failures: u32) -> u64 {
    match failures {
        0 => 0,
        _ => FIRST_MS.saturating_mul(1 << (failures - 1).min(20)).min(LONGEST_MS),
    }
}

/// Doubling, give or take a quarter, so that servers that failed together are not retried together.
fn pause_ms_after(failures: u32, random: u64) -> u64 {
    let pause = pause_ms(failures);
    pause - pause / 4 + random % (pause / 2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::remote::tests::share_room;

    fn name(text: &str) -> OwnedServerName {
        text.try_into().unwrap()
    }

    fn backoff(store: &Store, clock: &Clock) -> Backoff {
        let circle = Arc::new(Circle::new(store.clone(), clock.clone()));
        Backoff::new(store.clone(), clock.clone(), Random::seeded(1), Arc::default(), circle)
    }

    #[tokio::test]
    async fn failures_double_the_pause_and_a_restart_keeps_it() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let (one, server) = (backoff(&store, &clock), name("a.example"));
        let mut last = 0;
        for _ in 0..4 {
            assert!(one.admit(&server, true, Urgency::Later).await.is_ok());
            one.failure(&server, Whence::Nowhere, None);
            let Err(Failed::BackingOff { retry_after_ms }) = one.admit(&server, true, Urgency::Later).await else {
                panic!("asked again")
            };
            assert!(retry_after_ms > last, "{retry_after_ms} after {last}");
            last = retry_after_ms;
            clock.advance(Duration::from_millis(retry_after_ms + 1));
        }
        one.failure(&server, Whence::Nowhere, None);
        one.flush().await.unwrap();
        let again = backoff(&store, &clock);
        assert!(matches!(again.admit(&server, true, Urgency::Later).await, Err(Failed::BackingOff { .. })));
        // A 404 used to count as a sign of health.
        again.answered(Whence::Far);
        assert!(matches!(again.admit(&server, true, Urgency::Later).await, Err(Failed::BackingOff { .. })));
        again.success(&server, Whence::Nowhere);
        again.flush().await.unwrap();
        assert!(backoff(&store, &clock).admit(&server, true, Urgency::Later).await.is_ok());
    }

    /// A board that started in 1970 found every certificate not yet valid, and every server failing.
    #[tokio::test]
    async fn nobody_is_asked_before_the_clock_is_set() {
        let (backoff, server) = (backoff(&Store::in_memory(), &Clock::unset()), name("a.example"));
        for urgency in [Urgency::Person, Urgency::Later, Urgency::Contacted] {
            assert!(matches!(backoff.admit(&server, true, urgency).await, Err(Failed::NoTime { .. })));
        }
        backoff.0.clock.set_forward(Duration::from_millis(2 * crate::base::EARLIEST_MS));
        assert!(backoff.admit(&server, true, Urgency::Later).await.is_ok());
        assert_eq!(backoff.retry_at_ms(&server).await, 0);
    }

    /// A server that failed while the clock was ten years ahead was not asked for ten years.
    #[tokio::test]
    async fn a_pause_of_years_is_none() {
        let (store, server) = (Store::in_memory(), name("a.example"));
        let (now, of) = (2 * crate::base::EARLIEST_MS, server.clone());
        let standing = |ms: u64| Standing { failures: 3, retry_at_ms: now + ms };
        let note = async |standing: Standing| {
            let of = of.clone();
            store.write(move |w| server::set_standing(w, &of, standing)).await.unwrap();
            backoff(&store, &Clock::simulated(now)).retry_at_ms(&server).await
        };
        assert_eq!(note(standing(LONGEST_MS)).await, now + LONGEST_MS);
        assert_eq!(note(standing(10 * 365 * 86_400_000)).await, now);
    }

    /// A server that contacts us and cannot be reached was tried anew after each of its requests.
    #[tokio::test]
    async fn who_speaks_to_us_is_believed_once_a_minute() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let (backoff, server) = (backoff(&store, &clock), name("a.example"));
        backoff.failure(&server, Whence::Nowhere, Some(3_600_000));
        backoff.heard_from(&server).await;
        assert!(backoff.admit(&server, true, Urgency::Later).await.is_ok());
        backoff.recovered().await;
        assert_eq!(backoff.take_recovered(), [server.clone()]);
        backoff.failure(&server, Whence::Nowhere, Some(3_600_000));
        backoff.heard_from(&server).await;
        assert!(backoff.admit(&server, true, Urgency::Later).await.is_err() && backoff.take_recovered().is_empty());
        // Many such servers do not make us forget another.
        let others: Vec<_> = (0..200).map(|n| name(&format!("b{n}.example"))).collect();
        for other in others.iter().chain(&others) {
            backoff.failure(other, Whence::Nowhere, Some(3_600_000));
            backoff.heard_from(other).await;
        }
        backoff.heard_from(&server).await;
        for one in others.iter().chain([&server]) {
            assert!(backoff.admit(one, true, Urgency::Later).await.is_err());
        }
        backoff.take_recovered();
        clock.advance(Duration::from_secs(61));
        backoff.heard_from(&server).await;
        assert!(backoff.admit(&server, true, Urgency::Later).await.is_ok());
        assert_eq!(backoff.take_recovered(), [server]);
    }

    /// Unknown servers that failed and contacted us again filled the list of recovered ones, and messages to a known
    /// server waited for hours.
    #[tokio::test]
    async fn strangers_push_out_nobody_known_here() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let (backoff, friend) = (backoff(&store, &clock), name("friend.example"));
        share_room(&store, "friend.example").await;
        backoff.standing(&friend).await;
        backoff.failure(&friend, Whence::Nowhere, Some(3_600_000));
        backoff.heard_from(&friend).await;
        for n in 0..1000 {
            let stranger = name(&format!("s{n}.evil.example"));
            backoff.standing(&stranger).await;
            backoff.failure(&stranger, Whence::Nowhere, Some(3_600_000));
            backoff.heard_from(&stranger).await;
        }
        // Nor from among the servers that are probed first while the Internet is gone.
        backoff.success(&friend, Whence::Far);
        (0..100).for_each(|n| backoff.success(&name(&format!("s{n}.evil.example")), Whence::Far));
        let back = backoff.take_recovered();
        assert!(back.contains(&friend) && back.contains(&name("s999.evil.example")) && back.len() <= 2 * RECOVERED_MAX);
        assert!(!back.contains(&name("s0.evil.example")));
        let book = backoff.book();
        assert!(book.internet.is_good(&friend));
        assert!(book.known.contains(&friend) && book.unsaved.contains(&friend));
        assert!(book.known.len() <= 2 * KNOWN_MAX && book.unsaved.len() <= 2 * UNSAVED_MAX);
    }

    fn is_alone(outcome: Result<Duration, Failed>) -> bool {
        matches!(outcome, Err(Failed::Offline { .. }))
    }

    #[tokio::test]
    async fn while_the_internet_is_gone_only_who_answers_is_asked_as_always() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let backoff = backoff(&store, &clock);
        let (near, far, other, caller) = (name("lan.example"), name("a.example"), name("b.example"), name("c.example"));
        let admit = async |server: &ServerName, urgency| backoff.admit(server, false, urgency).await;
        backoff.admit(&near, false, Urgency::Later).await.unwrap();
        backoff.success(&near, Whence::Near);
        assert!(backoff.conclude(false) && backoff.is_offline());
        // What people ask is tried for a moment, since the server may be in the house; then it is remembered.
        assert_eq!(admit(&far, Urgency::Person).await.unwrap(), super::super::outage::TRIAL);
        backoff.silence(&far, false);
        assert!(matches!(admit(&far, Urgency::Person).await, Err(Failed::BackingOff { .. })));
        assert_eq!(backoff.retry_at_ms(&far).await, 0, "not its fault");
        assert!(is_alone(admit(&other, Urgency::Later).await), "that can wait");
        // A whole room's servers do not wait one after the other.
        let mut asked = 0;
        for n in 0..20 {
            asked += u32::from(admit(&name(&format!("s{n}.example")), Urgency::Person).await.is_ok());
        }
        assert!(asked <= 4, "{asked}");
        // The house goes on, and what it answers does not end the verdict.
        for urgency in [Urgency::Later, Urgency::Person] {
            assert!(admit(&near, urgency).await.unwrap() > super::super::outage::TRIAL);
            assert!(backoff.admit(&other, true, urgency).await.is_ok(), "reached without DNS");
        }
        backoff.success(&near, Whence::Near);
        backoff.heard_from(&caller).await;
        assert!(admit(&caller, Urgency::Later).await.is_ok(), "it found a way to us");
        assert!(backoff.is_offline());
        backoff.success(&other, Whence::Far);
        assert!(!backoff.is_offline());
        assert!(admit(&far, Urgency::Person).await.is_ok(), "silence then says nothing now");
    }

    /// One attempt in 15 s was for all servers together: one in the house, among many others, had its turn after hours.
    #[tokio::test]
    async fn while_the_internet_is_gone_what_can_wait_is_tried_at_each_server() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let backoff = backoff(&store, &clock);
        let servers: Vec<_> = (0..20).map(|n| name(&format!("s{n}.example"))).collect();
        assert!(backoff.conclude(false));
        let mut tried = std::collections::BTreeMap::new();
        for _ in 0..40 {
            clock.advance(Duration::from_secs(1));
            let before: u32 = tried.values().sum();
            for server in &servers {
                let admitted = backoff.admit(server, false, Urgency::Later).await.is_ok();
                *tried.entry(server.clone()).or_default() += u32::from(admitted);
            }
            assert!(tried.values().sum::<u32>() - before <= 2, "a few in a second");
        }
        assert!(tried.values().all(|times| (1..=2).contains(times)), "{tried:?}");
        clock.advance(Duration::from_secs(24 * 3600));
        assert!(backoff.admit(&servers[0], false, Urgency::Later).await.is_ok());
        let again = backoff.admit(&servers[0], false, Urgency::Later).await;
        let Err(Failed::Offline { retry_after_ms }) = again else { panic!("tried twice") };
        assert_eq!(retry_after_ms, 5 * 60_000, "rarely in a long outage");
    }

    /// A server that did not answer was waited for anew by each call of an app.
    #[tokio::test]
    async fn silence_holds_back_what_people_ask_and_other_failures_do_not() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let backoff = backoff(&store, &clock);
        let (silent, wrong) = (name("a.example"), name("b.example"));
        for server in [&silent, &wrong] {
            backoff.admit(server, false, Urgency::Later).await.unwrap();
        }
        backoff.silence(&silent, false);
        backoff.failure(&wrong, Whence::Far, None);
        let admit = async |server: &ServerName, urgency| backoff.admit(server, false, urgency).await.is_ok();
        assert!(!admit(&silent, Urgency::Person).await && admit(&wrong, Urgency::Person).await);
        assert!(!admit(&silent, Urgency::Later).await && !admit(&wrong, Urgency::Later).await);
        assert!(admit(&silent, Urgency::Contacted).await && admit(&wrong, Urgency::Contacted).await);
        backoff.heard_from(&silent).await;
        assert!(admit(&silent, Urgency::Person).await);
        for _ in 0..20 {
            clock.advance(Duration::from_secs(24 * 3600));
            backoff.silence(&silent, false);
        }
        clock.advance(Duration::from_millis(SILENCE_MS_MAX));
        assert!(admit(&silent, Urgency::Person).await && !admit(&silent, Urgency::Later).await);
    }

    #[test]
    fn the_pause_is_bounded() {
        assert!((7_500..=12_500).contains(&pause_ms_after(1, 12345)));
        assert!(pause_ms_after(u32::MAX, u64::MAX) <= LONGEST_MS + LONGEST_MS / 4);
    }
}
