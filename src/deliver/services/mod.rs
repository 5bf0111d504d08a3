//! Transactions to application services (application service API, "Pushing events").
//!
//! A service has a position, as a pusher has, and no queue: what is next for it is read from the rooms (`next.rs`), behind its
//! position and in the order in which it came. Before a transaction is sent, a row says what is in it, under which id; so
//! one that was cut off, by either side's end, is sent again as it was, and the service knows it by its id. One is under way
//! at a time. A service that fails is tried again ever more rarely, or at once when it asks for a ping.
//!
//! Typing, receipts and presence alone make a transaction that is written nowhere: when it fails, it is dropped.
//!
//! Commits note what changed (`noted.rs`); without services nothing is. Bounds, on the `outbound` account: [`KEPT_BYTES`] while
//! a service is told anything and [`KEPT_OF_ONE_BYTES`] for each, [`SenderOptions`](super::SenderOptions)' bytes for each
//! transaction, of which [`AT_ONCE`] are under way; services that failed or are slow have half of those places.

mod body;
mod next;
mod noted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::base::{self, Clock, Random, Worker, sort_few_by};
use crate::budget::{Account, Budget, Grant};
use crate::feed::Feed;
use crate::remote::Remote;
use crate::remote::service::{Service, Services};
use crate::store::tables::server::service::{self as table, Pending, Status};
use crate::store::tables::user::to_device;
use crate::store::tables::{room, user};
use crate::store::{self, EventNum, Position, Read, RoomNum, Store, UserNum, Write};
use noted::{News, Noted};

/// Transactions at once.
const AT_ONCE: usize = 4;
/// Transactions of one service before another gets its place.
const TURN: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(60);
/// A service that takes longer is slow, and has a place only among those that fail.
const SLOW: Duration = Duration::from_secs(3);
const PAUSE_MS_MIN: u64 = 1_000;
const PAUSE_MS_MAX: u64 = 5 * 60_000;
/// While our own memory or card does not suffice.
const NOT_NOW_MS: u64 = 5_000;
/// Positions that moved without a transaction are written down so often.
const FLUSH: Duration = Duration::from_secs(60);
/// For requests under way when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// A service that comes back sooner goes on where it was; later it begins anew.
const GONE_MS: u64 = 24 * 3_600_000;
/// What changed, as it is noted and handed on, and two copies for each transaction under way.
const KEPT_BYTES: u64 = (2 + 2 * AT_ONCE as u64) * noted::NEWS_BYTES;
/// What changed for one service, while it is told something else or fails.
const KEPT_OF_ONE_BYTES: u64 = noted::NEWS_BYTES;
/// Beyond the events that fit: the last of them with what it replaced (128 KiB), messages to devices and what is not stored,
/// both under two names (96 KiB), and keys: counts under three names, and as much of fallbacks under two, both also while they are
/// put together.
const BEYOND_BYTES: u64 = 224 * 1024 + 7 * body::COUNTS_BYTES_MAX as u64;
/// A look at what was noted: the numbers of what is found, of a hundred of each kind, names of devices, and events that are not
/// stored (16 KiB) with the receipts that they are made of. A look at everything, which passes all rooms, takes what a body does.
const LOOK_BYTES: u64 = 64 * 1024;

/// What only rooms and users know. Blocks.
pub trait Told: Send + Sync {
    /// Writes an event as apps see it, with its room; false when it is not to be told.
    fn event(&self, get: &Read, num: EventNum, out: &mut Vec<u8>) -> store::Result<bool>;

    /// Writes the event of an invite to a room that we do not hold; false when there is none any more.
    fn invite(&self, get: &Read, user: UserNum, room: RoomNum, out: &mut Vec<u8>) -> store::Result<bool>;

    /// The serial of the newest change of anybody's typing, and the rooms where it changed after another one; none when that
    /// is not known.
    fn typing(&self, since: u64) -> (u64, Option<Vec<RoomNum>>);

    /// Who types in a room.
    fn typists(&self, room: RoomNum) -> Vec<UserNum>;

    /// The serial of the newest change of anybody's presence, and whose changed after another one.
    fn presence(&self, since: u64) -> (u64, Vec<UserNum>);

