//! Transactions to other servers (server-server API, "Transactions").
//!
//! The outbound log is written once for all destinations. The dispatcher looks at each new row once and notes which
//! servers it concerns; from then on such a server *lags*, with a position of its own, until it has everything. Servers
//! that do not lag cost nothing, neither in memory nor on disk. A few workers at a time bring lagging servers up to
//! date.
//!
//! Positions (`destinations.rs`) are written down every [`FLUSH`], so after a crash a server may get the transactions
//! of that time again. It recognises events by their ids and to-device messages by theirs.
//!
//! Bounds: those of `destinations.rs`, on the `outbound` account; one transaction for each worker.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use ruma::{OwnedServerName, ServerName};
use sha2::{Digest, Sha256};
use tokio::{sync::Notify, task::JoinSet};

use crate::base::{self, Clock, Random, Worker};
use crate::budget::{Account, Budget, Grant};
use crate::feed::Feed;
use crate::matrix::json::partial;
use crate::remote::{Failed, Options, Remote};
use crate::store::{self, Position, Store};
use destinations::{Destinations, FORGET_MS, LAG_BYTES};
use tracing::Instrument;
use transaction::Unit;

mod behind;
pub mod destinations;
pub mod transaction;

/// And never more than half of the account, whose other half is for requests to servers.
const LAGGING_MAX: u64 = 8192;
const FLUSH: Duration = Duration::from_secs(20);
/// Transactions to one server before another gets the worker.
const TURN: usize = 8;
/// Refusals of one transaction that are logged, and the length of a logged one.
const LOGGED_MAX: usize = 50;
const OUTCOME_BYTES_MAX: usize = 2048;
const TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between two looks when nothing happens.
const PAUSE_MS_MIN: u64 = 100;
/// When the Internet returns, lagging servers are spread over this time.
const SPREAD_MS: u64 = 10_000;

/// Bounds from the profile.
#[derive(Debug, Clone, Copy)]
pub struct SenderOptions {
    /// Servers sent to at once. Those that failed lately may take half of the workers.
    pub workers_max: usize,
    /// The bytes of one transaction; a single event may be larger.
    pub transaction_bytes_max: usize,
    /// Lagging servers kept in memory; more wait in the store.
    pub lagging_max: usize,
}

/// How soon a server that a policy list names is looked at again.
const BARRED_PAUSE_MS: u64 = 3_600_000;

impl SenderOptions {
    /// Half of the outbound connections work for the sender; the other half stays for requests.
    pub fn for_connections(connections_max: usize, budget: &Budget) -> SenderOptions {
        let limit = budget.account("outbound").limit();
        SenderOptions {
            workers_max: (connections_max / 2).max(1),
            transaction_bytes_max: (limit / 8).clamp(32 * 1024, 256 * 1024) as usize,
            lagging_max: (limit / 2 / LAG_BYTES).clamp(1, LAGGING_MAX) as usize,
        }
    }
}

/// Sends the rows of the outbound log. Cheap to clone.
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

struct Report {
    server: OwnedServerName,
    /// The server took everything up to here.
    from: Position,
    /// The server will not take the content between `from` and here, however often it is sent.
    left_out: Option<Position>,
    /// Transactions it took.
    sent: u64,
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

