//! Events that are sent later (MSC4140): an app that goes away without a word is followed by the event that says so.
//!
//! They are rows, so they outlive the server; a worker sleeps until the first is due. An event is sent once: the row of its
//! transaction is written with it, under the event's own id in place of a device's.
//!
//! Bounds: [`SCHEDULED_MAX`] that wait and [`ENDED_MAX`] that are over for each user, [`BYTES_MAX`] of them; and
//! [`ALL_COUNT_MAX`] and [`ALL_BYTES_MAX`] in all, on the card.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use tokio::sync::Notify;

use super::error::{Error, Result};
use super::{Rooms, Sending};
use crate::base::{KeyedLock, Worker};
use crate::matrix::json;
use crate::store::tables::room as table;
use crate::store::tables::room::delayed::{self, Call, Delayed, End, Held};
use crate::store::tables::user;
use crate::store::{Get, UserNum, Write};

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
const ALL_COUNT_MAX: u64 = 20_000;
const ALL_BYTES_MAX: u64 = 64 << 20;
/// The longest content, as the app wrote it: nothing longer fits an event.
const CONTENT_BYTES_MAX: usize = 64 << 10;
/// How often the media server is asked for the connection that an event waits for.
const CALL_MS: u64 = 20_000;
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
    /// room that is not known here.
    pub async fn schedule(&self, sender: &UserId, room_id: &RoomId, delay: Delay) -> Result<Scheduled> {
        if delay.content.get().len() > CONTENT_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        // Held against what an event may be: integers, depth.
        let content = json::canonical(delay.content.get().as_bytes(), json::Mode::Strict)
            .map_err(|wrong| Error::bad("M_BAD_JSON", wrong.to_string()))?;
        let content = String::from_utf8(content).map_err(|_| Error::bad("M_BAD_JSON", "the content is no JSON"))?;
        let (sender, room_id, now_ms) = (sender.to_owned(), room_id.to_owned(), self.0.parts.clock.now_ms());
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
            if let Some(next_ms) = is_full(w, user, &new)? {
                return Ok(Scheduled::Full { retry_after_ms: next_ms.saturating_sub(now_ms).max(1) });
            }
            forget_ended(w, user, now_ms)?;
            delayed::put(w, &id, &new)?;
            Ok(Scheduled::Done(id))
        });
        let scheduled = scheduled.await?;
        self.0.delays.wish.notify_one();
        Ok(scheduled)
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
        let now_ms = self.0.parts.clock.now_ms();
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
        let (id, now_ms) = (id.to_owned(), self.0.parts.clock.now_ms());
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

    async fn change_delayed(&self, id: &str, event: Delayed) -> Result<()> {
        let (id, now_ms) = (id.to_owned(), self.0.parts.clock.now_ms());
        self.write(move |w| {
            delayed::put(w, &id, &event)?;
            Ok(forget_ended(w, UserNum(event.user), now_ms)?)
        })
        .await
    }

    /// Sends a delayed event now. The caller holds its lock.
    async fn send_delayed(&self, id: &str, event: &Delayed) -> Result<String> {
        let user = UserNum(event.user);
        let sender = self.reading(move |_, read| Ok(user::id_of(read, user)?)).await?;
        let sender = OwnedUserId::try_from(sender).map_err(|_| Error::NotFound)?;
        let room = OwnedRoomId::try_from(event.room_id.as_str()).map_err(|_| Error::NotFound)?;
        let content = RawValue::from_string(event.content.clone()).map_err(|_| Error::NotFound)?;
        let sending = Sending {
            kind: event.kind.clone(),
            state_key: event.state_key.clone(),
            content,
            redacts: None,
            sticky_ms: event.sticky_ms,
            // No device has an empty id.
            txn: Some((String::new(), id.to_owned())),
            paid: None,
        };
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
        let now_ms = self.0.parts.clock.now_ms();
        if due_ms > now_ms {
            return Ok(Some(Some(Duration::from_millis(due_ms - now_ms))));
        }
        let _alone = self.0.delays.locks.take(&id).await;
        // It may have been restarted or cancelled meanwhile.
        let event = match self.delayed(&id, None).await {
            Ok(event) if event.end.is_none() && event.due_ms <= now_ms => event,
            Ok(_) | Err(Error::NotFound) => return Ok(None),
            Err(failed) => return Err(failed),
        };
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
        let is_there = watch.is_there(&call.alias, &call.identity).await;
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
        waits.due_ms = due_ms(&waits, now_ms);
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

/// When the user's next event is sent, if no more fit.
fn is_full(w: &Write<'_>, user: UserNum, new: &Delayed) -> Result<Option<u64>> {
    let waiting: Vec<_> = delayed::list(w, user)?.into_iter().filter(|(_, ended)| *ended == 0).collect();
    let (all, own) = (delayed::held(w, None)?, delayed::held(w, Some(user))?);
    let bytes = new.content.len() as u64;
    let fits = |held: Held, bytes_max: u64| held.bytes + bytes <= bytes_max;
    // What is over of the user's own gives way; see `forget_ended`.
    let has_only_waiting = own.count <= waiting.len() as u64;
    let own_fits = fits(own, BYTES_MAX) || !has_only_waiting;
    if waiting.len() < SCHEDULED_MAX && own_fits && fits(all, ALL_BYTES_MAX) && all.count < ALL_COUNT_MAX {
        return Ok(None);
    }
    let mut next = new.due_ms;
    for (id, _) in waiting {
        next = delayed::get(w, &id)?.map_or(next, |event| next.min(event.due_ms));
    }
    Ok(Some(next))
}

/// Forgets events of a user that are over: the oldest beyond their number and time, and all when they take too much.
fn forget_ended(w: &mut Write<'_>, user: UserNum, now_ms: u64) -> Result<(), crate::store::Error> {
    let mut ended: Vec<_> = delayed::list(w, user)?.into_iter().filter(|(_, ended)| *ended > 0).collect();
    ended.sort_unstable_by_key(|(_, at)| *at);
    let surplus = match delayed::held(w, Some(user))?.bytes > BYTES_MAX / 2 {
        true => ended.len(),
        false => ended.len().saturating_sub(ENDED_MAX),
    };
    for (at, (id, ended_ms)) in ended.into_iter().enumerate() {
        if at < surplus || ended_ms + ENDED_MS < now_ms {
            delayed::remove(w, &id)?;
        }
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
