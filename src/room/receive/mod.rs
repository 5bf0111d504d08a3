//! Events from other servers.
//!
//! Server-server API, "Checks performed on receipt of a PDU", in its order. Shape, access control list, signatures and
//! hash are checked here, without any lock; `authorize.rs` does the rest under the room's lock. Events that follow the
//! present one, the usual case, are authorised and appended several to a commit. Missing events are fetched by
//! `gap.rs`, with no lock held: one gap at a time in each room, so that a slow server holds up the filling of
//! gaps in that room and nothing else.
//!
//! Bounded: a transaction's events are in memory, charged by the caller; events fetched besides pay for themselves.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, RoomId, ServerName};
use serde_json::value::RawValue;

use super::Rooms;
use super::append::new_event::Here;
use super::error::{Error, Result};
use super::lock::Guard;
use super::policy_server;
use super::state::event;
use super::state::server_access;
use super::state::{RoomRef, known_num};
use crate::base::{self, KeyedGuard};
use crate::matrix::{Event, Kind, Reject, auth};
use crate::remote::Failed;
use crate::store::tables::room::member;
use crate::store::{EventNum, Get, RoomNum, Write};
use fetch::{Fetch, Wire};
use gap::GapFill;
use inbox::{How, Inbox, Processed, Step, append_ready, read_event};

/// Events that follow each other, authorised and appended in one commit: a few milliseconds of the writer's time.
const NEXT_AT_ONCE: usize = 8;
/// How often one event is authorised anew, after missing events were fetched or memory was waited for.
const TRIES_MAX: usize = 4;
/// Waiting for other servers, and for memory to ask them, for all events of a transaction: an event that lacks another
/// after that is refused. Its sender's next event closes the gap. The same bound holds for an
/// event whose acceptance a caller waits for.
pub const TIME_MAX: Duration = Duration::from_secs(300);
const ACCEPT_TIME_MAX: Duration = Duration::from_secs(50);
/// Between two attempts to get the memory for a gap, each of which waits a while.
const MEMORY_PAUSE: Duration = Duration::from_secs(1);
/// Waiting for signing keys; after that the keys that are here must do.
pub(super) const KEYS_TIME_MAX: Duration = Duration::from_secs(30);

/// The outcome of one event.
pub type Outcome = (OwnedEventId, Result<(), NotTaken>);

/// Why an event is not in the room's history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// It is refused, for this reason: its sender made a mistake, or sends too much.
    #[error("{0}")]
    Refused(String),
    /// Nothing is known against it: other events that it takes to judge it cannot be had at present. It is fetched when
    /// others build upon it.
    #[error("{0}")]
    Unjudged(String),
}

/// Receives events of a room we are in that `origin` sent in a transaction. See [`Rooms::receive`].
pub async fn receive(
    rooms: &Rooms,
    origin: &ServerName,
    room_id: &RoomId,
    pdus: Vec<Box<RawValue>>,
    until: Duration,
) -> Result<Vec<Outcome>> {
    let inbox = Inbox { rooms: rooms.clone(), fetch: Wire::new(rooms.0.parts.remote.clone()) };
    inbox.receive(origin, room_id, pdus, until).await
}

/// Accepts one event of a room we are in: a membership event another server submits. Posted to the servers in the
/// room.
pub async fn accept(rooms: &Rooms, origin: &ServerName, event: Event) -> Result<EventNum> {
    let inbox = Inbox { rooms: rooms.clone(), fetch: Wire::new(rooms.0.parts.remote.clone()) };
    let origin = origin.to_owned();
    base::unbroken(async move { inbox.accept(&origin, event, true).await }).await
}

/// Accepts an event of ours that another server let into the room: that server tells the others.
pub(super) async fn accept_signed(rooms: &Rooms, by: &ServerName, event: Event) -> Result<()> {
    let inbox = Inbox { rooms: rooms.clone(), fetch: Wire::new(rooms.0.parts.remote.clone()) };
    let by = by.to_owned();
    base::unbroken(async move { inbox.accept(&by, event, false).await }).await.map(drop)
}

