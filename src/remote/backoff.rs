//! Backoff: which servers may be asked now.
//!
//! A failing server is left alone for a while, twice as long each time; that survives a restart. When several servers
//! in a row stay silent and no server answers in between, our own network counts as gone. Then only one probe in a
//! while goes out, no server's standing suffers, and requests resume as soon as any server answers.
//!
//! Bounds: [`KNOWN_MAX`] servers in memory, [`UNSAVED_MAX`] changes waiting to be written (a lost one costs one early
//! retry), each once for known servers and once for unknown ones.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Notify;

use super::Failed;
use super::circle::Circle;
use super::eviction::Due;
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
/// Distinct servers that must be silent in a row before our own network counts as gone.
const SILENT_SERVERS: usize = 3;
/// Recovered servers remembered until they are taken; the others are tried when their time comes.
const RECOVERED_MAX: usize = 64;
/// A server that contacts us is retried at once this often and no more: many that contact us cannot be reached.
const EXCUSED_MS: u64 = 60_000;
const GOOD_SERVERS: usize = 8;
const GOOD_PROBE_MS: u64 = 5_000;
const PROBE_MS_MIN: u64 = 15_000;
const PROBE_MS_MAX: u64 = 120_000;

#[derive(Clone)]
pub struct Backoff(Arc<Inner>);

struct Inner {
    book: Mutex<Book>,
    store: Store,
    clock: Clock,
    random: Random,
    back: Notify,
    recovered: Mutex<Shares<OwnedServerName, ()>>,
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
}

#[derive(Default)]
struct Internet {
    /// Servers that were silent since any server last answered; at most [`SILENT_SERVERS`].
    silent: Vec<OwnedServerName>,
    gone: bool,
    probe_at_ms: u64,
    probe_pause_ms: u64,
    /// Servers that answered lately, and whether they are known here; at most [`GOOD_SERVERS`]. They are the best
    /// probes, so they have a turn of their own.
    good: VecDeque<(OwnedServerName, bool)>,
    good_probe_at_ms: u64,
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
            recovered: Mutex::new(Shares::new(RECOVERED_MAX, RECOVERED_MAX)),
            due,
            circle,
        }))
    }

    /// Whether a server may be asked now. `fixed`: it is reached without DNS, so that the Internet being gone does not
    /// matter. While the Internet is gone, a yes makes this request the probe.
    pub async fn check(&self, server: &ServerName, fixed: bool) -> Result<(), Failed> {
        let standing = self.standing(server).await;
        let now = self.0.clock.now_ms();
        if standing.retry_at_ms > now {
            return Err(Failed::BackingOff { retry_after_ms: standing.retry_at_ms - now });
        }
        let mut book = self.book();
        if fixed || book.internet.may_ask(server, now) {
            Ok(())
        } else {
            Err(Failed::Offline { retry_after_ms: book.internet.probe_at_ms.saturating_sub(now).max(1000) })
        }
    }

    /// When a server may be asked again, in unix milliseconds; 0 when now. From memory and the database.
    pub async fn retry_at_ms(&self, server: &ServerName) -> u64 {
        self.standing(server).await.retry_at_ms
    }

    /// The server answered or contacted us: it is reachable now, whatever failed before.
    pub fn success(&self, server: &ServerName, fixed: bool) {
        let mut book = self.book();
        if !fixed {
            self.sign_of_life(&mut book);
            book.internet.note_good(server, matches!(self.0.circle.remembered(server), Owner::Known(_)));
        }
        let known = book.known.get(server).map(|known| known.standing);
        if known.is_none_or(|standing| standing.failures > 0) {
            book.set(self.0.circle.remembered(server), server, Standing::default(), known != Some(Standing::default()));
        }
    }

    /// A server contacted us, so it can probably be reached again. Believed once a minute. Says nothing about our own
    /// way out.
    pub async fn heard_from(&self, server: &ServerName) {
        if self.standing(server).await.failures == 0 {
            return;
        }
        let now = self.0.clock.now_ms();
        {
            let mut book = self.book();
            let excused = book.known.get(server).and_then(|known| known.excused_ms);
            if excused.is_some_and(|at| now < at + EXCUSED_MS) {
                return;
            }
            let owner = self.0.circle.remembered(server);
            book.set(owner, server, Standing::default(), true).excused_ms = Some(now);
        }
        let mut recovered = self.0.recovered.lock();
        recovered.put(self.0.circle.remembered(server), server.to_owned(), ());
    }

    /// The servers that failed and have been heard from since the last call. For parts with data waiting for them.
    pub fn take_recovered(&self) -> Vec<OwnedServerName> {
        let recovered = self.0.recovered.lock().drain();
        recovered.into_iter().map(|(server, ())| server).collect()
    }

    /// Another machine answered in the server's place. That shows that our way out is open, and says nothing about the
    /// server.
    pub(super) fn answered(&self, fixed: bool) {
        if !fixed {
            self.sign_of_life(&mut self.book());
        }
    }

    /// The server failed in a way that shows that it, or its network, is there. `pause_ms`: how long it asks to be left
    /// alone.
    pub fn failure(&self, server: &ServerName, fixed: bool, pause_ms: Option<u64>) {
        let mut book = self.book();
        if !fixed {
            self.sign_of_life(&mut book);
        }
        self.worsen(&mut book, server, pause_ms);
    }

    /// There was no answer at all.
    pub fn silence(&self, server: &ServerName, fixed: bool) {
        let now = self.0.clock.now_ms();
        let mut book = self.book();
        if !fixed && book.internet.is_gone_after(server, now) {
            return;
        }
        self.worsen(&mut book, server, None);
    }

    pub fn is_offline(&self) -> bool {
        self.book().internet.gone
    }

    /// Resolves when the Internet comes back.
    pub async fn back_online(&self) {
        self.0.back.notified().await;
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
            tracing::warn!(%error, "a server's standing could not be read");
            None
        });
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
        book.internet.silent.clear();
        if std::mem::take(&mut book.internet.gone) {
            tracing::info!("the Internet is back");
            self.0.back.notify_waiters();
        }
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

