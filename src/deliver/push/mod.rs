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
use std::mem;
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
use crate::store::{self, Get, Position, Read, RoomNum, Store, UserNum, Write};
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
/// Requests for one pusher before another gets its place; for one whose gateway is slow it is one.
const TURN: usize = 16;
/// A gateway that takes longer for a notification is slow, and has a place only among those that fail.
const SLOW: Duration = Duration::from_secs(3);
/// Notifications looked at in one go that turn out to be none any more.
const SKIPS_MAX: usize = 32;
/// The whole exchange with a gateway.
const TIME_MAX: Duration = Duration::from_secs(15);
/// Of a gateway's answer.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// Pushers whose positions are kept in memory between two flushes; the key twice, the status, the table's share.
const ACTIVE_MAX: usize = 256;
const ACTIVE_BYTES: u64 = 160;
/// Pushers that had a turn and go on later. With more of them all are looked at again some time.
const LATER_MAX: usize = 256;
/// What waits for a place: those, as many slow ones, and those found by a read of all; with the room that tables keep
/// free.
const QUEUED_BYTES: u64 = 2 * 20 * (2 * LATER_MAX + 2 * LOOK_KEYS) as u64;
/// What the tables take at most.
const KEPT_BYTES: u64 = noted::NOTED_BYTES + ACTIVE_MAX as u64 * ACTIVE_BYTES + QUEUED_BYTES;
/// For one request: the event as it is read, and the body that is made of it, which the request then pays for itself.
const STEP_BYTES: u64 = 64 * 1024 + notice::BODY_BYTES_MAX;
/// Hosts that gave no sign lately, or asked for a pause: others of their pushers are put off without being tried.
const RESTING_HOSTS_MAX: usize = 16;
const SILENT_MS: u64 = 30_000;
/// So long at most for the others, who may have better luck.
const RESTING_MS_MAX: u64 = 5 * 60_000;
/// Pushers looked at in one read when all are.
const LOOK_KEYS: usize = 64;

/// What only the rooms know. Blocks.
pub trait Notices: Send + Sync {
    /// What is to be told of a waiting notification; `None` when it notifies no more.
    fn notice(&self, get: &Read, user: UserNum, waiting: Waiting) -> store::Result<Option<Notice>>;

    /// Whether the invite to a room is one that the user's apps are not shown.
    fn is_invite_hidden(&self, get: &Read, user: UserNum, room: RoomNum) -> store::Result<bool>;
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
    /// Pushers that something waits for and that had no turn yet: those of one user, or of one read of all, and those
    /// of which there is no place for more.
    due: VecDeque<Key>,
    /// Those that go on after a turn.
    later: VecDeque<Key>,
    /// Those are next, as one of the others was before.
    later_first: bool,
    /// A look at all pushers that is under way: behind which it goes on, and for what.
    all: Option<(Option<Key>, News)>,
    /// The next time at which a failing gateway is tried; `None` when no gateway fails.
    retry_ms: Option<u64>,
    /// Something could not be read: everything is looked at again then.
    look_again_at: Option<Duration>,
    /// Hosts, and until when.
    resting: VecDeque<(String, u64)>,
}

#[derive(Clone, Copy)]
struct Active {
    status: Status,
    /// The row of the store says otherwise.
    unsaved: bool,
    slow: bool,
}

#[derive(Clone, Copy, Default)]
struct Busy {
    again: bool,
    /// Its gateway failed, and the time for which that was put off has come.
    retry_ms: Option<u64>,
    slow: bool,
}

impl Busy {
    /// Whether its gateway may hold its place for long.
    fn is_doubtful(&self) -> bool {
        self.retry_ms.is_some() || self.slow
    }
}

/// What became of a pusher's turn.
struct Report {
    key: Key,
    status: Status,
    told: u64,
    /// The status is another one than before.
    moved: bool,
    more: bool,
    /// Whether the gateway is slow; none when it was not asked.
    slow: Option<bool>,
    end: End,
}

