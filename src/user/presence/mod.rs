//! Presence: who is there, and who is told of it (client-server API, "Presence"; server-server API, "Presence").
//!
//! `book.rs` is the table of who is there, in memory and bounded in bytes; the status messages of people here are the one
//! thing on disk. Nobody waits on a timer: one worker ([`Users::keep_presence`]) sleeps until time changes something for
//! somebody, which it never does for an app with an open sync, and announces what changed. Who listens and shares a room is
//! woken; syncs then read the table. What people elsewhere do wakes nobody more often than every [`ELSEWHERE_PAUSE`], and other
//! servers are told of somebody every [`OUTSIDE_PAUSE_MS`] in the long run.

use std::ops::ControlFlow;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ruma::{ServerName, UserId};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{Error, Requester, Users, sharing};
use crate::base::{Worker, blocking, brief};
use crate::budget::Account;
use crate::matrix::json::partial;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{member, user_room};
use crate::store::tables::user::{self, presence as table};
use crate::store::{Change, Get, Position, Read, RoomNum, UserNum};
use crate::user::device::announce;

mod book;

use book::{Book, News};
pub use book::{Presence, PresenceStatus};

/// The longest status message that is shown, in bytes: those of others are cut.
pub const MESSAGE_BYTES_MAX: usize = 512;
/// The pause between two announcements of what people here do, and of people elsewhere. Each wakes syncs, which cost a
/// millisecond or so: a room of 40,000 busy people elsewhere takes less than a hundredth of a slow CPU.
const HERE_PAUSE: Duration = Duration::from_millis(200);
const ELSEWHERE_PAUSE: Duration = Duration::from_secs(10);
/// Other servers are told of one person no more often than this, but for a few changes in a row; and of who is there without
/// a change every 25 minutes, since they forget somebody after 30.
const OUTSIDE_PAUSE_MS: i64 = 30_000;
const PING_MS: i64 = 25 * 60_000;
/// People of whom other servers are told by one job of the writer. Each reads the servers of that person's rooms.
const TOLD_AT_ONCE: usize = 4;
/// People of one message of another server that are looked at.
const PUSHED_MAX: usize = 100;
/// People elsewhere that are looked at in a second, and at once. Each is a row read.
const HEARD_PER_S: f64 = 50.0;
const HEARD_BURST: f64 = 500.0;
/// Longer ago is as good as this, some thousand years.
const AGO_MS_MAX: i64 = 1 << 45;
/// The pause after the database failed.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Whose presence is told to whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PresenceMode {
    /// Nobody's: everybody is offline.
    Off,
    /// People here see each other. Other servers are told nothing, and what they tell is dropped.
    #[default]
    Local,
    /// Other servers' people too.
    All,
}

/// Who is there, and what is to be done about it.
pub(super) struct Board {
    book: Mutex<Book>,
    mode: Mutex<PresenceMode>,
    wish: Notify,
    /// When the worker looks next by itself.
    planned: Mutex<Option<Duration>>,
    heard: Mutex<Heard>,
}

/// How many people elsewhere may be looked at.
struct Heard {
    tokens: f64,
    at: Duration,
}

impl Board {
    pub(super) fn new(account: Account, started_ms: u64) -> Board {
        Board {
            book: Mutex::new(Book::new(account, started_ms)),
            mode: Mutex::default(),
            wish: Notify::new(),
            planned: Mutex::default(),
            heard: Mutex::new(Heard { tokens: HEARD_BURST, at: Duration::ZERO }),
        }
    }
}

/// A sync that waits. Its end is noted by its drop.
pub struct Syncing {
    users: Users,
    user: UserNum,
    device: String,
}

impl Drop for Syncing {
    fn drop(&mut self) {
        let now = self.users.now();
        self.users.book().sync_ends(self.user, &self.device, now);
        self.users.plan(self.user);
    }
}

impl Users {
    pub fn set_presence_mode(&self, mode: PresenceMode) {
        *self.0.presence.mode.lock() = mode;
    }

    pub fn presence_mode(&self) -> PresenceMode {
        *self.0.presence.mode.lock()
    }

    /// The serial of the newest change of anybody's presence; 0 when presence is off.
    pub fn presence_serial(&self) -> u64 {
        if self.presence_mode() == PresenceMode::Off { 0 } else { self.book().serial() }
    }

    /// Notes that a device syncs, for as long as the answer is kept. An app that asks to be offline is not noted.
    pub async fn sync_begins(&self, of: &Requester, status: PresenceStatus) -> Result<Option<Syncing>, Error> {
        if status == PresenceStatus::Offline || self.presence_mode() == PresenceMode::Off {
            return Ok(None);
        }
        let user = of.user_num;
        let is_known = self.book().has(user);
        let message = match is_known {
            true => None,
            false => self.read(move |get| Ok(table::message(get, user)?)).await?,
        };
        let (now, message) = (self.now(), message.map(String::into_boxed_str));
        self.book().sync_begins(user, &of.device_id, status, now, || message);
        self.plan(user);
        Ok(Some(Syncing { users: self.clone(), user, device: of.device_id.clone() }))
    }