impl Internet {
    /// Unknown servers take only the places of unknown servers: a caller that names servers to us could otherwise
    /// decide which are listed as answering, and for how long.
    fn note_good(&mut self, server: &ServerName, is_known: bool) {
        if let Some((_, known)) = self.good.iter_mut().find(|(good, _)| good == server) {
            *known = is_known;
            return;
        }
        if self.good.len() == GOOD_SERVERS {
            let stranger = self.good.iter().position(|(_, known)| !known);
            match stranger.or(is_known.then_some(0)) {
                Some(oldest) => drop(self.good.remove(oldest)),
                None => return,
            }
        }
        self.good.push_back((server.to_owned(), is_known));
    }

    fn may_ask(&mut self, server: &ServerName, now_ms: u64) -> bool {
        if !self.gone {
            return true;
        }
        if now_ms >= self.good_probe_at_ms && self.good.iter().any(|(good, _)| good == server) {
            self.good_probe_at_ms = now_ms + GOOD_PROBE_MS;
            return true;
        }
        if now_ms < self.probe_at_ms {
            return false;
        }
        // This request is the probe; the next may go only after a pause, whatever its outcome.
        self.probe_pause_ms = (self.probe_pause_ms * 2).clamp(PROBE_MS_MIN, PROBE_MS_MAX);
        self.probe_at_ms = now_ms + self.probe_pause_ms;
        true
    }

    /// Notes one more silent server; returns whether our own network must count as gone.
    fn is_gone_after(&mut self, server: &ServerName, now_ms: u64) -> bool {
        if !self.gone && !self.silent.iter().any(|silent| silent == server) {
            self.silent.push(server.to_owned());
            if self.silent.len() >= SILENT_SERVERS {
                tracing::warn!("no other server can be reached: waiting for the Internet to come back");
                self.gone = true;
                self.probe_pause_ms = PROBE_MS_MIN;
                self.probe_at_ms = now_ms + PROBE_MS_MIN;
            }
        }
        self.gone
    }
}

