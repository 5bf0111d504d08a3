//! Events that are sent later (MSC4140): an app that goes away without a word is followed by the event that says so.
//!
//! They are rows, so they outlive the server; a worker sleeps until the first is due. An event is sent once: the row of its
//! transaction is written with it, under the event's own id in place of a device's.
//!
//! Bounds: [`SCHEDULED_MAX`] that wait and [`ENDED_MAX`] that are over for each user, [`BYTES_MAX`] of them; and
//! [`ALL_COUNT_MAX`] and [`ALL_BYTES_MAX`] in all, on the card, where those that are over give way to those that wait.
//!
//! The worker does one after the other, so nothing that takes long is sent: no membership for which another server or user
//! has to be asked.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::error::{Error, Result};
use super::{Rooms, Sending};
use crate::base::{KeyedLock, Worker};
use crate::matrix::json;
use crate::store::tables::room as table;
use crate::store::tables::room::delayed::{self, Call, Delayed, End, Held};
use crate::store::tables::user;
use crate::store::{Get, UserNum, Write};

const MEMBER: &str = "m.room.member";
/// The longest delay: a day.
pub const DELAY_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// The most events of one user that wait.
pub const SCHEDULED_MAX: usize = 100;
/// The most events of one user that are over and can still be asked for, and for how long.
const ENDED_MAX: usize = 100;
const ENDED_MS: u64 = 7 * 24 * 60 * 60 * 1000;
/// The most bytes of one user's: an event has 64 KiB at most, one of a call a few hundred bytes.
const BYTES_MAX: u64 = 2 << 20;
/// What everybody together may have: some hundred people with all that one may have.
const ALL_COUNT_MAX: u64 = if cfg!(test) { 250 } else { 20_000 };
const ALL_BYTES_MAX: u64 = 64 << 20;
/// The longest content, as the app wrote it: nothing longer fits an event.
const CONTENT_BYTES_MAX: usize = 64 << 10;
/// The longest type and state key of an event.
const NAME_BYTES_MAX: usize = 255;
/// How many that are over give way at once to one that waits.
const GIVEN_UP: usize = 16;
/// How often the media server is asked for the connection that an event waits for.
const CALL_MS: u64 = 20_000;
/// For so long a media server that did not answer is not asked again: each question may take seconds, and events of others
/// wait meanwhile.
const SILENT_MS: u64 = 10_000;
/// The pause before an event is sent that could not be sent for a while.
const AGAIN_MS: u64 = 30_000;
/// The worker looks again after this, should the clock of the day have been set.
const LOOK_MAX: Duration = Duration::from_secs(15 * 60);

/// What the worker waits for, and who is working on an event.
#[derive(Default)]
pub(super) struct Delays {
    wish: Notify,
    locks: KeyedLock,
    watch: OnceLock<Arc<dyn CallWatch>>,
    /// Until when the media server is not asked.
    silent_until_ms: AtomicU64,
}

/// Tells whether somebody is connected to the media server.
pub trait CallWatch: Send + Sync {
    /// None when the media server does not say.
    fn is_there<'a>(&'a self, alias: &'a str, identity: &'a str) -> Asked<'a>;
}

/// The answer to come.
pub type Asked<'a> = Pin<Box<dyn Future<Output = Option<bool>> + Send + 'a>>;

/// An event that an app wants sent later.
#[derive(Debug)]
pub struct Delay {
    pub kind: String,
    pub state_key: Option<String>,
    pub content: Box<RawValue>,
    pub sticky_ms: Option<u64>,
    pub delay_ms: u64,
    /// The device and its transaction id: a repeat gets the answer of the first request.
    pub txn: Option<(String, String)>,
}

/// The outcome of asking for a delay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheduled {
    /// The id of the delayed event.
    Done(String),
    /// No more fit. The next will be sent after so long.
    Full { retry_after_ms: u64 },
}

/// What is to be done with a delayed event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayAction {
    Cancel,
    Restart,
    Send,
}

/// The outcome of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Managed {
    Done,
    /// It ended otherwise already.
    Conflict,
}

/// A delayed event as its user is shown it.
#[derive(Debug, Clone)]
pub struct DelayedEvent {
    pub id: String,
    pub event: Delayed,
}