    /// Notes that somebody did something.
    pub fn acted(&self, of: &Requester) {
        if self.presence_mode() != PresenceMode::Off {
            self.book().acted(of.user_num, &of.device_id, self.now());
            self.plan(of.user_num);
        }
    }

    /// Shows somebody's presence to all who share a room, once more: they came into one.
    pub fn tell_presence_again(&self, of: &Requester) {
        if self.presence_mode() != PresenceMode::Off {
            self.book().tell_again(of.user_num);
            self.plan(of.user_num);
        }
    }

    /// An app sets its user's presence. The message is kept over restarts.
    pub async fn set_presence(
        &self,
        of: &Requester,
        status: PresenceStatus,
        message: Option<String>,
    ) -> Result<(), Error> {
        if message.as_ref().is_some_and(|message| message.len() > MESSAGE_BYTES_MAX) {
            return Err(Error::invalid(format!("A status message has {MESSAGE_BYTES_MAX} bytes at most")));
        }
        if self.presence_mode() == PresenceMode::Off {
            return Ok(());
        }
        let (user, message) = (of.user_num, message.filter(|message| !message.is_empty()));
        let wanted = message.clone();
        if self.read(move |get| Ok(table::message(get, user)? != wanted)).await? {
            let wanted = message.clone();
            self.write(move |w| Ok(table::set_message(w, user, wanted.as_deref())?)).await?;
        }
        let message = message.map(String::into_boxed_str);
        self.book().set(user, &of.device_id, status, message, self.now());
        self.plan(user);
        Ok(())
    }

    /// Somebody's presence, as `viewer` sees it. `Forbidden` when they share no room.
    pub async fn presence(&self, viewer: &Requester, user_id: &UserId) -> Result<Value, Error> {
        if self.presence_mode() == PresenceMode::Off {
            return Ok(json!({ "presence": "offline" }));
        }
        let (viewer, user_id) = (viewer.user_num, user_id.to_owned());
        let seen = self.read(move |get| {
            let user = user::num(get, user_id.as_str())?;
            match user {
                Some(user) if user == viewer || sharing::shares_room(get, viewer, user)? => {
                    Ok((user, table::message(get, user)?))
                }
                _ => Err(Error::Forbidden("You share no room with this user".to_owned())),
            }
        });
        let (user, message) = seen.await?;
        let shown = self.book().get(user);
        let message = message.map(String::into_boxed_str);
        Ok(self.content(&shown.unwrap_or(Presence { message, ..Presence::default() })))
    }

    /// Whose presence a sync tells, in no order: what changed after a serial, and of whom the user came to share a room with
    /// after a position; at a first sync everybody who is there, and the user. Bounded by the table: four bytes each.
    pub fn presence_news(
        &self,
        read: &Read,
        of: &Requester,
        since: Option<(Position, u64)>,
        is_quiet: bool,
    ) -> Result<Vec<UserNum>, Error> {
        if self.presence_mode() == PresenceMode::Off {
            return Ok(Vec::new());
        }
        let mut news = self.book().changed(since.map(|(_, serial)| serial));
        let me = of.user_num;
        let mut failed = None;
        news.retain(|user| {
            *user == me || sharing::shares_room(read, me, *user).unwrap_or_else(|error| failed.replace(error).is_some())
        });
        match since {
            None if !news.contains(&me) => news.push(me),
            Some((at, _)) if !is_quiet => {
                let rooms = rooms_since(read, me, at)?;
                let there = if rooms.is_empty() { Vec::new() } else { self.book().there() };
                for user in there.into_iter().filter(|user| *user != me) {
                    let mut is_new = false;
                    for room in &rooms {
                        is_new |= member::is_joined(read, *room, user)?;
                    }
                    if is_new && !news.contains(&user) {
                        news.push(user);
                    }
                }
            }
            _ => {}
        }
        failed.map_or(Ok(news), Err)
    }

    /// The serial of the newest change of anybody's presence, and whose changed after another one; nobody's of one from the
    /// future. Bounded by the table.
    pub fn presence_since(&self, since: u64) -> (u64, Vec<UserNum>) {
        if self.presence_mode() == PresenceMode::Off {
            return (0, Vec::new());
        }
        let book = self.book();
        let serial = book.serial();
        (serial, if since <= serial { book.changed(Some(since)) } else { Vec::new() })
    }