enum End {
    Well,
    /// The pusher is there no more, or off.
    Gone,
    /// The gateway does not know the pushkey of the pusher that was set at this time.
    Rejected {
        set_ms: u64,
    },
    /// `wait_ms`: how long the gateway asks to be left alone. `rests`: others at this host are not tried either, for so
    /// long.
    Failed {
        why: String,
        wait_ms: u64,
        rests: Option<(String, u64)>,
        near: bool,
    },
    /// Its host rests until then.
    Rests {
        until_ms: u64,
    },
    /// Nothing was tried: memory, or the card.
    NotNow(String),
}

/// What to do next for a pusher.
enum Step {
    Gone,
    /// `moved`: something was left out on the way.
    Nothing {
        status: Status,
        moved: bool,
    },
    /// What was looked at is no notification any more, and there may be others.
    Skipped(Status),
    Tell {
        body: Vec<u8>,
        before: Status,
        after: Status,
        pusher: Box<Pusher>,
        route: Route,
    },
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
        let mut book = Book { all: Some((None, News::all())), retry_ms: Some(0), ..Book::default() };
        let mut working = JoinSet::new();
        let mut flush_at = self.0.clock.instant() + FLUSH;
        while !self.is_stopped() {
            if let Err(error) = self.start(&mut book, &mut working, worker).await {
                tracing::error!(%error, "what is to be told to push gateways cannot be read");
                worker.failed(error);
                let pause = self.0.clock.sleep(FLUSH);
                tokio::pin!(pause);
                // Requests end meanwhile, and so does the worker.
                while !self.is_stopped() {
                    tokio::select! {
                        biased;
                        () = self.0.stop.notified() => {}
                        () = &mut pause => break,
                        Some(Ok(report)) = working.join_next() => self.record(&mut book, report, worker).await,
                    }
                }
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
            Some(retry_ms)
                if working < self.0.requests_max && book.doubtful() < Places::of(self.0.requests_max).doubtful =>
            {
                flush.min(Duration::from_millis(retry_ms.saturating_sub(now).max(50)))
            }
            _ => flush,
        }
    }

    /// Gives free places to pushers for which something waits: what was noted first, then what a look at all finds,
    /// alternating with those that go on after a turn; then gateways that failed, then slow ones.
    async fn start(&self, book: &mut Book, working: &mut JoinSet<Report>, worker: &Worker) -> store::Result<()> {
        let again = book.look_again_at.take_if(|at| *at <= self.0.clock.instant());
        let news = [self.0.noted.take_all(), again.map(|_| News::all())].into_iter().flatten().reduce(News::and);
        if let Some(news) = news {
            book.look_at_all(news);
        }
        let places = Places::of(self.0.requests_max);
        while working.len() < self.0.requests_max {
            let later_first = mem::take(&mut book.later_first);
            if let Some(key) = later_first.then(|| book.pick_later(false, places)).flatten() {
                self.begin(book, working, key, None);
            } else if let Some(key) = book.pick_due(false, places) {
                book.later_first = true;
                self.begin(book, working, key, None);
            } else if let Some((user, news)) = self.0.noted.take() {
                self.look_at(book, user, news, worker).await;
            } else if book.all.is_some() {
                self.look_at_all(book, worker).await?;
            } else if let Some(key) = book.pick_later(false, places) {
                self.begin(book, working, key, None);
            } else if self.retry(book, working).await? {
            } else if let Some(key) = book.pick_due(true, places).or_else(|| book.pick_later(true, places)) {
                self.begin(book, working, key, None);
            } else {
                return Ok(());
            }
        }
        Ok(())
    }