impl Rooms {
    /// Schedules an event. Nothing is checked of what the room thinks of it: that is for when it is sent. `NotFound` for a
    /// room that is not known here; 400 for a membership that takes another's consent.
    pub async fn schedule(&self, sender: &UserId, room_id: &RoomId, delay: Delay) -> Result<Scheduled> {
        let names = [delay.kind.len(), delay.state_key.as_ref().map_or(0, String::len)];
        if delay.content.get().len() > CONTENT_BYTES_MAX || names.into_iter().any(|bytes| bytes > NAME_BYTES_MAX) {
            return Err(Error::TooLarge);
        }
        if delay.kind == MEMBER && delay.state_key.is_some() && !is_end_of_membership(&delay.content) {
            return Err(Error::bad("M_INVALID_PARAM", "of memberships, only leave and ban can be delayed"));
        }
        // Held against what an event may be: integers, depth.
        let content = json::canonical(delay.content.get().as_bytes(), json::Mode::Strict)
            .map_err(|wrong| Error::bad("M_BAD_JSON", wrong.to_string()))?;
        let content = String::from_utf8(content).map_err(|_| Error::bad("M_BAD_JSON", "the content is no JSON"))?;
        let (sender, room_id, now_ms) = (sender.to_owned(), room_id.to_owned(), self.0.parts.clock.settled_ms());
        let fresh = self.0.parts.random.token(22);
        let scheduled = self.write(move |w| {
            let user = user::num(w, sender.as_str())?.ok_or(Error::NotFound)?;
            table::num(w, room_id.as_str())?.ok_or(Error::NotFound)?;
            let id = match &delay.txn {
                Some((device, txn)) => id_of(w, user, device, &room_id, &delay.kind, txn),
                None => fresh,
            };
            if delay.txn.is_some() && delayed::get(w, &id)?.is_some() {
                return Ok(Scheduled::Done(id));
            }
            let new = Delayed {
                user: user.0,
                room_id: room_id.to_string(),
                kind: delay.kind,
                state_key: delay.state_key,
                content,
                sticky_ms: delay.sticky_ms,
                delay_ms: delay.delay_ms,
                since_ms: now_ms,
                due_ms: now_ms + delay.delay_ms,
                call: None,
                end: None,
            };
            make_room(w, user, new.bytes(), now_ms)?;
            if let Some(next_ms) = is_full(w, user, &new)? {
                return Ok(Scheduled::Full { retry_after_ms: next_ms.saturating_sub(now_ms).max(1) });
            }
            delayed::put(w, &id, &new)?;
            Ok(Scheduled::Done(id))
        });
        let scheduled = scheduled.await?;
        self.0.delays.wish.notify_one();
        Ok(scheduled)
    }

    /// The id of the event that was scheduled in a transaction of a device, if any was.
    pub async fn scheduled(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        kind: &str,
        (device, txn): (&str, &str),
    ) -> Result<Option<String>> {
        let (sender, room_id, kind) = (sender.to_owned(), room_id.to_owned(), kind.to_owned());
        let (device, txn) = (device.to_owned(), txn.to_owned());
        self.reading(move |_, read| {
            let Some(user) = user::num(read, sender.as_str())? else { return Ok(None) };
            let id = id_of(read, user, &device, &room_id, &kind, &txn);
            Ok(delayed::get(read, &id)?.map(|_| id))
        })
        .await
    }

    /// Cancels, restarts or sends a delayed event. `user`: whose it must be; whoever knows the id may do so without.
    /// `NotFound` when there is none; when it is sent, what refuses the event.
    pub async fn manage_delayed(&self, id: &str, user: Option<&UserId>, action: DelayAction) -> Result<Managed> {
        let _alone = self.0.delays.locks.take(id).await;
        let event = self.delayed(id, user).await?;
        if let Some(end) = &event.end {
            let is_same = match action {
                DelayAction::Send => end.event_id.is_some(),
                DelayAction::Cancel => end.event_id.is_none(),
                DelayAction::Restart => false,
            };
            return Ok(if is_same { Managed::Done } else { Managed::Conflict });
        }
        let now_ms = self.0.parts.clock.settled_ms();
        match action {
            DelayAction::Restart => {
                let again = Delayed { since_ms: now_ms, ..event };
                self.change_delayed(id, Delayed { due_ms: due_ms(&again, now_ms), ..again }).await?;
                self.0.delays.wish.notify_one();
            }
            DelayAction::Cancel => {
                let end = Some(End { at_ms: now_ms, event_id: None, error: None });
                self.change_delayed(id, Delayed { end, ..event }).await?;
            }
            DelayAction::Send => {
                let event_id = self.send_delayed(id, &event).await?;
                let end = Some(End { at_ms: now_ms, event_id: Some(event_id), error: None });
                self.change_delayed(id, Delayed { end, ..event }).await?;
            }
        }
        Ok(Managed::Done)
    }