    /// The `m.presence` event of somebody.
    fn presence_event(&self, get: &Read, user: UserNum) -> store::Result<String>;
}

/// Tells application services. Cheap to clone.
#[derive(Clone)]
pub struct ServiceSender(Arc<Inner>);

struct Inner {
    store: Store,
    services: Services,
    told: Arc<dyn Told>,
    clock: Clock,
    random: Random,
    account: Account,
    bytes_max: usize,
    noted: Arc<Noted>,
    shown: Mutex<BTreeMap<String, ServiceStatus>>,
    stopped: AtomicBool,
    stop: Notify,
}

/// How a service does, for the operator.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ServiceStatus {
    /// Transactions that it took since the start.
    pub told: u64,
    /// Why it took none lately.
    pub failing: Option<String>,
    /// When it is tried again, in Unix milliseconds.
    pub retry_ms: Option<u64>,
}

/// The worker's own memory: an entry for each service.
#[derive(Default)]
struct Book(BTreeMap<String, Entry>);

struct Entry {
    service: Arc<Service>,
    status: Status,
    news: News,
    /// Events that are not stored, to be told next.
    ephemeral: String,
    typing: u64,
    presence: u64,
    busy: bool,
    is_slow: bool,
    failures: u32,
    retry_ms: Option<u64>,
    /// The row of the store says otherwise.
    unsaved: bool,
}

impl Entry {
    fn is_doubtful(&self) -> bool {
        self.is_slow || self.failures > 0
    }

    fn has_work(&self) -> bool {
        !self.news.is_empty() || !self.ephemeral.is_empty() || self.status.pending.is_some()
    }
}

/// What became of a service's turn.
struct Report {
    id: String,
    status: Status,
    news: News,
    unsaved: bool,
    told: u64,
    is_slow: bool,
    failed: Option<Failed>,
}

enum Failed {
    /// The service did not take it.
    There(String),
    /// Nothing was tried: memory, or the card.
    Here(String),
}

impl ServiceSender {
    pub fn new(
        store: Store,
        remote: &Remote,
        feed: &Feed,
        told: Arc<dyn Told>,
        (clock, random): (Clock, Random),
        budget: &Budget,
        bytes_max: usize,
    ) -> ServiceSender {
        let noted = Arc::new(Noted::default());
        store.follow(noted.clone());
        let passing = noted.clone();
        feed.on_wake(Box::new(move || passing.note_passing()));
        ServiceSender(Arc::new(Inner {
            store,
            services: remote.app_services().clone(),
            told,
            clock,
            random,
            account: budget.account("outbound"),
            bytes_max,
            noted,
            shown: Mutex::default(),
            stopped: AtomicBool::new(false),
            stop: Notify::new(),
        }))
    }

    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.stop.notify_one();
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// How a service does; none for one that is told nothing.
    pub fn status(&self, id: &str) -> Option<ServiceStatus> {
        self.0.shown.lock().get(id).cloned()
    }

    /// Works until [`ServiceSender::stop`]. A unit of the worker is a transaction that a service took.
    pub async fn run(&self, worker: &Worker) {
        let mut changed = self.0.services.changed();
        let (mut book, mut working, mut kept) = (Book::default(), JoinSet::new(), None);
        let mut flush_at = None;
        let mut first = true;
        while !self.is_stopped() {
            if changed.has_changed().unwrap_or(false) || std::mem::take(&mut first) {
                changed.borrow_and_update();
                if let Err(error) = self.register(&mut book).await {
                    tracing::error!(%error, "how far application services were told cannot be read");
                    worker.failed(error);
                    first = true;
                    self.pause_or_stop(Duration::from_millis(NOT_NOW_MS)).await;
                    continue;
                }
            }
            let keeps = match book.0.len() as u64 {
                0 => 0,
                services => KEPT_BYTES + services * KEPT_OF_ONE_BYTES,
            };
            if kept.as_ref().map_or(0, Grant::bytes) != keeps {
                // The old one comes back before the new one is taken.
                drop(kept.take());
                kept = if keeps == 0 { None } else { self.0.account.try_take(keeps).ok() };
            }
            self.distribute(&mut book).await;
            self.begin(&mut book, &mut working);
            if book.0.values().any(|entry| entry.unsaved) {
                let due = *flush_at.get_or_insert(self.0.clock.instant() + FLUSH);
                if self.0.clock.instant() >= due {
                    flush_at = None;
                    self.flush(&mut book).await;
                }
            }
            let pause = self.pause(&book, flush_at, working.len());
            match working.len() {
                0 => worker.idle_for(pause),
                1 => worker.works_on("a transaction to 1 application service"),
                services => worker.works_on(format_args!("transactions to {services} application services")),
            }
            tokio::select! {
                biased;
                Some(Ok(report)) = working.join_next() => first |= self.record(&mut book, report, worker),
                _ = changed.changed() => first = true,
                () = self.0.noted.noted() => {}
                () = self.0.stop.notified() => {}
                () = self.0.clock.sleep(pause) => {}
            }
        }
        while let Some(Some(Ok(report))) = self.0.clock.timeout(GRACE, working.join_next()).await {
            self.record(&mut book, report, worker);
        }
        working.shutdown().await;
        self.flush(&mut book).await;
    }