    /// The `m.presence` event of somebody, for a sync.
    pub fn presence_event(&self, read: &Read, user: UserNum) -> Result<Value, Error> {
        let shown = self.book().get(user).unwrap_or_default();
        Ok(json!({ "type": "m.presence", "sender": user::id_of(read, user)?, "content": self.content(&shown) }))
    }

    fn content(&self, shown: &Presence) -> Value {
        let mut content = json!({ "presence": shown.status.as_str() });
        if let Some(active_ms) = shown.active_ms {
            content["last_active_ago"] = self.now().saturating_sub(active_ms).max(0).into();
        }
        if let Some(message) = &shown.message {
            content["status_msg"] = (**message).into();
        }
        if shown.status == PresenceStatus::Online {
            content["currently_active"] = shown.currently_active.into();
        }
        content
    }

    /// An `m.presence` EDU: what a server says of its own people. Those whom nobody here has met are skipped. It is dropped
    /// unless presence is exchanged with other servers, and beyond a rate; somebody's presence comes again.
    pub async fn presence_received(&self, origin: &ServerName, content: &RawValue) -> Result<(), Error> {
        if self.presence_mode() != PresenceMode::All {
            return Ok(());
        }
        let now = self.now();
        let pushed: Pushed<'_> =
            serde_json::from_str(content.get()).map_err(|wrong| Error::bad("M_BAD_JSON", brief(wrong)))?;
        let most = self.may_hear(pushed.push.len());
        let read = pushed.push.iter().take(most);
        let told: Vec<_> = read.filter_map(|one| one_pushed(one.get().as_bytes(), origin, now)).collect();
        let found = self.read(move |get| {
            let mut found = Vec::with_capacity(told.len());
            for (user_id, presence) in told {
                found.extend(user::num(get, &user_id)?.map(|user| (user, presence)));
            }
            Ok(found)
        });
        for (user, presence) in found.await? {
            self.book().heard(user, origin.as_str(), presence, now);
            self.plan(user);
        }
        Ok(())
    }

    /// How many of so many people may be looked at.
    fn may_hear(&self, count: usize) -> usize {
        let now = self.0.parts.clock.instant();
        let mut heard = self.0.presence.heard.lock();
        let earned = now.saturating_sub(heard.at).as_secs_f64() * HEARD_PER_S;
        (heard.tokens, heard.at) = ((heard.tokens + earned).min(HEARD_BURST), now);
        let most = count.min(heard.tokens as usize);
        heard.tokens -= most as f64;
        most
    }

    // ---- the worker ----------------------------------------------------------------------------------------------

    /// Announces what changed and lets time pass. A unit of the worker is a person announced.
    pub async fn keep_presence(&self, worker: &Worker) {
        let clock = &self.0.parts.clock;
        let (mut waiting, mut elsewhere_at) = (Vec::new(), Duration::ZERO);
        loop {
            worker.works_on("who is there");
            let pause = match self.announce_presence(&mut waiting, &mut elsewhere_at).await {
                Ok(announced) => {
                    worker.done(announced as u64);
                    HERE_PAUSE
                }
                Err(failed) => {
                    tracing::debug!(%failed, "presence could not be announced");
                    worker.failed(failed);
                    FAILED_PAUSE
                }
            };
            worker.idle();
            clock.sleep(pause).await;
            // Noted before it is looked at: what changes from here on leaves a permit.
            *self.0.presence.planned.lock() = None;
            let due = self.next_look(!waiting.is_empty(), elsewhere_at);
            *self.0.presence.planned.lock() = due;
            match due {
                None => self.0.presence.wish.notified().await,
                Some(due) => {
                    tokio::select! {
                        () = self.0.presence.wish.notified() => {}
                        () = clock.sleep(due.saturating_sub(clock.instant())) => {}
                    }
                }
            }
        }
    }

    /// When the worker has something to do next; none when nothing will come of itself.
    fn next_look(&self, is_waiting: bool, elsewhere_at: Duration) -> Option<Duration> {
        let (is_pending, due_ms) = self.book().next();
        let now = self.0.parts.clock.instant();
        let due = due_ms.map(|due| Duration::from_millis(due.max(0) as u64));
        let ping = self.next_ping().map(|due| Duration::from_millis(due.max(0) as u64));
        let waiting = is_waiting.then_some(elsewhere_at);
        let all = due.into_iter().chain(ping).chain(waiting).chain(is_pending.then_some(now));
        all.min()
    }

    fn next_ping(&self) -> Option<i64> {
        let is_any = self.presence_mode() == PresenceMode::All;
        is_any.then(|| self.book().next_outside(OUTSIDE_PAUSE_MS, PING_MS)).flatten()
    }

