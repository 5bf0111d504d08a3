//! Transactions to other servers (server-server API, "Transactions").
//!
//! The outbound log is written once for everybody. The dispatcher looks at each new row once and notes which servers it
//! concerns; from then on such a server *lags*, with a position of its own, until it has everything. Servers that do not
//! lag cost nothing, neither in memory nor on disk. A few workers at a time bring lagging servers up to date.
//!
//! Positions are written down every [`FLUSH`], so after a crash a server may be told again what it was told in that time;
//! it recognises events by their ids and messages to devices by theirs.
//!
//! Bounds: [`LAGGING_MAX`] servers at about [`LAG_BYTES`] each, on the `outbound` account; one transaction for each worker.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ruma::{OwnedServerName, ServerName};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, task::JoinSet};

use super::unit::{self, Unit};
use crate::{
    base::{self, Clock, Random},
    budget::{Account, Budget, Grant},
    feed::Feed,
    remote::{Failed, Options, Remote},
    store::{
        self, Get, Position, Read, Store,
        tables::{
            member,
            outbox::{self, Outbound},
            server::{self, Cursor},
        },
    },
};

/// And never more than half of the account, whose other half is for questions to servers: see `lagging_max`.
const LAGGING_MAX: usize = 8192;
/// A server's name twice, its positions, the tables' share.
const LAG_BYTES: u64 = 192;
const FLUSH: Duration = Duration::from_secs(20);
/// Rows of the log looked at in one read.
const DISPATCH_ROWS: usize = 128;
/// Transactions to one server before another gets the worker.
const TURN: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(60);
/// A server that took nothing for so long is forgotten: its rows would keep the log for ever. When it returns it notices
/// the gap by the next event and asks for what it missed.
const FORGET_MS: u64 = 14 * 24 * 3_600_000;
/// Rows dropped from the log in one write.
const DROP_ROWS: usize = 2000;
/// When the Internet returns, lagging servers are spread over this time.
const SPREAD_MS: u64 = 10_000;

/// Bounds from the profile.
#[derive(Debug, Clone, Copy)]
pub struct SenderOptions {
    /// Servers told at once. Those that failed lately may take half of them.
    pub workers_max: usize,
    /// Of one transaction; a single event may be larger.
    pub transaction_bytes_max: usize,
}

impl SenderOptions {
    /// Half of the outbound connections work for the sender; the other half stays for questions.
    pub fn for_connections(connections_max: usize, budget: &Budget) -> SenderOptions {
        let share = budget.account("outbound").limit() / 8;
        SenderOptions {
            workers_max: (connections_max / 2).max(1),
            transaction_bytes_max: share.clamp(32 * 1024, 256 * 1024) as usize,
        }
    }
}

/// Sends what the outbound log holds. Cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    store: Store,
    remote: Remote,
    feed: Feed,
    clock: Clock,
    random: Random,
    account: Account,
    options: SenderOptions,
    stopped: AtomicBool,
    stop: Notify,
    lagging: AtomicU64,
}

/// A server that lags.
struct Lag {
    /// It has everything up to here.
    from: Position,
    /// The newest row that concerns it.
    newest: Position,
    since_ms: u64,
    /// Not before then.
    due_ms: u64,
    busy: bool,
    /// It failed the last time.
    doubtful: bool,
    /// What its row in the store says.
    saved: Option<Cursor>,
    _grant: Grant,
}

/// The dispatcher's own memory.
struct Book {
    lagging: HashMap<OwnedServerName, Lag>,
    /// Servers that lag no more but still have a row.
    done: BTreeMap<OwnedServerName, ()>,
    /// The log has been looked at up to here.
    reader: Position,
    reader_saved: Position,
    /// Within the row behind `reader`, servers up to this name are noted: a room of thousands is noted in bounded steps.
    within: Option<String>,
}

struct Report {
    server: OwnedServerName,
    from: Position,
    failed: Option<Failed>,
}