    fn begin(&self, book: &mut Book, working: &mut JoinSet<Report>, key: Key, retry_ms: Option<u64>) {
        let active = book.active.get(&key);
        let (known, slow) = (active.map(|active| active.status), active.is_some_and(|active| active.slow));
        if let Some(busy) = book.busy.get_mut(&key) {
            busy.again = true;
            return;
        }
        book.busy.insert(key, Busy { again: false, retry_ms, slow });
        let pushes = self.clone();
        let resting = match retry_ms {
            // It is its turn to be tried.
            Some(_) => Vec::new(),
            None => book.resting_hosts(self.0.clock.now_ms()),
        };
        let telling = async move {
            let told = base::caught_in(Box::pin(async move { pushes.tell(key, known, resting).await })).await;
            told.unwrap_or_else(|panicked| {
                let why = format!("a panic: {}", panicked.say());
                Report { end: End::NotNow(why), ..Report::begin(key, known) }
            })
        };
        working.spawn(telling);
    }

    /// Notes which of a user's pushers something waits for. A row that cannot be read is told of, and keeps nobody else
    /// waiting.
    async fn look_at(&self, book: &mut Book, user: UserNum, news: News, worker: &Worker) {
        let (now, active) = (self.0.clock.now_ms(), book.of_user(user));
        let notices = self.0.notices.clone();
        match self.read(move |get| look(get, user, &news, &active, now, &*notices)).await {
            Ok(None) => self.0.noted.forget(user),
            Ok(Some(found)) => found.into_iter().for_each(|key| book.find(key)),
            Err(error) => {
                tracing::error!(%error, "what is to be told to a user's push gateways cannot be read");
                // Damage is there the next time, too.
                if !matches!(error, store::Error::Corrupt { .. }) {
                    book.look_again_at = Some(self.0.clock.instant() + FLUSH);
                }
                worker.failed(error);
            }
        }
    }