/// Doubling, give or take a quarter, so that servers that failed together are not retried together.
fn pause_ms_after(failures: u32, random: u64) -> u64 {
    let pause = FIRST_MS.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_MS);
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
            assert!(one.check(&server, true).await.is_ok());
            one.failure(&server, true, None);
            let Err(Failed::BackingOff { retry_after_ms }) = one.check(&server, true).await else {
                panic!("asked again")
            };
            assert!(retry_after_ms > last, "{retry_after_ms} after {last}");
            last = retry_after_ms;
            clock.advance(Duration::from_millis(retry_after_ms + 1));
        }
        one.failure(&server, true, None);
        one.flush().await.unwrap();
        let again = backoff(&store, &clock);
        assert!(matches!(again.check(&server, true).await, Err(Failed::BackingOff { .. })));
        // A 404 used to count as a sign of health.
        again.answered(false);
        assert!(matches!(again.check(&server, true).await, Err(Failed::BackingOff { .. })));
        again.success(&server, true);
        again.flush().await.unwrap();
        assert!(backoff(&store, &clock).check(&server, true).await.is_ok());
    }

    /// A server that contacts us and cannot be reached was tried anew after each of its requests.
    #[tokio::test]
    async fn who_speaks_to_us_is_believed_once_a_minute() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let (backoff, server) = (backoff(&store, &clock), name("a.example"));
        backoff.failure(&server, true, Some(3_600_000));
        backoff.heard_from(&server).await;
        assert!(backoff.check(&server, true).await.is_ok());
        assert_eq!(backoff.take_recovered(), [server.clone()]);
        backoff.failure(&server, true, Some(3_600_000));
        backoff.heard_from(&server).await;
        assert!(backoff.check(&server, true).await.is_err() && backoff.take_recovered().is_empty());
        // Many such servers do not make us forget another.
        let others: Vec<_> = (0..200).map(|n| name(&format!("b{n}.example"))).collect();
        for other in others.iter().chain(&others) {
            backoff.failure(other, true, Some(3_600_000));
            backoff.heard_from(other).await;
        }
        backoff.heard_from(&server).await;
        for one in others.iter().chain([&server]) {
            assert!(backoff.check(one, true).await.is_err());
        }
        backoff.take_recovered();
        clock.advance(Duration::from_secs(61));
        backoff.heard_from(&server).await;
        assert!(backoff.check(&server, true).await.is_ok());
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
        backoff.failure(&friend, true, Some(3_600_000));
        backoff.heard_from(&friend).await;
        for n in 0..1000 {
            let stranger = name(&format!("s{n}.evil.example"));
            backoff.standing(&stranger).await;
            backoff.failure(&stranger, true, Some(3_600_000));
            backoff.heard_from(&stranger).await;
        }
        // Nor from among the servers that are probed first while the Internet is gone.
        backoff.success(&friend, false);
        (0..100).for_each(|n| backoff.success(&name(&format!("s{n}.evil.example")), false));
        let back = backoff.take_recovered();
        assert!(back.contains(&friend) && back.contains(&name("s999.evil.example")) && back.len() <= 2 * RECOVERED_MAX);
        assert!(!back.contains(&name("s0.evil.example")));
        let book = backoff.book();
        assert!(book.internet.good.iter().any(|(good, _)| *good == friend));
        assert!(book.known.contains(&friend) && book.unsaved.contains(&friend));
        assert!(book.known.len() <= 2 * KNOWN_MAX && book.unsaved.len() <= 2 * UNSAVED_MAX);
    }

    #[tokio::test]
    async fn silence_everywhere_means_the_internet_is_gone() {
        let (store, clock) = (Store::in_memory(), Clock::simulated(1_000_000));
        let backoff = backoff(&store, &clock);
        for server in ["a.example", "b.example", "c.example"] {
            backoff.silence(&name(server), false);
        }
        assert!(backoff.is_offline());
        assert!(matches!(backoff.check(&name("d.example"), false).await, Err(Failed::Offline { .. })));
        assert!(backoff.check(&name("lan.example"), true).await.is_ok(), "the home network goes on");
        clock.advance(Duration::from_millis(PROBE_MS_MIN));
        assert!(backoff.check(&name("d.example"), false).await.is_ok(), "one probe");
        assert!(matches!(backoff.check(&name("e.example"), false).await, Err(Failed::Offline { .. })));
        backoff.silence(&name("d.example"), false);
        assert_eq!(backoff.retry_at_ms(&name("d.example")).await, 0, "not its fault");
        backoff.success(&name("e.example"), false);
        assert!(backoff.check(&name("d.example"), false).await.is_ok());
    }

    #[test]
    fn the_pause_is_bounded() {
        assert!((7_500..=12_500).contains(&pause_ms_after(1, 12345)));
        assert!(pause_ms_after(u32::MAX, u64::MAX) <= LONGEST_MS + LONGEST_MS / 4);
    }
}