impl Sender {
    pub fn new(
        store: Store,
        remote: Remote,
        feed: Feed,
        clock: Clock,
        random: Random,
        budget: &Budget,
        options: SenderOptions,
    ) -> Sender {
        let account = budget.account("outbound");
        let (stopped, stop) = (AtomicBool::new(false), Notify::new());
        let lagging = AtomicU64::new(0);
        Sender(Arc::new(Inner { store, remote, feed, clock, random, account, options, stopped, stop, lagging }))
    }

    /// Servers that do not have everything yet, for the admin page.
    pub fn lagging(&self) -> u64 {
        self.0.lagging.load(Ordering::Relaxed)
    }

    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.stop.notify_one();
    }

    /// Works until [`Sender::stop`]; positions are written down before it returns. A database that cannot be read is tried
    /// again after a while.
    pub async fn run(&self) {
        let mut new_rows = self.0.feed.outbound();
        let mut book = loop {
            match self.load().await {
                Ok(book) => break book,
                Err(error) => {
                    tracing::error!(%error, "the outbound log cannot be read");
                    self.0.clock.sleep(FLUSH).await;
                }
            }
            if self.is_stopped() {
                return;
            }
        };
        let mut working = JoinSet::new();
        let mut flush_at = self.0.clock.instant() + FLUSH;
        while !self.is_stopped() {
            new_rows.borrow_and_update();
            let more = match self.dispatch(&mut book).await {
                Ok(more) => more,
                Err(error) => {
                    tracing::error!(%error, "the outbound log cannot be read");
                    false
                }
            };
            self.start(&mut book, &mut working);
            self.0.lagging.store(book.lagging.len() as u64, Ordering::Relaxed);
            if self.0.clock.instant() >= flush_at {
                self.flush(&mut book).await;
                flush_at = self.0.clock.instant() + FLUSH;
            }
            let pause = if more { Duration::ZERO } else { self.pause(&book, flush_at, working.len()) };
            tokio::select! {
                biased;
                Some(Ok(report)) = working.join_next() => self.settle(&mut book, report),
                _ = new_rows.changed() => {}
                () = self.0.stop.notified() => {}
                () = self.0.remote.backoff().back_online() => self.resume(&mut book),
                () = self.0.clock.sleep(pause) => {}
            }
            for server in self.0.remote.backoff().take_recovered() {
                if let Some(lag) = book.lagging.get_mut(&server) {
                    lag.due_ms = 0;
                    lag.doubtful = false;
                }
            }
        }
        working.shutdown().await;
        self.flush(&mut book).await;
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// How long nothing can become due.
    fn pause(&self, book: &Book, flush_at: Duration, working: usize) -> Duration {
        let until_flush = flush_at.saturating_sub(self.0.clock.instant());
        if working >= self.0.options.workers_max {
            return until_flush;
        }
        let now = self.0.clock.now_ms();
        let due = book.lagging.values().filter(|lag| !lag.busy && lag.due_ms > now).map(|lag| lag.due_ms - now).min();
        due.map_or(until_flush, |due| Duration::from_millis(due).min(until_flush))
    }

    /// What lagged when the server last stopped. A database without a reader begins at the newest row.
    async fn load(&self) -> store::Result<Book> {
        let (store, account, most) = (self.0.store.clone(), self.0.account.clone(), self.lagging_max());
        base::blocking(move || {
            let read = store.read()?;
            let reader = match server::reader(&read)? {
                Some(reader) => reader,
                None => Position(0),
            };
            let mut lagging = HashMap::new();
            server::cursors(&read, &mut |name, cursor| {
                let Ok(grant) = account.try_take(LAG_BYTES) else { return Ok(ControlFlow::Break(())) };
                lagging.insert(name, Lag::saved(cursor, reader, grant));
                Ok(if lagging.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            Ok(Book { lagging, done: BTreeMap::new(), reader, reader_saved: reader, within: None })
        })
        .await
    }

    /// Looks at new rows and notes whom they concern; true when there are more. Stops where there is no place for another
    /// lagging server, and goes on when there is.
    async fn dispatch(&self, book: &mut Book) -> store::Result<bool> {
        let (store, from, within) = (self.0.store.clone(), book.reader, book.within.clone());
        let me = self.0.remote.server_name().to_owned();
        let noted = base::blocking(move || look(&store.read()?, &me, from, within)).await?;
        let now = self.0.clock.now_ms();
        for (at, name) in noted.concerned {
            if !self.note(book, name, at, now) {
                return Ok(false);
            }
        }
        book.reader = noted.reader;
        book.within = noted.within;
        Ok(noted.more)
    }

    /// Servers noted at once.
    fn lagging_max(&self) -> usize {
        LAGGING_MAX.min((self.0.account.limit() / 2 / LAG_BYTES) as usize)
    }

    /// Whether there was place to note it.
    fn note(&self, book: &mut Book, name: OwnedServerName, at: Position, now_ms: u64) -> bool {
        if let Some(lag) = book.lagging.get_mut(&name) {
            lag.newest = lag.newest.max(at);
            return true;
        }
        if book.lagging.len() >= self.lagging_max() {
            return false;
        }
        let Ok(grant) = self.0.account.try_take(LAG_BYTES) else { return false };
        let saved = book.done.remove(&name).map(|()| Cursor { position: Position(0), since_ms: 0 });
        let lag = Lag {
            from: Position(at.0.saturating_sub(1)),
            newest: at,
            since_ms: now_ms,
            due_ms: 0,
            busy: false,
            doubtful: false,
            saved,
            _grant: grant,
        };
        book.lagging.insert(name, lag);
        true
    }

    /// Gives free workers the servers that are due: those in good standing first, then those that failed, longest due first.
    fn start(&self, book: &mut Book, working: &mut JoinSet<Report>) {
        let free = self.0.options.workers_max.saturating_sub(working.len());
        if free == 0 {
            return;
        }
        let now = self.0.clock.now_ms();
        let doubtful = book.lagging.values().filter(|lag| lag.busy && lag.doubtful).count();
        let mut places = (self.0.options.workers_max / 2).max(1).saturating_sub(doubtful);
        let mut due: Vec<(bool, u64, OwnedServerName)> = book
            .lagging
            .iter()
            .filter(|(_, lag)| !lag.busy && lag.due_ms <= now)
            .map(|(name, lag)| (lag.doubtful, lag.due_ms.max(lag.since_ms), name.clone()))
            .collect();
        due.sort_unstable();
        due.retain(|(doubtful, ..)| {
            let has_place = !doubtful || places > 0;
            places = places.saturating_sub(usize::from(*doubtful));
            has_place
        });
        for (_, _, name) in due.into_iter().take(free) {
            let Some(lag) = book.lagging.get_mut(&name) else { continue };
            lag.busy = true;
            let (sender, from, since_ms) = (self.clone(), lag.from, lag.since_ms);
            working.spawn(async move { sender.bring_up(name, from, since_ms).await });
        }
    }

    /// The worker: transaction after transaction, until the server has everything, fails, or has had its turn.
    async fn bring_up(&self, server: OwnedServerName, mut from: Position, since_ms: u64) -> Report {
        let mut failed = None;
        for _ in 0..TURN {
            let unit = match self.unit(&server, from, since_ms).await {
                Ok(unit) => unit,
                Err(reason) => {
                    failed = Some(reason);
                    break;
                }
            };
            let (reached, more) = (unit.0.reached, unit.0.more);
            if !unit.0.is_empty()
                && let Err(reason) = self.send(&server, unit).await
            {
                failed = Some(reason);
                break;
            }
            from = reached;
            if !more {
                break;
            }
        }
        Report { server, from, failed }
    }

    async fn unit(&self, server: &ServerName, from: Position, since_ms: u64) -> Result<(Unit, Grant), Failed> {
        let bytes_max = self.0.options.transaction_bytes_max;
        let grant = self.0.account.take(bytes_max as u64).await?;
        let (store, name) = (self.0.store.clone(), server.to_owned());
        let lag_ms = self.0.clock.now_ms().saturating_sub(since_ms);
        let unit = base::blocking(move || unit::next(&store.read()?, &name, from, lag_ms, bytes_max));
        let unit = unit.await.map_err(|error: store::Error| {
            tracing::error!(%error, %server, "the outbound log cannot be read");
            Failed::BackingOff { retry_after_ms: FLUSH.as_millis() as u64 }
        })?;
        Ok((unit, grant))
    }

    async fn send(&self, server: &ServerName, (unit, grant): (Unit, Grant)) -> Result<(), Failed> {
        let (content, id) = transaction(self.0.remote.server_name(), self.0.clock.now_ms(), &unit);
        let (pdus, edus) = (unit.pdu_count, unit.edu_count);
        // The request charges the content itself from here on.
        drop((unit, grant));
        let target = format!("/_matrix/federation/v1/send/{id}");
        let options = Options { timeout: TIMEOUT, ..Options::default() };
        let answer = self.0.remote.request(server, http::Method::PUT, &target, Some(content), options).await?;
        tracing::debug!(%server, pdus, edus, "delivered");
        log_refusals(server, &answer.body);
        Ok(())
    }

    fn settle(&self, book: &mut Book, report: Report) {
        let now = self.0.clock.now_ms();
        let Some(lag) = book.lagging.get_mut(&report.server) else { return };
        lag.busy = false;
        if report.from > lag.from {
            lag.from = report.from;
            lag.since_ms = now;
        }
        let server = &report.server;
        match report.failed {
            None if lag.from >= lag.newest => {
                if let Some(lag) = book.lagging.remove(server)
                    && lag.saved.is_some()
                {
                    book.done.insert(report.server, ());
                }
            }
            None => {
                lag.doubtful = false;
                lag.due_ms = now;
            }
            // It understood and refuses the transaction as such: sending it again for ever would block what follows.
            Some(failed) if failed.is_refusal() && !matches!(failed.status(), Some(401 | 403 | 404)) => {
                tracing::warn!(%server, %failed, "a transaction was refused and is left out");
                lag.from = lag.newest;
                lag.due_ms = now;
            }
            Some(failed) => {
                lag.doubtful = true;
                lag.due_ms = now + self.pause_after(&failed);
                if now.saturating_sub(lag.since_ms) > FORGET_MS {
                    tracing::info!(%server, "took nothing for two weeks; what it missed is dropped");
                    book.lagging.remove(server);
                    book.done.insert(report.server, ());
                } else {
                    tracing::debug!(%server, %failed, "not delivered");
                }
            }
        }
    }

    fn pause_after(&self, failed: &Failed) -> u64 {
        match failed {
            Failed::BackingOff { retry_after_ms } => *retry_after_ms,
            Failed::Offline { retry_after_ms } => retry_after_ms + self.0.random.u64() % SPREAD_MS,
            Failed::Refused(refused) => refused.retry_after_ms.max(1000),
            // The backoff knows by now how long; asking it costs nothing.
            _ => 1000,
        }
    }

    fn resume(&self, book: &mut Book) {
        let now = self.0.clock.now_ms();
        for lag in book.lagging.values_mut() {
            lag.due_ms = lag.due_ms.min(now + self.0.random.u64() % SPREAD_MS);
        }
    }

    /// Writes positions down and drops the rows everybody has. One write, when there is anything to write.
    async fn flush(&self, book: &mut Book) {
        let mut changed: Vec<(OwnedServerName, Option<Cursor>)> =
            std::mem::take(&mut book.done).into_keys().map(|name| (name, None)).collect();
        for (name, lag) in &mut book.lagging {
            let cursor = Some(Cursor { position: lag.from, since_ms: lag.since_ms });
            if lag.saved != cursor {
                lag.saved = cursor;
                changed.push((name.clone(), cursor));
            }
        }
        if changed.is_empty() && book.reader == book.reader_saved {
            return;
        }
        let reader = book.reader;
        let passed = book.lagging.values().map(|lag| lag.from).min().unwrap_or(reader).min(reader);
        let written = self.0.store.write_freeing(move |write| {
            for (name, cursor) in &changed {
                server::set_cursor(write, name, *cursor)?;
            }
            server::set_reader(write, reader)?;
            outbox::drop_up_to(write, passed, DROP_ROWS)?;
            Ok::<_, store::Error>(())
        });
        match written.await {
            Ok(_) => book.reader_saved = reader,
            Err(error) => tracing::warn!(%error, "delivery positions could not be written down"),
        }
    }
}

impl Lag {
    fn saved(cursor: Cursor, reader: Position, grant: Grant) -> Lag {
        Lag {
            from: cursor.position,
            newest: reader,
            since_ms: cursor.since_ms,
            due_ms: 0,
            busy: false,
            doubtful: false,
            saved: Some(cursor),
            _grant: grant,
        }
    }
}

/// What a look at the log found.
struct Noted {
    concerned: Vec<(Position, OwnedServerName)>,
    reader: Position,
    within: Option<String>,
    more: bool,
}

/// Servers noted in one look; what does not fit is taken up at the same row, behind the last name.
const NOTED_MAX: usize = 1024;

fn look(read: &Read, me: &ServerName, from: Position, within: Option<String>) -> store::Result<Noted> {
    let mut noted = Noted { concerned: Vec::new(), reader: from, within, more: false };
    let mut rows = 0;
    outbox::list_after(read, from, &mut |at, row| {
        if rows == DISPATCH_ROWS {
            noted.more = true;
            return Ok(ControlFlow::Break(()));
        }
        rows += 1;
        if !note_row(read, me, at, &row, &mut noted)? {
            noted.more = true;
            return Ok(ControlFlow::Break(()));
        }
        noted.reader = at;
        noted.within = None;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(noted)
}

/// Notes the servers a row concerns; false when there was no place for all of them.
fn note_row(get: &impl Get, me: &ServerName, at: Position, row: &Outbound, noted: &mut Noted) -> store::Result<bool> {
    let (room, named): (_, &[String]) = match row {
        Outbound::Event { room, also, .. } => (Some(*room), also),
        Outbound::RoomEdu { room, .. } => (Some(*room), &[]),
        Outbound::Edu { to, .. } => (None, to),
    };
    // Named servers are few, and noting one twice does no harm.
    let named = named.iter().filter_map(|name| OwnedServerName::try_from(name.as_str()).ok());
    noted.concerned.extend(named.filter(|name| name != me).map(|name| (at, name)));
    let Some(room) = room else { return Ok(true) };
    let after = noted.within.clone();
    let mut all = true;
    member::list_servers(get, room, after.as_deref(), &mut |name, _| {
        if noted.concerned.len() >= NOTED_MAX {
            all = false;
            return Ok(ControlFlow::Break(()));
        }
        noted.within = Some(name.to_owned());
        if name != me.as_str()
            && let Ok(name) = name.try_into()
        {
            noted.concerned.push((at, name));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(all)
}

/// The transaction's JSON and its id, which is the same for the same content: a retry is recognised.
fn transaction(origin: &ServerName, now_ms: u64, unit: &Unit) -> (Vec<u8>, String) {
    let digest = Sha256::new().chain_update(&unit.pdus).chain_update([0]).chain_update(&unit.edus).finalize();
    let id: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let mut json = Vec::with_capacity(unit.pdus.len() + unit.edus.len() + 128 + origin.as_str().len());
    json.extend_from_slice(format!("{{\"origin\":\"{origin}\",\"origin_server_ts\":{now_ms},\"pdus\":[").as_bytes());
    json.extend_from_slice(&unit.pdus);
    json.extend_from_slice(b"],\"edus\":[");
    json.extend_from_slice(&unit.edus);
    json.extend_from_slice(b"]}");
    (json, id)
}

/// The peer took the transaction but not each event of it.
fn log_refusals(server: &ServerName, answer: &[u8]) {
    #[derive(serde::Deserialize)]
    struct Said {
        #[serde(default)]
        pdus: BTreeMap<String, serde_json::Value>,
    }
    let Ok(said) = serde_json::from_slice::<Said>(answer) else { return };
    for (event, outcome) in said.pdus {
        if let Some(error) = outcome.get("error") {
            tracing::info!(%server, %event, %error, "an event was not accepted");
        }
    }
}
