//! Push notifications to the gateways that apps chose (push gateway API).
//!
//! Nothing is queued. A pusher has a position, and what waits for it is what its user has not read behind that
//! (`waiting.rs`): a gateway that is dead for a week costs one row, whatever happens in the rooms meanwhile. Commits note
//! the users whom they concern (`noted.rs`); a start, and whatever could not be noted, looks at all pushers once. A
//! gateway that fails is tried again ever more rarely, by a row of the database that says when; after
//! [`GIVE_UP_MS`] it is told only what comes from then on.
//!
//! Each pusher's notifications are told one after the other, each as it is at that time: what was read meanwhile, was
//! redacted, or notifies no more by the rules, is left out. With the last comes the badge, which is told alone when
//! something was read elsewhere. Positions are written down every [`FLUSH`], so after a crash a phone may be told of
//! that time again; it knows the events by their ids.
//!
//! A pusher whose gateway is this server's own (`federation/gateway.rs`) is a UnifiedPush endpoint, which is asked
//! directly.
//!
//! Bounds, on the `outbound` account: [`KEPT_BYTES`] for tables, [`STEP_BYTES`] and a connection for each request, of
//! which `requests_max` run at once; gateways that failed may have half of those.

mod noted;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use url::Url;

use crate::base::{self, Clock, Worker};
use crate::budget::{Account, Budget};
use crate::matrix::push::notice::{self, Device, Notice};
use crate::remote::Remote;
use crate::remote::unified_push::{self, Sent};
use crate::remote::web::{Plain, WebFailed, WebLimits, WebRequest};
use crate::store::tables::user::pusher::{self, Key, Pusher, Status};
use crate::store::{self, Get, Position, Read, Store, UserNum, Write};
use noted::{News, Noted};
pub use waiting::Waiting;

/// The first pause of a gateway that fails; doubled each time.
const PAUSE_MS_MIN: u64 = 1_000;
const PAUSE_MS_MAX: u64 = 3_600_000;
/// While our own way out is gone, which says nothing of a gateway.
const OFFLINE_MS: u64 = 60_000;
/// While our own memory or card does not suffice.
const NOT_NOW_MS: u64 = 10_000;
/// What was not told for so long is told no more, as nobody wants to be rung for it.
const GIVE_UP_MS: u64 = 24 * 3_600_000;
const FLUSH: Duration = Duration::from_secs(20);
/// For requests under way when the server stops.
const GRACE: Duration = Duration::from_secs(2);
/// Requests for one pusher before another gets its place.
const TURN: usize = 16;
/// Notifications looked at in one go that turn out to be none any more.
const SKIPS_MAX: usize = 32;
/// The whole exchange with a gateway.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Of a gateway's answer.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// Pushers whose positions are kept in memory between two flushes; the key twice, the status, the table's share.
const ACTIVE_MAX: usize = 256;
const ACTIVE_BYTES: u64 = 160;
/// What the tables take at most.
const KEPT_BYTES: u64 = noted::NOTED_BYTES + ACTIVE_MAX as u64 * ACTIVE_BYTES;
/// For one request: the event as it is read, and the body that is made of it, which the request then pays for itself.
const STEP_BYTES: u64 = 64 * 1024 + notice::BODY_BYTES_MAX;
/// Hosts that gave no sign lately: others of their pushers are put off without being tried.
const SILENT_HOSTS_MAX: usize = 16;
const SILENT_MS: u64 = 30_000;
/// Pushers looked at in one read when all are.
const LOOK_KEYS: usize = 64;

/// What only the rooms know. Blocks.
pub trait Notices: Send + Sync {
    /// What is to be told of a waiting notification; `None` when it notifies no more.
    fn notice(&self, get: &Read, user: UserNum, waiting: Waiting) -> store::Result<Option<Notice>>;
}

/// Settings, and bounds from the profile.
#[derive(Debug, Clone, Default)]
pub struct PushOptions {
    /// Requests to gateways at once.
    pub requests_max: usize,
    /// The URLs whose `/_matrix/push/v1/notify` is this server's own gateway; none when that is off.
    pub own: Vec<String>,
    /// URLs whose scheme, host and port may be asked at private addresses.
    pub private: Vec<String>,
}