impl<F: Fetch> Inbox<F> {
    pub async fn receive(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: Vec<Box<RawValue>>,
        until: Duration,
    ) -> Result<Vec<Outcome>> {
        let (owned, id) = (origin.to_owned(), room_id.to_owned());
        let read = self.rooms.reading(move |_, read| read_events(read, &owned, &id, pdus)).await;
        let (room, events, mut outcomes) = match read {
            Ok(read) => read,
            Err(failed) if failed.is_passing() => return Err(failed),
            // Without the room its version is not known, and without that no event's id.
            Err(failed) => {
                tracing::debug!(%origin, %room_id, %failed, "events refused");
                return Ok(Vec::new());
            }
        };
        let bytes = events.iter().map(|event| event.to_federation().len() as u64).sum();
        if let Err(why) = intake::charge_room(&self.rooms, room, room_id.as_str(), bytes) {
            outcomes.extend(events.iter().map(|event| (event.id().to_owned(), Err(NotTaken::Refused(why.to_owned())))));
            return Ok(outcomes);
        }
        let checked = self.check(events).await;
        let mut queue = VecDeque::with_capacity(checked.len());
        for (id, checked) in checked {
            match checked {
                Ok(event) => queue.push_back(Arc::new(event)),
                Err(failed) if failed.is_passing() => return Err(failed),
                Err(failed) => outcomes.push((id, Err(NotTaken::Refused(failed.to_string())))),
            }
        }
        self.take(origin, room, queue, &mut outcomes, until).await?;
        Ok(outcomes)
    }

    pub async fn accept(&self, origin: &ServerName, event: Event, outbound: bool) -> Result<EventNum> {
        let (owned, id) = (origin.to_owned(), event.room_id().to_owned());
        let room = self.rooms.reading(move |_, read| Ok(server_access::for_server(read, &owned, &id)?.num)).await?;
        let (_, event) = self.check(vec![event]).await.pop().expect("one goes in, one comes out");
        let how = How { given: None, outbound };
        let event = Arc::new(event?);
        let until = self.rooms.0.parts.clock.instant() + ACCEPT_TIME_MAX;
        let processed = Box::pin(self.process(origin, room, event.clone(), how, until)).await?;
        if let Some(reason) = processed.reason {
            return Err(reason.into());
        }
        let num = processed.num;
        if processed.is_known {
            self.rooms.reading(move |_, read| holds_still(read, room, num, &event)).await?;
        }
        Ok(num)
    }

    /// Events of valid shape, one after the other.
    async fn take(
        &self,
        origin: &ServerName,
        room: RoomNum,
        mut queue: VecDeque<Arc<Event>>,
        outcomes: &mut Vec<Outcome>,
        until: Duration,
    ) -> Result<()> {
        while let Some(first) = queue.front().cloned() {
            match self.take_next(room, &mut queue, outcomes).await {
                Ok(0) => {}
                Ok(_) => continue,
                Err(failed) if failed.is_passing() => return Err(failed),
                // The faulty event shows when each is handled by itself.
                Err(failed) => tracing::warn!(%failed, "events could not be stored together"),
            }
            queue.pop_front();
            match Box::pin(self.process(origin, room, first.clone(), How::default(), until)).await {
                Err(failed) if failed.is_passing() => return Err(failed),
                processed => outcomes.push((first.id().to_owned(), outcome(processed))),
            }
        }
        Ok(())
    }