    async fn pause_or_stop(&self, pause: Duration) {
        tokio::select! {
            () = self.0.stop.notified() => {}
            () = self.0.clock.sleep(pause) => {}
        }
    }

    /// Until the next retry or flush. What is noted wakes the worker before.
    fn pause(&self, book: &Book, flush_at: Option<Duration>, working: usize) -> Duration {
        let now_ms = self.0.clock.now_ms();
        let retry =
            book.0.values().filter(|entry| !entry.busy && entry.has_work()).filter_map(|entry| entry.retry_ms).min();
        let retry =
            retry.filter(|_| working < AT_ONCE).map(|at| Duration::from_millis(at.saturating_sub(now_ms).max(50)));
        let flush = flush_at.map(|at| at.saturating_sub(self.0.clock.instant()).max(Duration::from_millis(50)));
        retry.into_iter().chain(flush).min().unwrap_or(Duration::from_secs(3600))
    }

    /// Takes in the registered services that are told anything, and lets go those that are no more.
    async fn register(&self, book: &mut Book) -> store::Result<()> {
        let now: Vec<_> = self.0.services.list().iter().filter(|service| service.url.is_some()).cloned().collect();
        let now_ms = self.0.clock.now_ms();
        // One that is being told goes when that ends: its row is written until then.
        let is_gone = |(id, entry): &(&String, &Entry)| !entry.busy && !now.iter().any(|service| service.id == **id);
        let gone: Vec<_> =
            book.0.iter().filter(is_gone).map(|(id, entry)| (id.clone(), entry.status.clone())).collect();
        for (id, status) in gone {
            self.save(&id, Status { ended_ms: Some(now_ms), ..status }).await?;
            self.0.shown.lock().remove(&id);
            book.0.remove(&id);
        }
        // Those that went while the server was down.
        let store = self.0.store.clone();
        let open = base::blocking(move || table::list_open(&store.read()?)).await?;
        for (id, status) in open {
            if !book.0.contains_key(&id) && !now.iter().any(|service| service.id == id) {
                self.save(&id, Status { ended_ms: Some(now_ms), ..status }).await?;
            }
        }
        let ephemeral = now.iter().any(|service| service.wants_ephemeral());
        // From here on everything is noted; what was before is looked at.
        self.0.noted.set_active(!now.is_empty(), ephemeral);
        for service in now {
            if let Some(entry) = book.0.get_mut(&service.id) {
                let is_called = self.0.services.take_poke(&service);
                if is_called && entry.retry_ms.is_some() {
                    entry.retry_ms = Some(now_ms);
                }
                // A new pattern may have new rooms.
                if !Arc::ptr_eq(&entry.service, &service) {
                    entry.news.add(&News::all());
                    entry.service = service;
                }
                continue;
            }
            let id = service.id.clone();
            let job = move |w: &mut Write<'_>| match table::get(w, &id)? {
                Some(status) if status.ended_ms.is_none_or(|ended| now_ms.saturating_sub(ended) < GONE_MS) => {
                    Ok(Status { ended_ms: None, ..status })
                }
                Some(before) => {
                    // Ids of transactions do not come again.
                    let status = Status { number: before.number, ..table::begin(w, &id)? };
                    table::put(w, &id, &status)?;
                    Ok(status)
                }
                None => table::begin(w, &id),
            };
            let (status, _) = self.0.store.write(job).await.map_err(store::WriteError::into_inner)?;
            let (typing, _) = self.0.told.typing(u64::MAX);
            let (presence, _) = self.0.told.presence(u64::MAX);
            self.0.shown.lock().insert(service.id.clone(), ServiceStatus::default());
            let entry = Entry {
                status,
                news: News::all(),
                ephemeral: String::new(),
                typing,
                presence,
                busy: false,
                is_slow: false,
                failures: 0,
                retry_ms: None,
                unsaved: false,
                service: service.clone(),
            };
            book.0.insert(service.id.clone(), entry);
        }
        Ok(())
    }

    /// Gives each service what was noted since.
    async fn distribute(&self, book: &mut Book) {
        let news = self.0.noted.take();
        if !news.is_empty() {
            book.0.values_mut().for_each(|entry| entry.news.add(&news));
        }
        if !self.0.noted.take_passing() {
            return;
        }
        let wanting: Vec<_> = book
            .0
            .iter()
            .filter(|(_, entry)| entry.service.wants_ephemeral())
            .map(|(id, entry)| (id.clone(), entry.service.clone(), entry.typing, entry.presence))
            .collect();
        let (store, told) = (self.0.store.clone(), self.0.told.clone());
        let found = base::blocking(move || {
            let get = store.read()?;
            let look = |(id, service, typing, presence): (String, Arc<Service>, u64, u64)| {
                passing(&*told, &get, &service, typing, presence).map(|found| (id, found))
            };
            wanting.into_iter().map(look).collect::<store::Result<Vec<_>>>()
        });
        match found.await {
            Ok(found) => {
                for (id, passed) in found {
                    let Some(entry) = book.0.get_mut(&id) else { continue };
                    (entry.typing, entry.presence) = (passed.typing, passed.presence);
                    // A service that fails is not told late who typed.
                    if entry.failures == 0 {
                        passed.events.iter().for_each(|event| next::add(&mut entry.ephemeral, event));
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "who types cannot be told to application services"),
        }
    }

    /// Gives free places to services that something waits for.
    fn begin(&self, book: &mut Book, working: &mut JoinSet<Report>) {
        let now_ms = self.0.clock.now_ms();
        let mut doubtful = book.0.values().filter(|entry| entry.busy && entry.is_doubtful()).count();
        let mut order: Vec<String> = book.0.keys().cloned().collect();
        sort_few_by(&mut order, |id| book.0.get(id).is_some_and(Entry::is_doubtful));
        for id in order {
            let Some(entry) = book.0.get_mut(&id) else { continue };
            let is_due = entry.retry_ms.is_none_or(|at| at <= now_ms);
            if working.len() >= AT_ONCE || entry.busy || !is_due || !entry.has_work() {
                continue;
            }
            if entry.is_doubtful() {
                if doubtful >= AT_ONCE / 2 {
                    continue;
                }
                doubtful += 1;
            }
            entry.busy = true;
            entry.retry_ms = None;
            let (sender, service) = (self.clone(), entry.service.clone());
            let status = (entry.status.clone(), entry.unsaved);
            let (news, ephemeral) = (std::mem::take(&mut entry.news), std::mem::take(&mut entry.ephemeral));
            working.spawn(async move { sender.guarded_turn(service, status, news, ephemeral).await });
        }
    }

    /// A turn that ends with a report also when there is a panic in it: without one the service would be told nothing any more.
    async fn guarded_turn(
        self,
        service: Arc<Service>,
        (status, unsaved): (Status, bool),
        news: News,
        ephemeral: String,
    ) -> Report {
        let (id, before) = (service.id.clone(), status.clone());
        let turn = base::caught_in(Box::pin(self.turn(service, (status, unsaved), news, ephemeral))).await;
        let panicked = match turn {
            Ok(report) => return report,
            Err(panicked) => panicked.say(),
        };
        // The row says what is under way.
        let (store, of) = (self.0.store.clone(), id.clone());
        let row = base::blocking(move || table::get(&store.read()?, &of)).await;
        let status = row.ok().flatten().unwrap_or(before);
        let failed = Some(Failed::There(format!("a fault of this server: {panicked}")));
        Report { id, status, news: News::all(), unsaved, told: 0, is_slow: false, failed }
    }

    /// Notes how a turn ended. True when its service is registered no more, so that it can go.
    fn record(&self, book: &mut Book, report: Report, worker: &Worker) -> bool {
        worker.done(report.told);
        let Report { id, status, news, unsaved, told, is_slow, failed } = report;
        let Some(entry) = book.0.get_mut(&id) else { return false };
        entry.busy = false;
        entry.status = status;
        entry.news.add(&news);
        entry.unsaved = unsaved;
        let now_ms = self.0.clock.now_ms();
        let mut shown = self.0.shown.lock();
        let shown = shown.entry(id.clone()).or_default();
        shown.told += told;
        match failed {
            None => {
                entry.is_slow = is_slow;
                if entry.failures > 0 {
                    tracing::info!("the application service {id} takes transactions again");
                }
                entry.failures = 0;
                (shown.failing, shown.retry_ms) = (None, None);
            }
            Some(Failed::Here(why)) => {
                tracing::debug!("the application service {id} is told later: {why}");
                entry.retry_ms = Some(now_ms + NOT_NOW_MS);
                (shown.failing, shown.retry_ms) = (Some(why), entry.retry_ms);
            }
            Some(Failed::There(why)) => {
                let pause = PAUSE_MS_MIN.saturating_mul(1 << entry.failures.min(12)).min(PAUSE_MS_MAX);
                // Some of it by chance, so that services behind one proxy do not come together.
                let pause = pause - self.0.random.below(pause / 4 + 1);
                // The first time, and then whenever the pause is at its longest.
                match entry.failures {
                    0 | 8 => tracing::warn!("the application service {id} takes no transaction: {why}"),
                    _ => tracing::debug!("the application service {id} takes no transaction: {why}"),
                }
                entry.failures = entry.failures.saturating_add(1);
                entry.retry_ms = Some(now_ms + pause);
                worker.failed(format_args!("{id}: {why}"));
                (shown.failing, shown.retry_ms) = (Some(why), entry.retry_ms);
            }
        }
        !self.0.services.list().iter().any(|service| service.id == id && service.url.is_some())
    }

    /// Tells a service what is next, some transactions long.
    async fn turn(
        &self,
        service: Arc<Service>,
        (status, unsaved): (Status, bool),
        news: News,
        ephemeral: String,
    ) -> Report {
        let mut report =
            Report { id: service.id.clone(), status, news, unsaved, told: 0, is_slow: false, failed: None };
        let mut ephemeral = Some(ephemeral).filter(|events| !events.is_empty());
        for _ in 0..TURN {
            let step = self.step(&service, &mut report, ephemeral.take().unwrap_or_default()).await;
            match step {
                Ok(true) => {}
                Ok(false) => return report,
                Err(failed) => {
                    report.failed = Some(failed);
                    return report;
                }
            }
            // One that is registered no more is told no more, and one that is otherwise now as it is now.
            let is_current = self.0.services.list().iter().any(|one| Arc::ptr_eq(one, &service));
            if self.is_stopped() || !is_current {
                return report;
            }
        }
        report
    }

    /// One transaction; false when there is nothing more to tell.
    async fn step(&self, service: &Arc<Service>, report: &mut Report, ephemeral: String) -> Result<bool, Failed> {
        let here = |error: store::Error| Failed::Here(error.to_string());
        let is_again = report.status.pending.is_some();
        let (mut pending, mut more) = match report.status.pending.clone() {
            Some(pending) => (pending, true),
            None => self.look(service, report, ephemeral).await?,
        };
        let mut body = Vec::new();
        // Most commits say nothing to it.
        if is_again || !pending.is_fleeting() || !pending.ephemeral.is_empty() {
            let to = pending.to;
            (pending, body) = self.make(service, pending, !is_again).await?;
            more |= pending.to != to;
        }
        if pending.is_fleeting() && !is_again {
            return self.step_without(service, report, pending, body, more).await;
        }
        if !is_again {
            report.status.number += 1;
            pending.id = self.id_of(&report.status, &pending);
            report.status.pending = Some(pending.clone());
            self.save(&service.id, report.status.clone()).await.map_err(|error| {
                report.status.number -= 1;
                report.status.pending = None;
                here(error)
            })?;
            report.unsaved = false;
            if !more {
                report.news = News { upto: report.news.upto, ..News::default() };
            }
        }
        self.send(service, &pending.id, body, report).await?;
        report.status.position = report.status.position.max(pending.to);
        report.status.pending = None;
        report.unsaved = true;
        if pending.messages.iter().any(|(.., is_alone)| *is_alone) {
            self.end_messages(service, report.status.clone(), &pending).await.map_err(here)?;
            report.unsaved = false;
        }
        Ok(is_again || more || !report.news.is_empty())
    }

    /// What is next, and whether there may be more. Paid for apart from the body, for which there is seldom anything.
    async fn look(
        &self,
        service: &Arc<Service>,
        report: &Report,
        ephemeral: String,
    ) -> Result<(Pending, bool), Failed> {
        let bytes = if report.news.all { self.body_bytes() } else { LOOK_BYTES };
        let grant = self.0.account.take(bytes).await.map_err(|refused| Failed::Here(refused.to_string()))?;
        let (store, of, news) = (self.0.store.clone(), service.clone(), report.news.clone());
        let from = Position(report.status.position);
        let found = base::blocking(move || {
            let next::Next { mut pending, more } = next::find(&store.read()?, &of, from, &news)?;
            if !ephemeral.is_empty() {
                next::add(&mut pending.ephemeral, &ephemeral);
            }
            Ok::<_, store::Error>((pending, more))
        });
        let found = found.await.map_err(|error| Failed::Here(error.to_string()))?;
        drop(grant);
        Ok(found)
    }

    /// The body of a transaction, which the request then pays for itself; and what is in it, when it may be cut.
    async fn make(
        &self,
        service: &Arc<Service>,
        mut pending: Pending,
        may_cut: bool,
    ) -> Result<(Pending, Vec<u8>), Failed> {
        let grant = self.0.account.take(self.body_bytes()).await;
        let grant = grant.map_err(|refused| Failed::Here(refused.to_string()))?;
        let (store, told, of, bytes_max) =
            (self.0.store.clone(), self.0.told.clone(), service.clone(), self.0.bytes_max);
        let made = base::blocking(move || {
            let body = body::make(&*told, &store.read()?, &of, &mut pending, bytes_max, may_cut)?;
            Ok::<_, store::Error>((pending, body))
        });
        let made = made.await.map_err(|error| Failed::Here(error.to_string()))?;
        drop(grant);
        Ok(made)
    }

    fn body_bytes(&self) -> u64 {
        self.0.bytes_max as u64 + BEYOND_BYTES
    }

    /// What need not be told again: nothing at all, which has no body, or what is not stored.
    async fn step_without(
        &self,
        service: &Arc<Service>,
        report: &mut Report,
        pending: Pending,
        body: Vec<u8>,
        more: bool,
    ) -> Result<bool, Failed> {
        if report.status.position != pending.to {
            report.status.position = pending.to;
            report.unsaved = true;
        }
        if !more {
            report.news = News { upto: report.news.upto, ..News::default() };
        }
        if !pending.ephemeral.is_empty() {
            // No id of a transaction that is sent again.
            let id = format!("e{}", self.0.random.token(12));
            self.send(service, &id, body, report).await?;
        }
        Ok(more)
    }

    async fn send(&self, service: &Service, id: &str, body: Vec<u8>, report: &mut Report) -> Result<(), Failed> {
        let began = self.0.clock.instant();
        let answered = self.0.services.put(service, id, Bytes::from(body), TIMEOUT).await;
        report.is_slow = self.0.clock.instant().saturating_sub(began) > SLOW;
        match answered {
            Ok(answered) if answered.is_success() => {
                report.told += 1;
                Ok(())
            }
            Ok(answered) => Err(Failed::There(answered.says(service))),
            Err(crate::remote::web::WebFailed::Refused(refused)) => Err(Failed::Here(refused.to_string())),
            Err(failed) => Err(Failed::There(failed.to_string())),
        }
    }

    /// The id of a new transaction. It has its content in it: after a database was restored from a backup, the numbers come
    /// again with other content, which no service takes for what it knows.
    fn id_of(&self, status: &Status, pending: &Pending) -> String {
        use sha2::{Digest, Sha256};
        let content = serde_json::to_vec(pending).unwrap_or_default();
        let hash: [u8; 32] = Sha256::digest(&content).into();
        let hash = hash[..4].iter().fold(String::new(), |out, byte| format!("{out}{byte:02x}"));
        format!("{}-{hash}", status.number)
    }

    /// Takes away the messages that a service has, along with its position.
    async fn end_messages(&self, service: &Service, status: Status, pending: &Pending) -> store::Result<()> {
        let mut upto: BTreeMap<(u32, String), u64> = BTreeMap::new();
        for (user, device, at, _) in pending.messages.iter().filter(|(.., is_alone)| *is_alone) {
            let last = upto.entry((*user, device.clone())).or_default();
            *last = (*last).max(*at);
        }
        let id = service.id.clone();
        let job = move |w: &mut Write<'_>| {
            for ((user, device), at) in upto {
                to_device::remove_up_to(w, UserNum(user), &device, Position(at), usize::MAX)?;
            }
            table::put(w, &id, &status)
        };
        self.0.store.write(job).await.map(drop).map_err(store::WriteError::into_inner)
    }

    async fn save(&self, id: &str, status: Status) -> store::Result<()> {
        let id = id.to_owned();
        let saved = self.0.store.write(move |w: &mut Write<'_>| table::put(w, &id, &status)).await;
        saved.map(drop).map_err(store::WriteError::into_inner)
    }

    /// Writes positions down that moved without a transaction.
    async fn flush(&self, book: &mut Book) {
        let unsaved = book.0.iter_mut().filter(|(_, entry)| entry.unsaved && !entry.busy);
        let rows: Vec<_> = unsaved
            .map(|(id, entry)| {
                entry.unsaved = false;
                (id.clone(), entry.status.clone())
            })
            .collect();
        if rows.is_empty() {
            return;
        }
        let ids: Vec<_> = rows.iter().map(|(id, _)| id.clone()).collect();
        let written = self.0.store.write(move |w: &mut Write<'_>| {
            for (id, status) in &rows {
                table::put(w, id, status)?;
            }
            Ok::<_, store::Error>(())
        });
        if let Err(failed) = written.await {
            tracing::warn!(%failed, "how far application services were told could not be written down");
            for id in ids {
                if let Some(entry) = book.0.get_mut(&id) {
                    entry.unsaved = true;
                }
            }
        }
    }
}