    /// Asks the media server from now on whether somebody is connected there: while they are, the event waits, and when they
    /// are not any more it is sent. Of events for one connection the last counts. `NotFound` when the user has no such
    /// event, or it is over; 400 without a media server.
    pub async fn delegate_delayed(&self, user: &UserId, id: &str, alias: String, identity: String) -> Result<()> {
        if self.0.delays.watch.get().is_none() {
            return Err(Error::bad("M_UNKNOWN", "there is no media server here"));
        }
        let _alone = self.0.delays.locks.take(id).await;
        let event = self.delayed(id, Some(user)).await?;
        if event.end.is_some() {
            return Err(Error::NotFound);
        }
        let (id, now_ms) = (id.to_owned(), self.0.parts.clock.settled_ms());
        self.write(move |w| {
            for (other, ended) in delayed::list(w, UserNum(event.user))? {
                let Some(before) = delayed::get(w, &other)?.filter(|_| ended == 0 && other != id) else { continue };
                if before.call.as_ref().is_some_and(|call| call.alias == alias && call.identity == identity) {
                    let due_ms = before.since_ms + before.delay_ms;
                    delayed::put(w, &other, &Delayed { call: None, due_ms, ..before })?;
                }
            }
            let event = Delayed { call: Some(Call { alias, identity, seen: false }), ..event };
            let due_ms = due_ms(&event, now_ms);
            Ok(delayed::put(w, &id, &Delayed { due_ms, ..event })?)
        })
        .await?;
        self.0.delays.wish.notify_one();
        Ok(())
    }

    /// Sets who knows of connections to the media server. Once.
    pub fn watch_calls(&self, watch: Arc<dyn CallWatch>) {
        let _ = self.0.delays.watch.set(watch);
    }

    /// A user's delayed event. `NotFound` when there is none, or it is another's.
    pub async fn delayed_event(&self, user: &UserId, id: &str) -> Result<DelayedEvent> {
        Ok(DelayedEvent { id: id.to_owned(), event: self.delayed(id, Some(user)).await? })
    }

    /// The same, read at once.
    pub fn delayed_event_now(&self, user: &UserId, id: &str) -> Result<DelayedEvent> {
        let read = self.read()?;
        match delayed::get(&read, id)? {
            Some(event) if user::num(&read, user.as_str())? == Some(UserNum(event.user)) => {
                Ok(DelayedEvent { id: id.to_owned(), event })
            }
            _ => Err(Error::NotFound),
        }
    }

    /// The ids of a user's events that wait, the next first.
    pub async fn list_delayed(&self, user: &UserId) -> Result<Vec<String>> {
        let user = user.to_owned();
        self.reading(move |_, read| {
            let Some(user) = user::num(read, user.as_str())? else { return Ok(Vec::new()) };
            let mut waiting = Vec::new();
            for (id, _) in delayed::list(read, user)?.into_iter().filter(|(_, ended)| *ended == 0) {
                waiting.extend(delayed::get(read, &id)?.map(|event| (event.since_ms + event.delay_ms, id)));
            }
            waiting.sort_unstable();
            Ok(waiting.into_iter().map(|(_, id)| id).collect())
        })
        .await
    }

    async fn delayed(&self, id: &str, user: Option<&UserId>) -> Result<Delayed> {
        let (id, user) = (id.to_owned(), user.map(ToOwned::to_owned));
        self.reading(move |_, read| {
            let event = delayed::get(read, &id)?.ok_or(Error::NotFound)?;
            match user {
                Some(user) if user::num(read, user.as_str())? != Some(UserNum(event.user)) => Err(Error::NotFound),
                _ => Ok(event),
            }
        })
        .await
    }

    /// Changes an event, which may be gone with its account.
    async fn change_delayed(&self, id: &str, mut event: Delayed) -> Result<()> {
        let id = id.to_owned();
        if let Some(end) = &event.end {
            event.due_ms = end.at_ms + ENDED_MS;
        }
        self.write(move |w| {
            if delayed::get(w, &id)?.is_some() {
                delayed::put(w, &id, &event)?;
                forget_ended(w, UserNum(event.user), 0)?;
            }
            Ok(())
        })
        .await
    }

    /// Forgets all events of a user whose account is closed. They are some hundreds.
    pub async fn forget_delayed(&self, user: &UserId) -> Result<()> {
        let user = user.to_owned();
        self.write(move |w| {
            let Some(user) = user::num(w, user.as_str())? else { return Ok(()) };
            for (id, _) in delayed::list(w, user)? {
                delayed::remove(w, &id)?;
            }
            Ok(())
        })
        .await
    }