    /// Appends as many events from the front of the queue as simply follow each other. Answers how many.
    async fn take_next(
        &self,
        room: RoomNum,
        queue: &mut VecDeque<Arc<Event>>,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<usize> {
        let _guard = self.rooms.lock(room).await;
        let batch: Vec<Arc<Event>> = queue.iter().take(NEXT_AT_ONCE).cloned().collect();
        let first = batch[0].clone();
        let is_next = move |rooms: &Rooms, read: &_| is_next(read, room, rooms.server(), &first);
        if !self.rooms.reading(is_next).await? {
            return Ok(0);
        }
        let here = self.rooms.here();
        let taken = self.rooms.write(move |w| append_next(w, &here, room, &batch)).await?;
        for reason in &taken {
            let event = queue.pop_front().expect("no more are taken than there are");
            let refused = reason.as_ref().map(|reason| NotTaken::Refused(reason.to_string()));
            outcomes.push((event.id().to_owned(), refused.map_or(Ok(()), Err)));
        }
        Ok(taken.len())
    }

    /// One event, with all the fetching it needs; other servers are waited for `until` then, on the clock of spans.
    async fn process(
        &self,
        origin: &ServerName,
        room: RoomNum,
        event: Arc<Event>,
        how: How,
        until: Duration,
    ) -> Result<Processed> {
        let mut grant = None;
        for _ in 0..TRIES_MAX {
            match self.try_process(room, event.clone(), how.clone(), &mut grant).await? {
                Step::Done(processed) => return Ok(processed),
                Step::NeedsMemory => grant = Some(self.means().wait().await?),
                Step::StateIncomplete => break,
                Step::Missing(_) | Step::Unresolved => {
                    let clock = &self.rooms.0.parts.clock;
                    let turns = Box::pin(self.turns(origin, room));
                    let turns = clock.timeout(until.saturating_sub(clock.instant()), turns).await;
                    let _turns = turns.ok_or(Error::Remote(Failed::Timeout))??;
                    let mut filling = Box::pin(self.filling(origin, room, until)).await?;
                    // On the heap, for the few that need it: it is larger than everything else a request's task holds.
                    if let Some(processed) = Box::pin(filling.process(event.clone(), how.clone())).await? {
                        return Ok(processed);
                    }
                }
            }
        }
        Err(Reject::missing("the previous events or auth events of the event cannot be fetched").into())
    }

    /// The locks for filling a gap. A server fills one gap at a time, or two slow servers would keep all others' gaps
    /// waiting; the servers that are not in the room as far as we know share one slot. A room's gaps are filled one
    /// after the other: a later event finds much of its gap filled. Neither lock is held while the other is waited for:
    /// a server that waits for a busy room goes on in its other rooms, and a room goes on while a busy server is waited
    /// for.
    async fn turns(&self, origin: &ServerName, room: RoomNum) -> Result<(KeyedGuard, Guard)> {
        let asking = origin.to_owned();
        let is_member = move |_: &Rooms, read: &_| Ok(member::server(read, room, asking.as_str())?.is_some());
        let name = if self.rooms.reading(is_member).await? { origin.as_str() } else { "" };
        loop {
            let turn = self.rooms.0.gaps.lock(room).await;
            if let Some(only) = self.rooms.0.gap_senders.try_take(name) {
                return Ok((only, turn));
            }
            drop(turn);
            self.rooms.0.gap_senders.wait(name).await;
        }
    }

    /// The memory for a gap, waited for in turn, so that tasks waiting for the locks hold none. Where other gaps have
    /// all of it for so long, this event alone is given up: its sender's next one closes the gap.
    async fn filling(&self, origin: &ServerName, room: RoomNum, until: Duration) -> Result<GapFill<'_, F>> {
        let clock = &self.rooms.0.parts.clock;
        loop {
            match GapFill::new(self, origin, room, until).await {
                Err(Error::Refused(_)) if clock.instant() < until => clock.sleep(MEMORY_PAUSE).await,
                Err(Error::Refused(_)) => return Err(Error::Remote(Failed::Timeout)),
                made => return made,
            }
        }
    }
}