/// Tells push gateways. Cheap to clone.
#[derive(Clone)]
pub struct Pushes(Arc<Inner>);

struct Inner {
    store: Store,
    remote: Remote,
    notices: Arc<dyn Notices>,
    clock: Clock,
    account: Account,
    requests_max: usize,
    own: Vec<String>,
    private: Vec<String>,
    noted: Arc<Noted>,
    stopped: AtomicBool,
    stop: Notify,
}

/// The worker's own memory.
#[derive(Default)]
struct Book {
    active: HashMap<Key, Active>,
    /// Pushers with a task, and whether there may be more for them by now.
    busy: HashMap<Key, Busy>,
    /// Pushers that something waits for; those of one user, or of one read of all.
    due: VecDeque<Key>,
    /// Where a look at all pushers goes on; none when there is none under way.
    all_after: Option<Option<Key>>,
    /// The next time at which a failing gateway is tried; `None` when no gateway fails.
    retry_ms: Option<u64>,
    silent: VecDeque<(String, u64)>,
}

#[derive(Clone, Copy)]
struct Active {
    status: Status,
    /// The row of the store says otherwise.
    unsaved: bool,
}

#[derive(Clone, Copy, Default)]
struct Busy {
    again: bool,
    /// Its gateway failed, and the time for which that was put off has come.
    retry_ms: Option<u64>,
}

/// What became of a pusher's turn.
struct Report {
    key: Key,
    status: Status,
    told: u64,
    more: bool,
    end: End,
}

enum End {
    Well,
    /// The gateway does not know the pushkey, or the pusher is there no more.
    Gone {
        rejected: bool,
    },
    /// `silent`: the host gave no sign.
    Failed {
        why: String,
        silent: Option<String>,
    },
    /// Nothing was tried: memory, or the card.
    NotNow(String),
}

/// What to do next for a pusher.
enum Step {
    Gone,
    Nothing(Status),
    Tell { body: Vec<u8>, before: Status, after: Status, pusher: Box<Pusher>, route: Route },
}

/// How a pusher's gateway is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Gateway {
        near: bool,
    },
    /// The pushkey is a UnifiedPush endpoint.
    Endpoint {
        near: bool,
    },
}