    /// Works until [`Sender::stop`]; positions are written down before it returns. After a database error it tries
    /// again after a while. A unit of the worker is a transaction that a server took.
    pub async fn run(&self, worker: &Worker) {
        let mut new_rows = self.0.feed.outbound();
        let mut book = loop {
            let (store, account) = (self.0.store.clone(), self.0.account.clone());
            match Destinations::load(store, account, self.0.options.lagging_max).await {
                Ok(book) => break book,
                Err(error) => {
                    tracing::error!(%error, "the outbound log cannot be read");
                    worker.failed(error);
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
            let more = self.look(&mut book).await.unwrap_or_else(|error| {
                tracing::error!(%error, "the outbound log cannot be read or written");
                worker.failed(error);
                false
            });
            self.start(&mut book, &mut working);
            self.0.lagging.store(book.lagging_count() as u64, Ordering::Relaxed);
            if self.0.clock.instant() >= flush_at || book.is_full_of_done() {
                book.flush().await;
                flush_at = self.0.clock.instant() + FLUSH;
            }
            let pause = if more { Duration::ZERO } else { self.pause(&book, flush_at, working.len()) };
            match working.len() {
                0 => worker.idle_for(pause),
                1 => worker.works_on("a transaction to 1 server"),
                servers => worker.works_on(format_args!("transactions to {servers} servers")),
            }
            tokio::select! {
                biased;
                Some(Ok(report)) = working.join_next() => {
                    worker.done(report.sent);
                    if let Some(failed) = report.failed.as_ref().filter(|failed| !failed.is_a_pause()) {
                        worker.failed(format_args!("{}: {failed}", report.server));
                    }
                    self.record_outcome(&mut book, report);
                }
                _ = new_rows.changed() => {}
                () = self.0.stop.notified() => {}
                () = self.0.remote.backoff().back_online() => self.resume(&mut book),
                // The next look takes them back.
                () = self.0.remote.backoff().recovered() => {}
                () = self.0.clock.sleep(pause) => {}
            }
        }
        working.shutdown().await;
        book.flush().await;
    }

    /// Notes the servers that new rows concern and the servers that have come back; true when there are more rows.
    async fn look(&self, book: &mut Destinations) -> store::Result<bool> {
        let now = self.0.clock.now_ms();
        let more = book.dispatch(self.0.remote.server_name(), now).await?;
        if book.is_between_rows() {
            for server in self.0.remote.backoff().take_recovered() {
                book.take_back(server, now).await?;
            }
            book.take_turns(now, self.0.clock.settled_ms()).await?;
        }
        Ok(more)
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// The time until something can next become due.
    fn pause(&self, book: &Destinations, flush_at: Duration, working: usize) -> Duration {
        let until_flush = flush_at.saturating_sub(self.0.clock.instant());
        if working >= self.0.options.workers_max {
            return until_flush;
        }
        let now = self.0.clock.now_ms();
        let due = book.lagging.values().filter(|lag| !lag.busy && lag.due_ms > now).map(|lag| lag.due_ms);
        let due = due.chain(book.turn_at_ms()).map(|due| due.saturating_sub(now).max(PAUSE_MS_MIN)).min();
        due.map_or(until_flush, |due| Duration::from_millis(due).min(until_flush))
    }

    /// Gives free workers the servers that are due: those without failures first, then those that failed, longest due
    /// first.
    fn start(&self, book: &mut Destinations, working: &mut JoinSet<Report>) {
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
            let (sender, since_ms, doubtful) = (self.clone(), lag.since_ms, lag.doubtful);
            // Not beyond the noted rows: the server would get the rest twice.
            let rows = lag.from..book.reader.max(lag.newest);
            let span = tracing::info_span!("delivery", server = name.as_str());
            let bringing_up = async move {
                let (server, from) = (name.clone(), rows.start);
                let report =
                    base::caught_in(Box::pin(async move { sender.bring_up(name, rows, since_ms, doubtful).await }));
                // Without a report the server would count as being served for ever.
                report.await.unwrap_or_else(|panicked| {
                    let reason = panicked.say();
                    tracing::error!(%server, "sending to a server panicked: {reason}");
                    let failed = Some(Failed::BadAnswer(format!("a panic: {reason}")));
                    Report { server, from, left_out: None, sent: 0, failed }
                })
            };
            working.spawn(bringing_up.instrument(span));
        }
    }

    /// The worker: transaction after transaction, until the server has everything, fails, or has had its turn. A
    /// refused transaction is sent again in halves, down to the one item that is wrong: seven times at most in all,
    /// since the bound only shrinks. An unusable answer counts as a failure only for a server that was already
    /// doubtful: the first may be a restart.
    async fn bring_up(&self, server: OwnedServerName, rows: Range<Position>, since_ms: u64, doubtful: bool) -> Report {
        let mut report = Report { server, from: rows.start, left_out: None, sent: 0, failed: None };
        let (mut items_max, mut turns) = (transaction::PDUS_MAX + transaction::EDUS_MAX, 0);
        while turns < TURN {
            let unit = match self.unit(&report.server, report.from..rows.end, since_ms, items_max).await {
                Ok(unit) => unit,
                Err(reason) => {
                    report.failed = Some(reason);
                    break;
                }
            };
            let (reached, more, items) = (unit.0.reached, unit.0.more, unit.0.items());
            if items > 0
                && let Err(reason) = self.send(&report.server, unit).await
            {
                if is_about_content(&reason) && items > 1 {
                    items_max = items / 2;
                    continue;
                }
                if doubtful {
                    self.0.remote.hold_against(&report.server, &reason);
                }
                report.left_out = is_about_content(&reason).then_some(reached);
                report.failed = Some(reason);
                break;
            }
            report.from = reached;
            report.sent += u64::from(items > 0);
            turns += 1;
            if !more {
                break;
            }
        }
        report
    }

    async fn unit(
        &self,
        server: &ServerName,
        rows: Range<Position>,
        since_ms: u64,
        items_max: usize,
    ) -> Result<(Unit, Grant), Failed> {
        let bytes_max = self.0.options.transaction_bytes_max;
        let grant = self.0.account.take(bytes_max as u64).await?;
        let (store, name) = (self.0.store.clone(), server.to_owned());
        let lag_ms = self.0.clock.now_ms().saturating_sub(since_ms);
        let unit = base::blocking(move || transaction::next(&store.read()?, &name, rows, lag_ms, items_max, bytes_max));
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

    fn record_outcome(&self, book: &mut Destinations, report: Report) {
        let now = self.0.clock.now_ms();
        let Some(lag) = book.lagging.get_mut(&report.server) else { return };
        lag.busy = false;
        if report.from > lag.from {
            lag.from = report.from;
            lag.since_ms = now;
        }
        let server = &report.server;
        match report.failed {
            None if lag.from >= lag.newest => book.finish(report.server),
            None => {
                lag.doubtful = false;
                lag.due_ms = now;
            }
            Some(failed) => {
                // Sending it again for ever would block the rows behind it. A server that refuses everything loses one
                // item with each attempt, and the attempts become ever rarer.
                if let Some(left_out) = report.left_out {
                    tracing::warn!(%server, %failed, "the server refused one event or message, which is not sent \
                     again");
                    lag.from = left_out;
                }
                lag.doubtful = true;
                lag.due_ms = now + self.pause_after(&failed);
                if lag.from >= lag.newest {
                    book.finish(report.server);
                } else if self.0.clock.settled_ms().saturating_sub(self.0.clock.corrected_ms(lag.since_ms)) > FORGET_MS
                    && is_its_own_doing(&failed)
                {
                    tracing::info!(%server, "the server has accepted nothing for two weeks; the events and messages \
                     waiting for it are dropped");
                    book.finish(report.server);
                } else {
                    tracing::debug!(%server, %failed, "not delivered");
                }
            }
        }
    }

    fn pause_after(&self, failed: &Failed) -> u64 {
        match failed {
            Failed::BackingOff { retry_after_ms } => *retry_after_ms,
            Failed::Offline { retry_after_ms } | Failed::NoTime { retry_after_ms } => {
                retry_after_ms + self.0.random.u64() % SPREAD_MS
            }
            Failed::Refused(refused) => refused.retry_after_ms.max(1000),
            // A list may be changed any day; a look costs next to nothing.
            Failed::Barred(_) => BARRED_PAUSE_MS,
            // The backoff already knows the pause; asking it costs nothing.
            _ => 1000,
        }
    }

    fn resume(&self, book: &mut Destinations) {
        let now = self.0.clock.now_ms();
        for lag in book.lagging.values_mut() {
            lag.due_ms = lag.due_ms.min(now + self.0.random.u64() % SPREAD_MS);
        }
    }
}

/// The peer, or a proxy before it, read the transaction and refuses it for its content or length; or the transaction
/// cannot even be signed.
fn is_about_content(failed: &Failed) -> bool {
    matches!(failed.status(), Some(400 | 413)) || matches!(failed, Failed::Unsendable(_))
}

/// The transaction's JSON and its id, which is the same for the same content, so that a retry is recognised.
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

/// The peer took the transaction but not each event of it. Nothing of its answer is kept.
fn log_refusals(server: &ServerName, answer: &[u8]) {
    let mut left = LOGGED_MAX;
    let read = partial::each_member(answer, &mut |name, outcomes| match name {
        "pdus" => partial::each_member(outcomes.get().as_bytes(), &mut |event, outcome| {
            let error: Option<String> = match outcome.get().len() <= OUTCOME_BYTES_MAX {
                true => partial::member(outcome.get().as_bytes(), "error"),
                false => Some("at great length".to_owned()),
            };
            if let Some(error) = error.filter(|_| left > 0 && event.len() <= OUTCOME_BYTES_MAX) {
                left -= 1;
                tracing::info!(%server, %event, %error, "the server did not accept an event");
            }
            Ok(())
        }),
        _ => Ok::<_, serde_json::Error>(()),
    });
    if let Err(wrong) = read {
        tracing::debug!(%server, %wrong, "what it says of a transaction is no such answer");
    }
}

/// Whether a failure counts against the server: not the Internet being gone, nor a lack of memory here. A board that was
/// off for weeks would lose all it owes at its first attempt.
fn is_its_own_doing(failed: &Failed) -> bool {
    !matches!(failed, Failed::Offline { .. } | Failed::NoTime { .. } | Failed::Refused(_))
}