/// Checks that an event accepted once is in the room's present state, or would be accepted again.
fn holds_still(get: &impl Get, room: RoomNum, num: EventNum, event: &Event) -> Result<()> {
    let room = known_num(get, room)?;
    let view = room.view(get);
    if let Some(state_key) = event.state_key()
        && view.num(event.kind(), state_key)? == Some(num)
    {
        return Ok(());
    }
    auth::check(room.version, &event.subject(), &view)
}

fn outcome(processed: Result<Processed>) -> Result<(), NotTaken> {
    match processed {
        Ok(Processed { rejected: true, reason: Some(reason), .. }) => Err(NotTaken::Refused(reason.to_string())),
        // Soft-failed events are kept: the sender could not know of any fault.
        Ok(_) => Ok(()),
        Err(failed @ (Error::Remote(_) | Error::Reject(Reject { kind: Kind::Missing, .. }))) => {
            Err(NotTaken::Unjudged(failed.to_string()))
        }
        Err(failed) => Err(NotTaken::Refused(failed.to_string())),
    }
}

type Read = (RoomNum, Vec<Event>, Vec<Outcome>);

/// Reads a transaction's events of one room and leaves out those that are stored.
fn read_events(get: &impl Get, origin: &ServerName, room_id: &RoomId, pdus: Vec<Box<RawValue>>) -> Result<Read> {
    let room = super::state::known(get, room_id.as_str())?;
    if !room.is_resident() {
        return Err(Error::NotFound);
    }
    let allowed = server_access::acl_allows(get, &room, origin)?;
    let (mut events, mut outcomes) = (Vec::with_capacity(pdus.len()), Vec::with_capacity(pdus.len()));
    for raw in pdus {
        let event = match read_event(room.version, room_id.as_str(), raw.get().as_bytes()) {
            Ok(event) => event,
            Err(reject) => {
                tracing::debug!(%origin, %room_id, %reject, "an event cannot be read");
                continue;
            }
        };
        let sender = event.sender().server_name();
        let denied = match allowed {
            false => Some(origin),
            true if sender != origin && !server_access::acl_allows(get, &room, sender)? => Some(sender),
            true => None,
        };
        let id = event.id().to_owned();
        match (denied, event::stored(get, id.as_str())?) {
            (Some(server), _) => {
                let why = format!("the room's server ACL (m.room.server_acl) denies {server}");
                outcomes.push((id, Err(NotTaken::Refused(why))));
            }
            (None, Some((_, row))) if !row.flags.outlier => outcomes.push((id, Ok(()))),
            (None, _) => events.push(event),
        }
    }
    Ok((room.num, events, outcomes))
}

fn is_next(get: &impl Get, room: RoomNum, us: &ServerName, event: &Event) -> Result<bool> {
    let room = known_num(get, room)?;
    match authorize::judge_next(get, &room, event) {
        Ok(ready) => Ok(ready.is_some() && policy_server::lacking(get, &room, us, event)?.is_none()),
        // The event is handled by itself, where its error concerns no other event.
        Err(Error::Reject(_)) => Ok(false),
        Err(failed) => Err(failed),
    }
}

/// Appends events while they simply follow each other; answers for each why it was rejected, if it was.
fn append_next(w: &mut Write<'_>, here: &Here, room: RoomNum, events: &[Arc<Event>]) -> Result<Vec<Option<Reject>>> {
    let mut taken = Vec::with_capacity(events.len());
    for event in events {
        let known: RoomRef = known_num(w, room)?;
        let Ok(Some(ready)) = authorize::judge_next(w, &known, event) else { break };
        if policy_server::lacking(w, &known, &here.server, event)?.is_some() {
            break;
        }
        let reason = ready.reason.clone();
        append_ready(w, here, room, (**event).clone(), ready, false)?;
        taken.push(reason);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests;
pub mod authorize;
pub mod backfill;
pub mod fetch;
pub mod gap;
mod gap_state;
mod gap_whole;
pub mod intake;
pub mod inbox;