    /// One round: wakes those who see a change, and tells other servers. `waiting`: people elsewhere who changed and were
    /// not announced; they are at `elsewhere_at`.
    async fn announce_presence(&self, waiting: &mut Vec<UserNum>, elsewhere_at: &mut Duration) -> Result<usize, Error> {
        let now = self.now();
        let news = self.book().pass(now);
        let mut told: Vec<_> = news.iter().filter(|one| one.is_local).map(|one| one.user).collect();
        waiting.extend(news.iter().filter(|one| !one.is_local).map(|one| one.user));
        let clock = self.0.parts.clock.instant();
        if clock >= *elsewhere_at && !waiting.is_empty() {
            waiting.sort_unstable();
            waiting.dedup();
            told.append(waiting);
            *elsewhere_at = clock + ELSEWHERE_PAUSE;
        }
        if told.is_empty() {
            self.tell_outside(&news, now).await?;
            return Ok(0);
        }
        let (feed, count) = (self.0.parts.feed.clone(), told.len());
        let listening = feed.listening();
        let (store, wake) = (self.0.parts.store.clone(), feed);
        blocking(move || {
            let read = store.read()?;
            let mut woken = Vec::new();
            for listener in listening {
                for user in &told {
                    if *user == listener || sharing::shares_room(&read, listener, *user)? {
                        woken.push(listener);
                        break;
                    }
                }
            }
            wake.wake(&woken);
            Ok::<_, Error>(())
        })
        .await?;
        // Last: it waits for the writer, and fails on a full disk.
        self.tell_outside(&news, now).await?;
        Ok(count)
    }

    /// Tells other servers of people here who changed, and of those who are there and of whom they would forget.
    async fn tell_outside(&self, news: &[News], now: i64) -> Result<(), Error> {
        if self.presence_mode() != PresenceMode::All {
            return Ok(());
        }
        let told = {
            let mut book = self.book();
            news.iter().filter(|one| one.is_local).for_each(|one| book.owe(one.user));
            book.told_outside(OUTSIDE_PAUSE_MS, PING_MS, now)
        };
        let told: Vec<_> = told.into_iter().map(|(user, shown)| (user, self.content(&shown))).collect();
        if told.is_empty() {
            return Ok(());
        }
        for part in told.chunks(TOLD_AT_ONCE) {
            let (server, part) = (self.0.parts.server.clone(), part.to_vec());
            self.write(move |w| {
                let mut outbound = false;
                for (user, mut content) in part {
                    content["user_id"] = user::id_of(w, user)?.into();
                    let edu = json!({ "edu_type": "m.presence", "content": { "push": [content] } });
                    outbound |= announce::post(w, &server, user, &edu)?;
                }
                w.announce(Change { outbound, ..Change::default() });
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Wakes the worker when there is something to do before it looks by itself.
    fn plan(&self, user: UserNum) {
        let (is_pending, due_ms) = self.book().next_of(user);
        let due = due_ms.map(|due| Duration::from_millis(due.max(0) as u64));
        let planned = *self.0.presence.planned.lock();
        if is_pending || due.is_some_and(|due| planned.is_none_or(|planned| due < planned)) {
            self.0.presence.wish.notify_one();
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.presence.book.lock()
    }

    fn now(&self) -> i64 {
        i64::try_from(self.0.parts.clock.instant().as_millis()).unwrap_or(i64::MAX)
    }
}

/// The rooms that a user joined after a position.
fn rooms_since(get: &impl Get, user: UserNum, at: Position) -> Result<Vec<RoomNum>, Error> {
    let mut rooms = Vec::new();
    user_room::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Join && mine.since > at {
            rooms.push(room);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rooms)
}

#[derive(Deserialize)]
struct Pushed<'a> {
    #[serde(borrow, deserialize_with = "partial::first::<PUSHED_MAX, _, _>")]
    push: Vec<&'a RawValue>,
}

/// What a server says of one of its people; nothing for another server's, and for what has another shape.
fn one_pushed(one: &[u8], origin: &ServerName, now: i64) -> Option<(String, Presence)> {
    let user_id: String = partial::member(one, "user_id")?;
    let id = <&UserId>::try_from(user_id.as_str()).ok()?;
    if id.server_name() != origin {
        return None;
    }
    let status = PresenceStatus::of(&partial::member::<String>(one, "presence")?)?;
    let ago = partial::member::<i64>(one, "last_active_ago").map(|ago| ago.clamp(0, AGO_MS_MAX));
    let message = partial::member::<String>(one, "status_msg").filter(|message| !message.is_empty());
    let message = message.map(|mut message| {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.into_boxed_str()
    });
    let presence = Presence {
        status,
        active_ms: ago.map(|ago| now - ago),
        currently_active: partial::member(one, "currently_active").unwrap_or(false),
        message,
    };
    Some((user_id, presence))
}