impl Pushes {
    pub fn new(
        store: Store,
        remote: Remote,
        notices: Arc<dyn Notices>,
        clock: Clock,
        budget: &Budget,
        options: PushOptions,
    ) -> Pushes {
        let noted = Arc::new(Noted::default());
        store.follow(noted.clone());
        let origins = |urls: &[String]| urls.iter().filter_map(|url| origin(url)).collect();
        Pushes(Arc::new(Inner {
            store,
            remote,
            notices,
            clock,
            account: budget.account("outbound"),
            requests_max: options.requests_max.max(1),
            own: origins(&options.own),
            private: origins(&options.private),
            noted,
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

    /// Works until [`Pushes::stop`]; positions are written down before it returns. A unit of the worker is a request
    /// that a gateway took.
    pub async fn run(&self, worker: &Worker) {
        // While anybody has a pusher.
        let mut kept = None;
        // Whatever came while nobody looked.
        let mut book = Book { all_after: Some(None), retry_ms: Some(0), ..Book::default() };
        let mut working = JoinSet::new();
        let mut flush_at = self.0.clock.instant() + FLUSH;
        while !self.is_stopped() {
            if let Err(error) = self.start(&mut book, &mut working).await {
                tracing::error!(%error, "what is to be told to push gateways cannot be read");
                worker.failed(error);
                self.0.clock.sleep(FLUSH).await;
                continue;
            }
            if self.0.clock.instant() >= flush_at || book.active.len() >= ACTIVE_MAX {
                self.flush(&mut book, worker).await;
                flush_at = self.0.clock.instant() + FLUSH;
            }
            match kept {
                None if self.0.noted.is_any() => kept = self.0.account.try_take(KEPT_BYTES).ok(),
                Some(_) if !self.0.noted.is_any() => kept = None,
                _ => {}
            }
            let pause = self.pause(&book, working.len(), flush_at);
            match working.len() {
                0 => worker.idle_for(pause),
                1 => worker.works_on("notifications for 1 app"),
                apps => worker.works_on(format_args!("notifications for {apps} apps")),
            }
            tokio::select! {
                biased;
                Some(Ok(report)) = working.join_next() => self.record(&mut book, report, worker).await,
                () = self.0.noted.noted() => {}
                () = self.0.stop.notified() => {}
                () = self.0.clock.sleep(pause) => {}
            }
        }
        // What gateways took is noted; one that is slow now may be told of it again.
        while let Some(Some(Ok(report))) = self.0.clock.timeout(GRACE, working.join_next()).await {
            self.record(&mut book, report, worker).await;
        }
        working.shutdown().await;
        self.flush(&mut book, worker).await;
    }

    /// Until the next flush or retry, whichever is first. What is noted wakes the worker before.
    fn pause(&self, book: &Book, working: usize, flush_at: Duration) -> Duration {
        let flush = flush_at.saturating_sub(self.0.clock.instant());
        let now = self.0.clock.now_ms();
        match book.retry_ms {
            // Without a place for it a retry waits for a report.
            Some(retry_ms) if working < self.0.requests_max && book.doubtful() < self.doubtful_max() => {
                flush.min(Duration::from_millis(retry_ms.saturating_sub(now).max(50)))
            }
            _ => flush,
        }
    }

    fn doubtful_max(&self) -> usize {
        (self.0.requests_max / 2).max(1)
    }

    /// Gives free places to pushers for which something waits: what was noted first, then what a look at all finds,
    /// then gateways that failed.
    async fn start(&self, book: &mut Book, working: &mut JoinSet<Report>) -> store::Result<()> {
        if self.0.noted.take_all() {
            book.all_after = Some(None);
        }
        while working.len() < self.0.requests_max {
            if let Some(key) = book.due.pop_front() {
                self.begin(book, working, key, None);
            } else if let Some((user, news)) = self.0.noted.take() {
                self.look_at(book, user, news).await?;
            } else if book.all_after.is_some() {
                self.look_at_all(book).await?;
            } else if !self.retry(book, working).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin(&self, book: &mut Book, working: &mut JoinSet<Report>, key: Key, retry_ms: Option<u64>) {
        if let Some(busy) = book.busy.get_mut(&key) {
            busy.again = true;
            return;
        }
        book.busy.insert(key, Busy { again: false, retry_ms });
        let (pushes, known) = (self.clone(), book.active.get(&key).map(|active| active.status));
        let silent: Vec<String> = match retry_ms {
            // It is its turn to be tried.
            Some(_) => Vec::new(),
            None => book.silent_hosts(self.0.clock.now_ms()),
        };
        let telling = async move {
            let told = base::caught_in(Box::pin(async move { pushes.tell(key, known, silent).await })).await;
            told.unwrap_or_else(|panicked| {
                let why = format!("a panic: {}", panicked.say());
                Report { key, status: known.unwrap_or_default(), told: 0, more: false, end: End::NotNow(why) }
            })
        };
        working.spawn(telling);
    }

    /// Notes which of a user's pushers something waits for.
    async fn look_at(&self, book: &mut Book, user: UserNum, news: News) -> store::Result<()> {
        let (now, active) = (self.0.clock.now_ms(), book.of_user(user));
        let (found, statuses) = self.read(move |get| look(get, user, &news, &active, now)).await?;
        if statuses.is_empty() {
            self.0.noted.forget(user);
        }
        for (key, stored) in statuses {
            // Set again meanwhile: from where the app says, and not as failing.
            if let Some(active) = book.active.get_mut(&key)
                && stored.reached > active.status.reached
            {
                active.status.reached = stored.reached;
            }
        }
        book.due.extend(found);
        Ok(())
    }

    /// The same for the next users of all.
    async fn look_at_all(&self, book: &mut Book) -> store::Result<()> {
        let Some(after) = book.all_after else { return Ok(()) };
        let keys = self.read(move |get| {
            let mut keys = Vec::new();
            pusher::list(get, after, &mut |key| {
                keys.push(key);
                Ok(if keys.len() < LOOK_KEYS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            Ok(keys)
        });
        let keys = keys.await?;
        book.all_after = (keys.len() == LOOK_KEYS).then(|| keys.last().copied());
        let mut users: Vec<UserNum> = keys.iter().map(|key| key.user).collect();
        // A user's pushers stand together; one whose keys are in two reads is looked at twice.
        users.dedup();
        for user in users {
            self.0.noted.know(user);
            // One user's damaged row keeps nobody else waiting.
            if let Err(error) = self.look_at(book, user, News::all()).await {
                tracing::error!(%error, "what is to be told to a user's push gateways cannot be read");
            }
        }
        Ok(())
    }

    /// Begins with a gateway whose time has come; false when there is none, or no place.
    async fn retry(&self, book: &mut Book, working: &mut JoinSet<Report>) -> store::Result<bool> {
        let now = self.0.clock.now_ms();
        if book.retry_ms.is_none_or(|at| at > now) || book.doubtful() >= self.doubtful_max() {
            return Ok(false);
        }
        let busy: Vec<Key> = book.busy.keys().copied().collect();
        let next = self.read(move |get| {
            let mut next = None;
            pusher::retries(get, &mut |at, key| {
                next = (!busy.contains(&key)).then_some((at, key));
                Ok(if next.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(next)
        });
        let next = next.await?;
        book.retry_ms = next.map(|(at, _)| at);
        match next.filter(|(at, _)| *at <= now) {
            Some((at, key)) => self.begin(book, working, key, Some(at)),
            None => return Ok(false),
        }
        Ok(true)
    }

    /// The task: tells one pusher's gateway of one notification after the other.
    async fn tell(&self, key: Key, known: Option<Status>, silent: Vec<String>) -> Report {
        let mut report = Report { key, status: known.unwrap_or_default(), told: 0, more: true, end: End::Well };
        let mut known = known;
        for _ in 0..TURN {
            if self.is_stopped() {
                break;
            }
            let step = match self.step(key, known).await {
                Ok(step) => step,
                Err(why) => {
                    report.end = End::NotNow(why);
                    return report;
                }
            };
            let (body, after, pusher, route) = match step {
                Step::Gone => {
                    report.end = End::Gone { rejected: false };
                    return report;
                }
                Step::Nothing(status) => {
                    report.status = status;
                    report.more = false;
                    return report;
                }
                Step::Tell { body, before, after, pusher, route } => {
                    report.status = before;
                    (body, after, pusher, route)
                }
            };
            if let Some(host) = host(&pusher, route).filter(|host| silent.contains(host)) {
                report.end = End::Failed { why: format!("{host} gives no sign"), silent: None };
                return report;
            }
            match self.ask(&pusher, route, body).await {
                Ok(Sent::Taken) => {
                    report.status = after;
                    report.told += 1;
                    known = Some(after);
                }
                Ok(Sent::Rejected) => {
                    report.end = End::Gone { rejected: true };
                    return report;
                }
                Err(failed) => {
                    let host = host(&pusher, route).unwrap_or_default();
                    report.end = match failed {
                        WebFailed::Refused(refused) => End::NotNow(refused.to_string()),
                        failed => {
                            let silent = failed.is_silence().then(|| host.clone());
                            let hint = match failed {
                                WebFailed::Forbidden(_) => "; [push] private_urls in the settings can allow it",
                                _ => "",
                            };
                            End::Failed { why: format!("{host} {failed}{hint}"), silent }
                        }
                    };
                    return report;
                }
            }
        }
        report
    }

    /// What to tell next, with the memory that finding it takes.
    async fn step(&self, key: Key, known: Option<Status>) -> Result<Step, String> {
        let grant = self.0.account.take(STEP_BYTES).await.map_err(|refused| refused.to_string())?;
        let pushes = self.clone();
        let step = self.read(move |get| pushes.find_step(get, key, known)).await.map_err(|error| error.to_string())?;
        // The request charges the body itself from here on.
        drop(grant);
        Ok(step)
    }

    fn find_step(&self, get: &Read, key: Key, known: Option<Status>) -> store::Result<Step> {
        let Some(pusher) = pusher::get(get, &key)?.filter(|pusher| pusher.enabled) else { return Ok(Step::Gone) };
        let mut status = match known {
            Some(known) => known,
            None => pusher::status(get, &key)?.unwrap_or_default(),
        };
        let route = self.route(&pusher);
        for _ in 0..SKIPS_MAX {
            let found = waiting::find(get, key.user, status.reached)?;
            let badge = (!pusher.without_badge).then_some(found.badge);
            let after = |reached: Position| Status { badge, ..Status::begin(reached) };
            let Some(first) = found.first else {
                let told = status.badge;
                return Ok(match badge.filter(|badge| told.is_some_and(|told| told != *badge)) {
                    Some(badge) => {
                        let body = body(None, Some(badge), &pusher, route);
                        let after = after(status.reached);
                        Step::Tell { body, before: status, after, pusher: Box::new(pusher), route }
                    }
                    None => nothing(status),
                });
            };
            if let Some(notice) = self.0.notices.notice(get, key.user, first)? {
                let body = body(Some(&notice), badge, &pusher, route);
                let after = after(first.at);
                return Ok(Step::Tell { body, before: status, after, pusher: Box::new(pusher), route });
            }
            status.reached = first.at;
        }
        Ok(nothing(status))
    }

    fn route(&self, pusher: &Pusher) -> Route {
        let is_in = |list: &[String], url: &str| origin(url).is_some_and(|origin| list.contains(&origin));
        match is_in(&self.0.own, &pusher.url) {
            true => Route::Endpoint { near: is_in(&self.0.private, &pusher.pushkey) },
            false => Route::Gateway { near: is_in(&self.0.private, &pusher.url) },
        }
    }

    async fn ask(&self, pusher: &Pusher, route: Route, body: Vec<u8>) -> Result<Sent, WebFailed> {
        let web = self.0.remote.web();
        let near = match route {
            Route::Endpoint { near } => return unified_push::send(web, &pusher.pushkey, body, near).await,
            Route::Gateway { near } => near,
        };
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        let request = WebRequest { method: Method::POST, url: pusher.url.clone(), headers, body: Bytes::from(body) };
        let limits = WebLimits {
            time: TIME_MAX,
            body_bytes_max: ANSWER_BYTES_MAX,
            redirects_max: 0,
            plain: Plain::WhereGiven,
            allow_private: near,
            ..WebLimits::default()
        };
        let answer = web.ask(request, limits).await?;
        if !(200..300).contains(&answer.status) {
            return Err(WebFailed::BadAnswer(format!("status {}", answer.status)));
        }
        let (text, _grant) = answer.read().await?;
        Ok(if rejects(&text, &pusher.pushkey) { Sent::Rejected } else { Sent::Taken })
    }

    async fn record(&self, book: &mut Book, report: Report, worker: &Worker) {
        let Report { key, mut status, told, more, end } = report;
        let busy = book.busy.remove(&key).unwrap_or_default();
        worker.done(told);
        let now = self.0.clock.now_ms();
        match end {
            End::Well => {
                book.active.insert(key, Active { status, unsaved: told > 0 });
                if busy.retry_ms.is_some() {
                    // The row that says when to try again goes.
                    self.save(book, vec![(key, status)], worker).await;
                }
                if more || busy.again {
                    book.due.push_back(key);
                }
            }
            End::Gone { rejected } => {
                book.active.remove(&key);
                if let Some(at) = busy.retry_ms.filter(|_| !rejected) {
                    let ended = self.0.store.write(move |w| pusher::end_retry(w, &key, at)).await;
                    ended.err().into_iter().for_each(|error| worker.failed(error));
                }
                if rejected {
                    tracing::info!("a push gateway knows a pushkey no more; the pusher is removed");
                    let removed = self.0.store.write(move |w| pusher::remove(w, &key)).await;
                    removed.err().into_iter().for_each(|error| worker.failed(error));
                }
            }
            End::NotNow(why) => {
                tracing::debug!("a notification waits: {why}");
                worker.failed(&why);
                book.active.remove(&key);
                self.put_off(book, key, status, now + NOT_NOW_MS, worker).await;
            }
            End::Failed { why, silent } => {
                tracing::debug!("a notification is not taken: {why}");
                worker.failed(&why);
                let offline = self.0.remote.backoff().is_offline();
                if let Some(host) = silent.filter(|_| !offline) {
                    book.note_silent(host, now);
                }
                book.active.remove(&key);
                if offline {
                    return self.put_off(book, key, status, now + OFFLINE_MS, worker).await;
                }
                let retry_ms = self.fail(&mut status, now).await;
                book.retry_ms = [book.retry_ms, Some(retry_ms)].into_iter().flatten().min();
                self.save(book, vec![(key, status)], worker).await;
            }
        }
    }

    /// Notes a failure in a pusher's status; answers when it is tried again.
    async fn fail(&self, status: &mut Status, now: u64) -> u64 {
        status.failures = status.failures.saturating_add(1);
        if status.failures == 1 {
            status.failing_since_ms = now;
        }
        if now.saturating_sub(status.failing_since_ms) > GIVE_UP_MS
            && let Ok(position) = self.read(|get| get.position()).await
        {
            status.reached = status.reached.max(position);
        }
        let pause = PAUSE_MS_MIN << (status.failures - 1).min(20);
        status.retry_ms = now + pause.min(PAUSE_MS_MAX);
        status.retry_ms
    }

    /// Tries a pusher again later, without holding anything against its gateway. `status`: from its turn, where that
    /// came to reading it.
    async fn put_off(&self, book: &mut Book, key: Key, status: Status, retry_ms: u64, worker: &Worker) {
        let stored = match status == Status::default() {
            true => self.read(move |get| pusher::status(get, &key)).await.ok().flatten(),
            false => Some(status),
        };
        let Some(stored) = stored else { return };
        book.retry_ms = [book.retry_ms, Some(retry_ms)].into_iter().flatten().min();
        self.save(book, vec![(key, Status { retry_ms, ..stored })], worker).await;
    }

    /// Writes down the positions that changed. Entries that are not needed are forgotten when there are many.
    async fn flush(&self, book: &mut Book, worker: &Worker) {
        let unsaved = book.active.iter().filter(|(_, active)| active.unsaved);
        let rows: Vec<(Key, Status)> = unsaved.map(|(key, active)| (*key, active.status)).collect();
        if !rows.is_empty() {
            self.save(book, rows, worker).await;
        }
        if book.active.len() >= ACTIVE_MAX {
            let busy = &book.busy;
            book.active.retain(|key, active| active.unsaved || busy.contains_key(key));
        }
    }

    /// Writes statuses of pushers that are still there. At most [`ACTIVE_MAX`] rows and two for each that failed.
    async fn save(&self, book: &mut Book, rows: Vec<(Key, Status)>, worker: &Worker) {
        let kept = rows.clone();
        let job = move |w: &mut Write<'_>| {
            for (key, status) in &rows {
                if pusher::is_there(w, key)? {
                    pusher::put_status(w, key, status)?;
                }
            }
            Ok::<_, store::Error>(())
        };
        if let Err(error) = self.0.store.write(job).await {
            // Another attempt comes with the next flush. Until then the gateway may be told of it again, and those that
            // fail are left alone, since no row says so.
            worker.failed(error);
            book.retry_ms = Some(self.0.clock.now_ms() + FLUSH.as_millis() as u64);
            return;
        }
        for (key, status) in kept {
            if let Some(active) = book.active.get_mut(&key).filter(|active| active.status == status) {
                active.unsaved = false;
            }
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Read) -> store::Result<T> + Send + 'static,
    ) -> store::Result<T> {
        let store = self.0.store.clone();
        base::blocking(move || look(&store.read()?)).await
    }
}

impl Book {
    fn doubtful(&self) -> usize {
        self.busy.values().filter(|busy| busy.retry_ms.is_some()).count()
    }

    /// What memory knows of a user's pushers.
    fn of_user(&self, user: UserNum) -> HashMap<Key, Status> {
        let of_user = self.active.iter().filter(|(key, _)| key.user == user);
        of_user.map(|(key, active)| (*key, active.status)).collect()
    }

    fn note_silent(&mut self, host: String, now: u64) {
        self.silent.retain(|(other, _)| *other != host);
        if self.silent.len() == SILENT_HOSTS_MAX {
            self.silent.pop_front();
        }
        self.silent.push_back((host, now + SILENT_MS));
    }

    fn silent_hosts(&mut self, now: u64) -> Vec<String> {
        self.silent.retain(|(_, until)| *until > now);
        self.silent.iter().map(|(host, _)| host.clone()).collect()
    }
}

/// The pushers of a user for which something waits, and what the store says of all that are on.
#[allow(clippy::type_complexity)] // keys, and keys with their statuses
fn look(
    get: &impl Get,
    user: UserNum,
    news: &News,
    active: &HashMap<Key, Status>,
    now: u64,
) -> store::Result<(Vec<Key>, Vec<(Key, Status)>)> {
    let mut pushers = Vec::new();
    pusher::each(get, user, &mut |key, pusher| {
        pushers.push((key, pusher.enabled, pusher.without_badge));
        Ok(ControlFlow::Continue(()))
    })?;
    let (mut due, mut statuses) = (Vec::new(), Vec::new());
    // One walk for all pushers of a user, from the one that is furthest behind.
    let mut badge = None;
    for (key, enabled, without_badge) in pushers {
        let stored = pusher::status(get, &key)?.unwrap_or_default();
        statuses.push((key, stored));
        let status = match active.get(&key) {
            Some(active) if stored.retry_ms == 0 => Status { reached: active.reached.max(stored.reached), ..*active },
            _ => stored,
        };
        if !enabled || stored.retry_ms > now {
            continue;
        }
        let waits = match news.anywhere || news.pushers {
            true => waiting::find(get, user, status.reached)?.first.is_some(),
            false => waiting::is_any_in(get, user, &news.rooms, status.reached)?,
        };
        let mut is_other = || -> store::Result<bool> {
            let told = match status.badge {
                Some(told) if news.read && !without_badge => told,
                _ => return Ok(false),
            };
            let now = match badge {
                Some(badge) => badge,
                None => waiting::find(get, user, status.reached)?.badge,
            };
            badge = Some(now);
            Ok(now != told)
        };
        if waits || is_other()? {
            due.push(key);
        }
    }
    Ok((due, statuses))
}

/// Nothing waits for the gateway, so it does not fail.
fn nothing(status: Status) -> Step {
    Step::Nothing(Status { badge: status.badge, ..Status::begin(status.reached) })
}

fn body(notice: Option<&Notice>, badge: Option<u64>, pusher: &Pusher, route: Route) -> Vec<u8> {
    let device =
        Device { app_id: &pusher.app_id, pushkey: &pusher.pushkey, set_ms: pusher.set_ms, data: pusher.data.get() };
    match (route, notice) {
        (Route::Endpoint { .. }, notice) => notice::endpoint_body(notice, badge, &device),
        (Route::Gateway { .. }, Some(notice)) => notice::body(notice, badge, &device),
        (Route::Gateway { .. }, None) => notice::badge_body(badge.unwrap_or_default(), &device),
    }
}

/// Whether a gateway's answer names a pushkey among those it knows no more. Another answer than the specification's
/// names none.
fn rejects(answer: &[u8], pushkey: &str) -> bool {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        rejected: Vec<String>,
    }
    serde_json::from_slice::<Answer>(answer).is_ok_and(|answer| answer.rejected.iter().any(|key| key == pushkey))
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<String> {
    let origin = Url::parse(url).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

fn host(pusher: &Pusher, route: Route) -> Option<String> {
    origin(match route {
        Route::Gateway { .. } => &pusher.url,
        Route::Endpoint { .. } => &pusher.pushkey,
    })
}