    /// Sends a delayed event now. The caller holds its lock.
    async fn send_delayed(&self, id: &str, event: &Delayed) -> Result<String> {
        let user = UserNum(event.user);
        let sender = self.reading(move |_, read| match user::account(read, user)? {
            Some(account) if account.standing != user::Standing::Active || account.locked || account.suspended => {
                Err(Error::Forbidden("The account is closed, locked or suspended".into()))
            }
            account => Ok((user::id_of(read, user)?, account.is_some_and(|account| account.shadow_banned))),
        });
        let (sender, is_shadow_banned) = sender.await?;
        let sender = OwnedUserId::try_from(sender).map_err(|_| Error::NotFound)?;
        let room = OwnedRoomId::try_from(event.room_id.as_str()).map_err(|_| Error::NotFound)?;
        let is_member = event.kind == MEMBER && event.state_key.is_some();
        // From elsewhere one is let out by another server.
        if is_member && !self.is_server_in_room(self.server(), &room).await? {
            return Err(Error::Forbidden("This server is not in the room".into()));
        }
        let (redacts, content) = match event.kind == "m.room.redaction" {
            true => without_target(&event.content),
            false => (None, event.content.clone()),
        };
        let content = RawValue::from_string(content).map_err(|_| Error::NotFound)?;
        let sending = Sending {
            kind: event.kind.clone(),
            state_key: event.state_key.clone(),
            content,
            redacts,
            sticky_ms: event.sticky_ms,
            ts: None,
            // No device has an empty id.
            txn: Some((String::new(), id.to_owned())),
            paid: None,
        };
        // Its leaves are an app's that has gone: they may be known.
        if is_shadow_banned && !is_member {
            return Ok(self.send_to_nobody(&sender, &room, sending).await?.to_string());
        }
        Ok(self.send(&sender, &room, sending).await?.to_string())
    }

    /// Sends events when they are due, the first first. A unit of the worker is an event.
    pub async fn keep_delayed(&self, worker: &Worker) {
        loop {
            let clock = &self.0.parts.clock;
            let pause = match self.send_first_due().await {
                Ok(None) => {
                    worker.done(1);
                    continue;
                }
                Ok(Some(wait)) => wait,
                Err(failed) => {
                    tracing::warn!(%failed, "delayed events could not be read; this is tried again");
                    worker.failed(failed);
                    Some(Duration::from_millis(AGAIN_MS))
                }
            };
            match pause {
                None => {
                    worker.idle();
                    self.0.delays.wish.notified().await;
                }
                Some(pause) => {
                    let pause = pause.min(LOOK_MAX);
                    worker.idle_for(pause);
                    tokio::select! {
                        () = self.0.delays.wish.notified() => {}
                        () = clock.sleep(pause) => {}
                    }
                }
            }
        }
    }

    /// Sends the event that is due first. When none is due now, how long to wait for one; `Some(None)` when there is none.
    async fn send_first_due(&self) -> Result<Option<Option<Duration>>> {
        let first = self.reading(|_, read| Ok(delayed::first_due(read)?)).await?;
        let Some((due_ms, id)) = first else { return Ok(Some(None)) };
        let now_ms = self.0.parts.clock.settled_ms();
        if due_ms > now_ms {
            return Ok(Some(Some(Duration::from_millis(due_ms - now_ms))));
        }
        let _alone = self.0.delays.locks.take(&id).await;
        // It may have been restarted or cancelled meanwhile.
        let event = match self.delayed(&id, None).await {
            Ok(event) if event.due_ms > now_ms => return Ok(None),
            Ok(event) if event.end.is_some() => {
                self.write(move |w| Ok(delayed::remove(w, &id)?)).await?;
                return Ok(None);
            }
            Ok(event) => event,
            Err(Error::NotFound) => return Ok(None),
            Err(failed) => return Err(failed),
        };
        // The clock was set meanwhile: as long as the app asked for has not passed. (One that is doubted was not set.)
        let since_ms = self.0.parts.clock.corrected_ms(event.since_ms);
        if since_ms != event.since_ms && since_ms <= now_ms && since_ms + event.delay_ms > now_ms {
            let mut waits = Delayed { since_ms, ..event };
            waits.due_ms = self::due_ms(&waits, now_ms);
            self.change_delayed(&id, waits).await?;
            return Ok(None);
        }
        let event = match self.still_there(event, now_ms).await {
            Ok(over) => over,
            Err(waits) => {
                self.change_delayed(&id, *waits).await?;
                return Ok(None);
            }
        };
        let end = match self.send_delayed(&id, &event).await {
            Ok(event_id) => End { at_ms: now_ms, event_id: Some(event_id), error: None },
            Err(failed) if failed.is_passing() => {
                let again = Delayed { due_ms: now_ms + AGAIN_MS, ..event };
                self.change_delayed(&id, again).await?;
                return Ok(None);
            }
            Err(failed) => {
                tracing::debug!(%failed, room = event.room_id, "a delayed event could not be sent");
                End { at_ms: now_ms, event_id: None, error: Some(said(&failed)) }
            }
        };
        self.change_delayed(&id, Delayed { end: Some(end), ..event }).await?;
        Ok(None)
    }
}