    /// The same for the next users of all.
    async fn look_at_all(&self, book: &mut Book, worker: &Worker) -> store::Result<()> {
        let Some((after, news)) = book.all.clone() else { return Ok(()) };
        let keys = self.read(move |get| {
            let mut keys = Vec::new();
            pusher::list(get, after, &mut |key| {
                keys.push(key);
                Ok(if keys.len() < LOOK_KEYS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
            Ok(keys)
        });
        let keys = keys.await?;
        book.all = (keys.len() == LOOK_KEYS).then(|| (keys.last().copied(), news.clone()));
        let mut users: Vec<UserNum> = keys.iter().map(|key| key.user).collect();
        // A user's pushers stand together; one whose keys are in two reads is looked at twice.
        users.dedup();
        users.iter().for_each(|user| self.0.noted.know(*user));
        for user in users {
            self.look_at(book, user, news.clone(), worker).await;
        }
        Ok(())
    }

    /// Begins with a gateway whose time has come; false when there is none, or no place.
    async fn retry(&self, book: &mut Book, working: &mut JoinSet<Report>) -> store::Result<bool> {
        let now = self.0.clock.now_ms();
        let places = Places::of(self.0.requests_max);
        if book.retry_ms.is_none_or(|at| at > now) || book.doubtful() >= places.doubtful {
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
    async fn tell(&self, key: Key, known: Option<Status>, resting: Vec<(String, u64)>) -> Report {
        let mut report = Report::begin(key, known);
        let mut known = known;
        // Its gateway did not take all of the next one.
        let mut short = false;
        for _ in 0..TURN {
            if self.is_stopped() || report.slow == Some(true) {
                break;
            }
            let step = match self.step(key, known, short).await {
                Ok(step) => step,
                Err(why) => {
                    report.end = End::NotNow(why);
                    return report;
                }
            };
            let (body, after, pusher, route) = match step {
                Step::Gone => {
                    report.end = End::Gone;
                    return report;
                }
                Step::Nothing { status, moved } => {
                    report.status = status;
                    report.moved |= moved;
                    report.more = false;
                    return report;
                }
                Step::Skipped(status) => {
                    report.moves_to(status);
                    known = Some(status);
                    continue;
                }
                Step::Tell { body, before, after, pusher, route } => {
                    report.status = before;
                    (body, after, pusher, route)
                }
            };
            let host = host(&pusher, route).unwrap_or_default();
            if let Some((_, until_ms)) = resting.iter().find(|(resting, _)| *resting == host) {
                report.end = End::Rests { until_ms: *until_ms };
                return report;
            }
            let (set_ms, near) = (pusher.set_ms, route.is_near());
            let begun = self.0.clock.instant();
            let sent = self.ask(&pusher, route, body).await;
            report.slow = Some(self.0.clock.instant().saturating_sub(begun) > SLOW);
            let skipped = match sent {
                Ok(Sent::Taken) => false,
                Ok(Sent::Unfit { .. }) if !short => {
                    short = true;
                    continue;
                }
                // All that come after it would wait for this one.
                Ok(Sent::Unfit { status }) => {
                    tracing::debug!("{host} takes a notification neither whole nor short: status {status}");
                    true
                }
                Ok(Sent::Rejected) => {
                    report.end = End::Rejected { set_ms };
                    return report;
                }
                Ok(Sent::Failed { status, wait_ms }) => {
                    let why = format!("{host} answers something unusable: status {status}");
                    // The path of an endpoint is anybody's choice, and so may be what it answers.
                    let rests = (wait_ms > 0 && matches!(route, Route::Gateway { .. })).then_some((host, wait_ms));
                    report.end = End::Failed { why, wait_ms, rests, near };
                    return report;
                }
                Err(WebFailed::Refused(refused)) => {
                    report.end = End::NotNow(refused.to_string());
                    return report;
                }
                Err(failed) => {
                    let is_silent = matches!(failed, WebFailed::Unreachable { silent: true, .. });
                    let hint = match failed {
                        WebFailed::Forbidden(_) => "; [push] private_urls in the settings can allow it",
                        _ => "",
                    };
                    let why = format!("{host} {failed}{hint}");
                    report.end = End::Failed { why, wait_ms: 0, rests: is_silent.then_some((host, SILENT_MS)), near };
                    return report;
                }
            };
            report.told += u64::from(!skipped);
            report.moves_to(after);
            (known, short) = (Some(after), false);
        }
        report
    }

    /// What to tell next, with the memory that finding it takes.
    async fn step(&self, key: Key, known: Option<Status>, short: bool) -> Result<Step, String> {
        let grant = self.0.account.take(STEP_BYTES).await.map_err(|refused| refused.to_string())?;
        let pushes = self.clone();
        let step =
            self.read(move |get| pushes.find_step(get, key, known, short)).await.map_err(|error| error.to_string())?;
        // The request charges the body itself from here on.
        drop(grant);
        Ok(step)
    }

    fn find_step(&self, get: &Read, key: Key, known: Option<Status>, short: bool) -> store::Result<Step> {
        let Some(pusher) = pusher::get(get, &key)?.filter(|pusher| pusher.enabled) else { return Ok(Step::Gone) };
        let stored = pusher::status(get, &key)?.unwrap_or_default();
        // Set again meanwhile, it is told from where the app says.
        let known = known.map(|known| Status { reached: known.reached.max(stored.reached), ..known });
        let status = known.unwrap_or(stored);
        let route = self.route(&pusher);
        let is_hidden = |room| self.0.notices.is_invite_hidden(get, key.user, room);
        let found = waiting::find(get, key.user, status.reached, SKIPS_MAX, &is_hidden)?;
        let badge = (!pusher.without_badge).then_some(found.badge);
        let tell = |notice: Option<&Notice>, before: Status, after: Position| {
            let body = body(notice, badge, &pusher, route, short);
            (body, before, Status { badge, ..Status::begin(after) })
        };
        let mut told = None;
        let mut before = status;
        for waiting in &found.oldest {
            match self.0.notices.notice(get, key.user, *waiting) {
                Ok(Some(notice)) => {
                    told = Some(tell(Some(&notice), before, waiting.at));
                    break;
                }
                Ok(None) => {}
                // One event that is damaged for good does not keep back all that come after it.
                Err(error @ store::Error::Corrupt { .. }) => {
                    tracing::error!(%error, "a notification cannot be read and is left out");
                }
                Err(error) => return Err(error),
            }
            before.reached = waiting.at;
        }
        let is_other_badge = badge.is_some_and(|badge| status.badge.is_some_and(|told| told != badge));
        let told = match told {
            None if found.oldest.len() == SKIPS_MAX => return Ok(Step::Skipped(before)),
            None if is_other_badge => Some(tell(None, before, before.reached)),
            told => told,
        };
        Ok(match told {
            Some((body, before, after)) => Step::Tell { body, before, after, pusher: Box::new(pusher), route },
            // Nothing waits for the gateway, so it does not fail.
            None => Step::Nothing {
                status: Status { badge: before.badge, ..Status::begin(before.reached) },
                moved: before.reached != status.reached,
            },
        })
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
            body_bytes_max: u64::MAX,
            redirects_max: 0,
            plain: Plain::WhereGiven,
            allow_private: near,
            ..WebLimits::default()
        };
        let answer = web.ask(request, limits).await?;
        let sent = Sent::of(&answer);
        if sent != Sent::Taken {
            return Ok(sent);
        }
        // It took the notification, so one whose answer cannot be read is not told of it again.
        Ok(match answer.at_most(ANSWER_BYTES_MAX).read().await {
            Ok((text, _grant)) if rejects(&text, &pusher.pushkey) => Sent::Rejected,
            _ => Sent::Taken,
        })
    }

    async fn record(&self, book: &mut Book, report: Report, worker: &Worker) {
        let Report { key, mut status, told, moved, more, slow, end } = report;
        let busy = book.busy.remove(&key).unwrap_or_default();
        worker.done(told);
        let now = self.0.clock.now_ms();
        let again_at = self.0.clock.instant() + FLUSH;
        let before = book.active.remove(&key);
        match end {
            End::Well => {
                let slow = slow.unwrap_or(before.is_some_and(|before| before.slow));
                let unsaved = moved || before.is_some_and(|before| before.unsaved);
                book.active.insert(key, Active { status, unsaved, slow });
                if busy.retry_ms.is_some() {
                    // The row that says when to try again goes.
                    self.save(book, vec![(key, status)], worker).await;
                }
                if more || busy.again {
                    book.go_on_later(key, again_at);
                }
            }
            End::Gone => {
                if let Some(at) = busy.retry_ms {
                    let ended = self.0.store.write(move |w| pusher::end_retry(w, &key, at)).await;
                    ended.err().into_iter().for_each(|error| worker.failed(error));
                }
                if busy.again {
                    book.go_on_later(key, again_at);
                }
            }
            End::Rejected { set_ms } => {
                // One that was set again meanwhile may have another gateway.
                let job = move |w: &mut Write<'_>| {
                    let same = pusher::get(w, &key)?.is_some_and(|pusher| pusher.set_ms == set_ms);
                    if same {
                        pusher::remove(w, &key)?;
                    }
                    Ok::<_, store::Error>(same)
                };
                match self.0.store.write(job).await {
                    Ok((true, _)) => tracing::info!("a push gateway knows a pushkey no more; the pusher is removed"),
                    Ok((false, _)) => book.go_on_later(key, again_at),
                    Err(error) => {
                        worker.failed(error);
                        self.put_off(book, key, status, now + NOT_NOW_MS, worker).await;
                    }
                }
            }
            End::NotNow(why) => {
                tracing::debug!("a notification waits: {why}");
                worker.failed(&why);
                self.put_off(book, key, status, now + NOT_NOW_MS, worker).await;
            }
            End::Rests { until_ms } => self.put_off(book, key, status, until_ms, worker).await,
            End::Failed { why, wait_ms, rests, near } => {
                tracing::debug!("a notification is not taken: {why}");
                worker.failed(&why);
                // A gateway in the home network needs no Internet.
                if !near && self.0.remote.backoff().is_offline() {
                    return self.put_off(book, key, status, now + OFFLINE_MS, worker).await;
                }
                if let Some((host, rest_ms)) = rests {
                    book.note_resting(host, now + rest_ms.min(RESTING_MS_MAX));
                }
                self.fail(&mut status, now, wait_ms).await;
                self.save(book, vec![(key, status)], worker).await;
            }
        }
    }

    /// Notes a failure in a pusher's status, and when it is tried again. `wait_ms`: not earlier than after that.
    async fn fail(&self, status: &mut Status, now: u64, wait_ms: u64) {
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
        status.retry_ms = now + pause.min(PAUSE_MS_MAX).max(wait_ms);
    }

    /// Tries a pusher again later, without holding anything against its gateway. `status`: from its turn, where that
    /// came to reading it.
    async fn put_off(&self, book: &mut Book, key: Key, status: Status, retry_ms: u64, worker: &Worker) {
        let stored = match status == Status::default() {
            true => self.read(move |get| pusher::status(get, &key)).await.ok().flatten(),
            false => Some(status),
        };
        let Some(stored) = stored else { return };
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
                    // Where it begins anew it is set to further on.
                    let stored = pusher::status(w, key)?.unwrap_or_default();
                    pusher::put_status(w, key, &Status { reached: status.reached.max(stored.reached), ..*status })?;
                }
            }
            Ok::<_, store::Error>(())
        };
        let failed = self.0.store.write(job).await.err();
        for (key, status) in kept {
            match book.active.get_mut(&key) {
                // Another attempt comes with the next flush. Until then the gateway may be told of it again.
                None if failed.is_some() => {
                    book.active.insert(key, Active { status, unsaved: true, slow: false });
                }
                // That one is told by its row when to go on.
                Some(active) if failed.is_none() && active.status == status && status.retry_ms > 0 => {
                    book.active.remove(&key);
                }
                Some(active) if active.status == status => active.unsaved = failed.is_some(),
                _ => {}
            }
            if status.retry_ms > 0 {
                book.retry_ms = Some(book.retry_ms.map_or(status.retry_ms, |other| other.min(status.retry_ms)));
            }
        }
        if let Some(error) = failed {
            worker.failed(error);
            // Those that fail are left alone meanwhile, since no row says so.
            book.retry_ms = Some(self.0.clock.now_ms() + FLUSH.as_millis() as u64);
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
        self.busy.values().filter(|busy| busy.is_doubtful()).count()
    }

    /// What memory knows of a user's pushers.
    fn of_user(&self, user: UserNum) -> HashMap<Key, Status> {
        let of_user = self.active.iter().filter(|(key, _)| key.user == user);
        of_user.map(|(key, active)| (*key, active.status)).collect()
    }

    fn note_resting(&mut self, host: String, until_ms: u64) {
        self.resting.retain(|(other, _)| *other != host);
        if self.resting.len() == RESTING_HOSTS_MAX {
            self.resting.pop_front();
        }
        self.resting.push_back((host, until_ms));
    }

    fn resting_hosts(&mut self, now: u64) -> Vec<(String, u64)> {
        self.resting.retain(|(_, until)| *until > now);
        self.resting.iter().cloned().collect()
    }

    fn is_slow(&self, key: &Key) -> bool {
        self.active.get(key).is_some_and(|active| active.slow)
    }

    /// Begins a look at all pushers, or begins it again.
    fn look_at_all(&mut self, news: News) {
        let before = self.all.take().map(|(_, news)| news).unwrap_or_default();
        self.all = Some((None, before.and(news)));
    }

    /// Something waits for a pusher.
    fn find(&mut self, key: Key) {
        if !self.due.contains(&key) && !self.later.contains(&key) {
            self.due.push_back(key);
        }
    }

    /// A pusher had a turn, and there may be more. `again_at`: when it is looked for if there is no place for it.
    fn go_on_later(&mut self, key: Key, again_at: Duration) {
        match self.later.len() < LATER_MAX {
            true if self.due.contains(&key) => {}
            true => self.later.push_back(key),
            false => self.look_again_at = Some(again_at),
        }
    }

    fn pick_due(&mut self, slow: bool, places: Places) -> Option<Key> {
        let at = self.due.iter().position(|key| self.has_place(key, slow, places))?;
        self.due.remove(at)
    }

    fn pick_later(&mut self, slow: bool, places: Places) -> Option<Key> {
        let at = self.later.iter().position(|key| self.has_place(key, slow, places))?;
        self.later.remove(at)
    }

    /// Whether there is a place for a pusher, if it is a slow one or none, as asked. One that has a place needs none.
    fn has_place(&self, key: &Key, slow: bool, places: Places) -> bool {
        if self.busy.contains_key(key) {
            return true;
        }
        match self.is_slow(key) {
            true => slow && self.doubtful() < places.doubtful,
            false => {
                self.busy.iter().filter(|(one, busy)| one.user == key.user && !busy.is_doubtful()).count() < places.user
            }
        }
    }
}

/// How many requests may run at once.
#[derive(Clone, Copy)]
struct Places {
    /// For one user's gateways that are well, so that a few people's phones keep nobody else's waiting: two where it can be,
    /// as a gateway is known to be slow only afterwards.
    user: usize,
    /// For gateways that failed, and for slow ones.
    doubtful: usize,
}

impl Places {
    fn of(requests_max: usize) -> Places {
        Places {
            user: (requests_max / 4).max(2).min(requests_max.saturating_sub(1)).max(1),
            doubtful: (requests_max / 2).max(1),
        }
    }
}

impl Report {
    fn begin(key: Key, known: Option<Status>) -> Report {
        let status = known.unwrap_or_default();
        Report { key, status, told: 0, moved: false, more: true, slow: None, end: End::Well }
    }