/// What changed for a service of what is not stored.
struct Passed {
    typing: u64,
    presence: u64,
    events: Vec<String>,
}

/// Looks for it; no further than what is told at once.
fn passing(told: &dyn Told, get: &Read, service: &Service, typing: u64, presence: u64) -> store::Result<Passed> {
    let (mut events, mut bytes) = (Vec::new(), 0);
    let (typing, rooms) = told.typing(typing);
    for num in rooms.unwrap_or_default() {
        if bytes >= next::EPHEMERAL_BYTES_MAX {
            break;
        }
        if next::concerns_room(get, service, num)? {
            let ids: Vec<String> =
                told.typists(num).into_iter().map(|user| user::id_of(get, user)).collect::<store::Result<_>>()?;
            let room_id = room::get_of(get, num)?.id;
            let content = serde_json::json!({ "user_ids": ids });
            let event = serde_json::json!({ "type": "m.typing", "room_id": room_id, "content": content }).to_string();
            bytes += event.len();
            events.push(event);
        }
    }
    let (presence, users) = told.presence(presence);
    for user in users {
        if bytes >= next::EPHEMERAL_BYTES_MAX {
            break;
        }
        if next::shares(get, service, user)? {
            let event = told.presence_event(get, user)?;
            bytes += event.len();
            events.push(event);
        }
    }
    Ok(Passed { typing, presence, events })
}