impl Rooms {
    /// Asks for the connection that an event waits for. `Err` is the event as it waits on.
    async fn still_there(&self, event: Delayed, now_ms: u64) -> Result<Delayed, Box<Delayed>> {
        let (Some(call), Some(watch)) = (&event.call, self.0.delays.watch.get()) else { return Ok(event) };
        let silent_until_ms = &self.0.delays.silent_until_ms;
        let is_there = match now_ms < silent_until_ms.load(Ordering::Relaxed) {
            true => None,
            false => watch.is_there(&call.alias, &call.identity).await,
        };
        if is_there.is_none() {
            silent_until_ms.fetch_max(now_ms + SILENT_MS, Ordering::Relaxed);
        }
        let is_over = event.since_ms + event.delay_ms <= now_ms;
        let mut waits = event.clone();
        match is_there {
            Some(true) => {
                waits.since_ms = now_ms;
                waits.call = Some(Call { seen: true, ..call.clone() });
            }
            Some(false) if call.seen || is_over => return Ok(event),
            None if is_over => return Ok(event),
            _ => {}
        }
        // However short the delay: who is there is not asked for more often.
        waits.due_ms = if is_there == Some(true) { now_ms + CALL_MS } else { due_ms(&waits, now_ms) };
        Err(Box::new(waits))
    }
}

/// When an event is to be looked at next.
fn due_ms(event: &Delayed, now_ms: u64) -> u64 {
    let end_ms = event.since_ms + event.delay_ms;
    if event.call.is_some() { end_ms.min(now_ms + CALL_MS) } else { end_ms }
}