    fn moves_to(&mut self, status: Status) {
        self.status = status;
        self.moved = true;
    }
}

impl Route {
    fn is_near(self) -> bool {
        let (Route::Gateway { near } | Route::Endpoint { near }) = self;
        near
    }
}

/// The pushers of a user for which something waits; none when the user has no pushers.
fn look(
    get: &Read,
    user: UserNum,
    news: &News,
    active: &HashMap<Key, Status>,
    now: u64,
    notices: &dyn Notices,
) -> store::Result<Option<Vec<Key>>> {
    let mut pushers = Vec::new();
    pusher::each(get, user, &mut |key, pusher| {
        pushers.push((key, pusher.enabled, pusher.without_badge));
        Ok(ControlFlow::Continue(()))
    })?;
    if pushers.is_empty() {
        return Ok(None);
    }
    let mut awake = Vec::new();
    for (key, enabled, without_badge) in pushers {
        let stored = pusher::status(get, &key)?.unwrap_or_default();
        let status = match active.get(&key) {
            Some(active) if stored.retry_ms == 0 => Status { reached: active.reached.max(stored.reached), ..*active },
            _ => stored,
        };
        if enabled && status.retry_ms <= now {
            awake.push((key, status, without_badge));
        }
    }
    // One walk for all pushers of a user.
    let mut found = None;
    let mut walk = || -> store::Result<(Option<Position>, u64)> {
        if found.is_none() {
            let is_hidden = |room| notices.is_invite_hidden(get, user, room);
            let all = waiting::find(get, user, Position(0), 0, &is_hidden)?;
            found = Some((all.newest, all.badge));
        }
        Ok(found.unwrap_or_default())
    };
    let newest = match news.anywhere || news.pushers {
        _ if awake.is_empty() => None,
        true => walk()?.0,
        false => waiting::newest_in(get, user, &news.rooms)?,
    };
    let mut due = Vec::new();
    for (key, status, without_badge) in awake {
        let is_waiting = newest > Some(status.reached);
        let is_other_badge = match status.badge {
            Some(told) if !is_waiting && news.read && !without_badge => walk()?.1 != told,
            _ => false,
        };
        if is_waiting || is_other_badge {
            due.push(key);
        }
    }
    Ok(Some(due))
}

fn body(notice: Option<&Notice>, badge: Option<u64>, pusher: &Pusher, route: Route, short: bool) -> Vec<u8> {
    let (app_id, pushkey, data) = (&*pusher.app_id, &*pusher.pushkey, pusher.data.get());
    let device = Device { app_id, pushkey, set_ms: pusher.set_ms, data, short };
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