/// The id that a transaction leads to: whoever does not know the database's key cannot guess it.
fn id_of(get: &impl Get, user: UserNum, device: &str, room: &RoomId, kind: &str, txn: &str) -> String {
    let parts = [device, room.as_str(), kind, txn].map(|part| format!("{}:{part}", part.len()));
    let hash = get.hash128(&[b"delayed", &user.to_key(), parts.concat().as_bytes()]);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a content says leave or ban.
fn is_end_of_membership(content: &RawValue) -> bool {
    let content: Option<Map<String, Value>> = serde_json::from_str(content.get()).ok();
    let membership = content.as_ref().and_then(|content| content.get("membership")?.as_str());
    matches!(membership, Some("leave" | "ban"))
}

/// The event that a redaction names in its content, and the rest: the room's version says where the id stands.
fn without_target(content: &str) -> (Option<OwnedEventId>, String) {
    let Ok(mut content) = serde_json::from_str::<Map<String, Value>>(content) else {
        return (None, content.to_owned());
    };
    let target = content.remove("redacts").and_then(|target| OwnedEventId::try_from(target.as_str()?).ok());
    (target, Value::Object(content).to_string())
}

/// Forgets what is over for one that is to be scheduled: the user's own, and when there are too many in all the first that
/// would be forgotten anyway.
fn make_room(w: &mut Write<'_>, user: UserNum, bytes: u64, now_ms: u64) -> Result<()> {
    forget_ended(w, user, bytes)?;
    let all = delayed::held(w, None)?;
    if all.count >= ALL_COUNT_MAX || all.bytes + bytes > ALL_BYTES_MAX {
        // What waits is due before.
        for id in delayed::due_after(w, now_ms + DELAY_MS_MAX, GIVEN_UP)? {
            if delayed::get(w, &id)?.is_some_and(|event| event.end.is_some()) {
                delayed::remove(w, &id)?;
            }
        }
    }
    Ok(())
}

/// When the user's next event is sent, if no more fit.
fn is_full(w: &Write<'_>, user: UserNum, new: &Delayed) -> Result<Option<u64>> {
    let waiting: Vec<_> = delayed::list(w, user)?.into_iter().filter(|(_, ended)| *ended == 0).collect();
    let (all, own) = (delayed::held(w, None)?, delayed::held(w, Some(user))?);
    let fits = |held: Held, bytes_max: u64| held.bytes + new.bytes() <= bytes_max;
    let fits_all = fits(all, ALL_BYTES_MAX) && all.count < ALL_COUNT_MAX;
    if waiting.len() < SCHEDULED_MAX && fits(own, BYTES_MAX) && fits_all {
        return Ok(None);
    }
    let mut next = new.due_ms;
    for (id, _) in waiting {
        next = delayed::get(w, &id)?.map_or(next, |event| next.min(event.due_ms));
    }
    Ok(Some(next))
}

/// Forgets events of a user that are over: the oldest beyond their number, and all when they take too much with so many bytes
/// to come. Their time ends by the list of what is due.
fn forget_ended(w: &mut Write<'_>, user: UserNum, coming: u64) -> Result<(), crate::store::Error> {
    let mut ended: Vec<_> = delayed::list(w, user)?.into_iter().filter(|(_, ended)| *ended > 0).collect();
    ended.sort_unstable_by_key(|(_, at)| *at);
    let surplus = match delayed::held(w, Some(user))?.bytes + coming > BYTES_MAX / 2 {
        true => ended.len(),
        false => ended.len().saturating_sub(ENDED_MAX),
    };
    for (id, _) in ended.into_iter().take(surplus) {
        delayed::remove(w, &id)?;
    }
    Ok(())
}

/// The code and sentence of what refused an event, as an app would have been told.
fn said(failed: &Error) -> (String, String) {
    let code = match failed {
        Error::NotFound => "M_NOT_FOUND",
        Error::Forbidden(_) | Error::Reject(_) => "M_FORBIDDEN",
        Error::Bad { errcode, .. } => errcode,
        Error::TooLarge => "M_TOO_LARGE",
        _ => "M_UNKNOWN",
    };
    (code.to_owned(), crate::base::brief(failed))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU8, Ordering};

    use serde_json::json;

    use super::*;
    use crate::room::testing::house;

    /// Says what it is told to: 0 gone, 1 there, 2 nothing.
    struct Told(AtomicU8);

    impl CallWatch for Told {
        fn is_there<'a>(&'a self, _: &'a str, _: &'a str) -> Asked<'a> {
            let says = [Some(false), Some(true), None][self.0.load(Ordering::Relaxed) as usize];
            Box::pin(async move { says })
        }
    }

    fn delay(delay_ms: u64, txn: Option<&str>) -> Delay {
        let content = RawValue::from_string(json!({ "msgtype": "m.text", "body": "gone" }).to_string()).unwrap();
        let txn = txn.map(|txn| ("D".to_owned(), txn.to_owned()));
        Delay { kind: "m.room.message".to_owned(), state_key: None, content, sticky_ms: None, delay_ms, txn }
    }

    /// The board has no battery: when the network told the time, all that was delayed was sent at once.
    #[tokio::test]
    async fn a_clock_that_is_set_sends_nothing_early() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        house.clock.remember_ms(2 * crate::base::EARLIEST_MS);
        let asked = house.rooms.schedule(&anna, &room, delay(60_000, None)).await.unwrap();
        let Scheduled::Done(id) = asked else { panic!("{asked:?}") };
        let is_sent = async || house.rooms.delayed_event(&anna, &id).await.unwrap().event.end.is_some();
        house.clock.advance(Duration::from_secs(20));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        house.clock.set_forward(Duration::from_millis(3 * crate::base::EARLIEST_MS));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        assert!(!is_sent().await);
        house.clock.advance(Duration::from_secs(41));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        assert!(is_sent().await);
    }

    /// A clock that jumps far ahead is doubted: what is delayed by hours is not sent, and what is asked for meanwhile is in time.
    #[tokio::test]
    async fn a_clock_that_is_years_ahead_sends_nothing_early() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let schedule = async |delay_ms| match house.rooms.schedule(&anna, &room, delay(delay_ms, None)).await.unwrap() {
            Scheduled::Done(id) => id,
            full => panic!("{full:?}"),
        };
        let is_sent = async |id: &str| house.rooms.delayed_event(&anna, id).await.unwrap().event.end.is_some();
        let look = async || while house.rooms.send_first_due().await.unwrap().is_none() {};
        let long = schedule(3_600_000).await;
        house.clock.set_forward(Duration::from_millis(2 * crate::base::EARLIEST_MS));
        look().await;
        let short = schedule(8_000).await;
        house.clock.advance(Duration::from_secs(9));
        look().await;
        assert_eq!((is_sent(&short).await, is_sent(&long).await), (true, false));
        house.clock.advance(Duration::from_secs(3600));
        look().await;
        assert!(is_sent(&long).await);
    }

    #[tokio::test]
    async fn an_event_waits_for_the_end_of_a_connection() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let told = Arc::new(Told(AtomicU8::new(0)));
        house.rooms.watch_calls(told.clone());
        let schedule = async |delay_ms| match house.rooms.schedule(&anna, &room, delay(delay_ms, None)).await.unwrap() {
            Scheduled::Done(id) => id,
            full => panic!("{full:?}"),
        };
        let delegate = async |id: &str| {
            house.rooms.delegate_delayed(&anna, id, "room".to_owned(), "anna".to_owned()).await.unwrap();
        };
        let is_sent = async |id: &str| house.rooms.delayed_event(&anna, id).await.unwrap().event.end.is_some();
        // Advances by so many seconds, with a look every five.
        let wait = async |seconds: u64| {
            for _ in 0..seconds / 5 {
                house.clock.advance(Duration::from_secs(5));
                while house.rooms.send_first_due().await.unwrap().is_none() {}
            }
        };
        let id = schedule(60_000).await;
        delegate(&id).await;
        wait(40).await;
        assert!(!is_sent(&id).await, "not connected yet");
        told.0.store(1, Ordering::Relaxed);
        wait(600).await;
        assert!(!is_sent(&id).await, "connected for longer than the delay");
        told.0.store(2, Ordering::Relaxed);
        wait(40).await;
        assert!(!is_sent(&id).await, "a media server that is started again is waited for");
        told.0.store(0, Ordering::Relaxed);
        wait(20).await;
        assert!(is_sent(&id).await, "gone");
        // Of two for one connection the later counts; one without a sign is sent when its time is up.
        let (first, second) = (schedule(60_000).await, schedule(600_000).await);
        delegate(&first).await;
        delegate(&second).await;
        told.0.store(1, Ordering::Relaxed);
        wait(60).await;
        assert!(is_sent(&first).await && !is_sent(&second).await);
        told.0.store(2, Ordering::Relaxed);
        wait(600).await;
        assert!(is_sent(&second).await);
        let again = house.rooms.delegate_delayed(&anna, &second, String::new(), String::new()).await;
        assert!(matches!(again, Err(Error::NotFound)));
    }

    /// Counts how often it is asked, and says that somebody is there.
    #[derive(Default)]
    struct There(AtomicU64);

    impl CallWatch for There {
        fn is_there<'a>(&'a self, _: &'a str, _: &'a str) -> Asked<'a> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Some(true) })
        }
    }

    impl Scheduled {
        fn id(self) -> String {
            match self {
                Scheduled::Done(id) => id,
                full => panic!("{full:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_short_delay_makes_nobody_ask_more_often() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let there = Arc::new(There::default());
        house.rooms.watch_calls(there.clone());
        let id = house.rooms.schedule(&anna, &room, delay(1, None)).await.unwrap().id();
        house.rooms.delegate_delayed(&anna, &id, "room".to_owned(), "anna".to_owned()).await.unwrap();
        for _ in 0..60_000 / 50 {
            house.clock.advance(Duration::from_millis(50));
            while house.rooms.send_first_due().await.unwrap().is_none() {}
        }
        let asked = there.0.load(Ordering::Relaxed);
        assert!((2..=4).contains(&asked), "once in twenty seconds, not {asked} times");
        assert!(house.rooms.delayed_event(&anna, &id).await.unwrap().event.end.is_none());
    }

    #[tokio::test]
    async fn what_is_over_gives_way_to_what_waits_of_whomever_and_ends_by_itself() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        for n in 0..ALL_COUNT_MAX {
            let user = house.user(&format!("u{}", n / 90)).await;
            let id = house.rooms.schedule(&user, &room, delay(60_000, None)).await.unwrap().id();
            house.rooms.manage_delayed(&id, Some(&user), DelayAction::Cancel).await.unwrap();
        }
        assert_eq!(delayed::held(&house.read(), None).unwrap().count, ALL_COUNT_MAX);
        let waiting = house.rooms.schedule(&anna, &room, delay(DELAY_MS_MAX, None)).await.unwrap().id();
        let held = delayed::held(&house.read(), None).unwrap();
        assert_eq!(held.count, ALL_COUNT_MAX - GIVEN_UP as u64 + 1);
        house.clock.advance(Duration::from_millis(ENDED_MS + 1));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        let event = house.rooms.delayed_event(&anna, &waiting).await.unwrap().event;
        assert!(event.end.unwrap().event_id.is_some());
        assert_eq!(delayed::held(&house.read(), None).unwrap().count, 1, "only what was sent just now");
        house.clock.advance(Duration::from_millis(ENDED_MS + 1));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        let held = delayed::held(&house.read(), None).unwrap();
        assert_eq!((held.count, held.bytes), (0, 0));
        assert_eq!(house.rooms.send_first_due().await.unwrap(), Some(None), "nothing to wait for");
    }

    #[tokio::test]
    async fn what_asks_others_is_not_delayed_and_a_redaction_finds_its_event() {
        let house = house();
        let (anna, ben) = (house.user("anna").await, house.user("ben").await);
        let room = house.public_room(&anna).await;
        house.join(&ben, &room).await.unwrap();
        let member = |membership: &str| Delay {
            kind: MEMBER.to_owned(),
            state_key: Some(ben.to_string()),
            content: RawValue::from_string(json!({ "membership": membership }).to_string()).unwrap(),
            ..delay(1_000, None)
        };
        for membership in ["invite", "join", "knock", "x"] {
            let refused = house.rooms.schedule(&anna, &room, member(membership)).await;
            assert!(matches!(refused, Err(Error::Bad { .. })), "{membership}: {refused:?}");
        }
        let long = Delay { state_key: Some("k".repeat(256)), ..delay(1_000, None) };
        assert!(matches!(house.rooms.schedule(&anna, &room, long).await, Err(Error::TooLarge)));
        let kick = house.rooms.schedule(&anna, &room, member("leave")).await.unwrap().id();
        let said = house.say(&anna, &room, "secret").await;
        let content = RawValue::from_string(json!({ "redacts": said, "reason": "x" }).to_string()).unwrap();
        let redaction = Delay { kind: "m.room.redaction".to_owned(), content, ..delay(1_000, None) };
        let redaction = house.rooms.schedule(&anna, &room, redaction).await.unwrap().id();
        house.clock.advance(Duration::from_millis(1_000));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        for id in [kick, redaction] {
            let end = house.rooms.delayed_event(&anna, &id).await.unwrap().event.end.unwrap();
            assert!(end.event_id.is_some(), "{end:?}");
        }
        assert_eq!(house.membership(&room, &ben), Some(crate::store::tables::room::event_row::Membership::Leave));
        assert_eq!(house.event(&said).content(), "{}");
    }

    #[tokio::test]
    async fn a_transaction_leads_to_what_was_scheduled_in_it() {
        let house = house();
        let (anna, ben) = (house.user("anna").await, house.user("ben").await);
        let room = house.public_room(&anna).await;
        let id = house.rooms.schedule(&anna, &room, delay(1_000, Some("a"))).await.unwrap().id();
        let look = async |who, kind, txn| house.rooms.scheduled(who, &room, kind, txn).await.unwrap();
        assert_eq!(look(&anna, "m.room.message", ("D", "a")).await, Some(id));
        for (who, kind, txn) in [
            (&anna, "m.room.message", ("D", "b")),
            (&anna, "m.room.message", ("E", "a")),
            (&anna, "m.x", ("D", "a")),
            (&ben, "m.room.message", ("D", "a")),
        ] {
            assert_eq!(look(who, kind, txn).await, None, "{who} {kind} {txn:?}");
        }
    }

    #[tokio::test]
    async fn nothing_is_left_of_who_is_gone() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        for txn in ["a", "b"] {
            house.rooms.schedule(&anna, &room, delay(1_000, Some(txn))).await.unwrap();
        }
        house.rooms.forget_delayed(&anna).await.unwrap();
        assert_eq!(house.rooms.send_first_due().await.unwrap(), Some(None));
        assert_eq!(delayed::held(&house.read(), None).unwrap(), Held::default());
        // An event that is being changed meanwhile does not come back.
        let id = house.rooms.schedule(&anna, &room, delay(1_000, None)).await.unwrap().id();
        let event = house.rooms.delayed(&id, None).await.unwrap();
        house.rooms.forget_delayed(&anna).await.unwrap();
        house.rooms.change_delayed(&id, event).await.unwrap();
        assert!(matches!(house.rooms.delayed(&id, None).await, Err(Error::NotFound)));
        // Nor is anything sent for who may send nothing any more.
        let id = house.rooms.schedule(&anna, &room, delay(1_000, None)).await.unwrap().id();
        let num = house.user_num(&anna);
        let suspended = house.store.write(move |w| {
            let account = user::account(w, num)?.ok_or(Error::NotFound)?;
            Ok::<_, Error>(user::set_account(w, num, &user::Account { suspended: true, ..account })?)
        });
        suspended.await.map_err(Error::from).unwrap();
        house.clock.advance(Duration::from_secs(1));
        while house.rooms.send_first_due().await.unwrap().is_none() {}
        let end = house.rooms.delayed_event(&anna, &id).await.unwrap().event.end.unwrap();
        assert!(end.event_id.is_none() && end.error.unwrap().0 == "M_FORBIDDEN");
    }

    #[tokio::test]
    async fn a_user_has_so_many_and_those_that_are_over_give_way() {
        let house = house();
        let (anna, ben) = (house.user("anna").await, house.user("ben").await);
        let room = house.public_room(&anna).await;
        let mut ids = Vec::new();
        for n in 0..SCHEDULED_MAX {
            match house.rooms.schedule(&anna, &room, delay(60_000, Some(&n.to_string()))).await.unwrap() {
                Scheduled::Done(id) => ids.push(id),
                full => panic!("{full:?}"),
            }
        }
        let more = house.rooms.schedule(&anna, &room, delay(60_000, None)).await.unwrap();
        assert_eq!(more, Scheduled::Full { retry_after_ms: 60_000 });
        let same = house.rooms.schedule(&anna, &room, delay(60_000, Some("7"))).await.unwrap();
        assert_eq!(same, Scheduled::Done(ids[7].clone()), "a repeat is no new one");
        assert!(matches!(house.rooms.schedule(&ben, &room, delay(1, None)).await.unwrap(), Scheduled::Done(_)));
        for round in 0..3 {
            for id in ids.drain(..) {
                house.rooms.manage_delayed(&id, Some(&anna), DelayAction::Cancel).await.unwrap();
                house.clock.advance(Duration::from_millis(1));
            }
            for n in 0..SCHEDULED_MAX {
                let txn = format!("{round} {n}");
                match house.rooms.schedule(&anna, &room, delay(60_000, Some(&txn))).await.unwrap() {
                    Scheduled::Done(id) => ids.push(id),
                    full => panic!("{full:?}"),
                }
            }
        }
        let read = house.read();
        let held = delayed::held(&read, Some(house.user_num(&anna))).unwrap();
        assert!(held.count <= (SCHEDULED_MAX + ENDED_MAX) as u64 && held.bytes > 0, "{held:?}");
        assert_eq!(delayed::list(&read, house.user_num(&anna)).unwrap().len() as u64, held.count);
    }
}
