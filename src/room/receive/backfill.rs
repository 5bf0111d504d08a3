//! Events from before our own history of a room, or from a time without members here, fetched when a user scrolls back
//! to their place.
//!
//! Server-server API, "Backfilling and retrieving missing events". A batch from one of the room's servers is checked
//! like pushed events, by the events each one cites, and appended newest first, below everything we have. The state
//! before such an event is the state before the one that follows it, without the change of that one: no server is asked
//! for whole states. In a hole it is the same, between our events before and after it.
//!
//! Bounded: one batch from one server, a few servers tried; one at a time in each room.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, RoomId, ServerName};

use super::fetch::{Fetch, Wire, fewer};
use super::gap::{GapFill, in_order};
use super::inbox::Inbox;
use crate::base;
use crate::matrix::Event;
use crate::remote::Failed;
use crate::room::Rooms;
use crate::room::append::append;
use crate::room::append::new_event::{Append, Before, Here, Place};
use crate::room::error::{Error, Result};
use crate::room::state;
use crate::room::state::event::load_row;
use crate::room::state::fork::Current;
use crate::room::state::known_num;
use crate::room::state::servers::servers;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Root, Row};
use crate::store::tables::room::{self, state_tree, timeline};
use crate::store::{self, EventNum, Get, Read, RoomNum, StateKeyNum, Write};

/// Events of one batch: the usual limit of other servers.
const BATCH_MAX: usize = 100;
/// Events at the beginning of our history whose missing parents are looked for, and parents requested at once.
const BEGINNING: usize = 20;
const OPEN_MAX: usize = 10;

/// Waiting for one server.
const TIME_MAX: Duration = Duration::from_secs(50);
/// Events appended in one commit.
const APPENDED_AT_ONCE: usize = 16;

/// The state after each event that is to be fetched, as far as the events that follow it tell.
type After = HashMap<OwnedEventId, Option<Root>>;

/// The missing part of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// The events before our history of the room.
    Beginning,
    /// The events of the hole with this bottom.
    Hole(i64),
}

/// Fetches up to `limit` missing events, those nearest to the end of the gap. Answers how many there were; none
/// when no server has any. An error when no server could be asked.
pub async fn backfill(rooms: &Rooms, room: RoomNum, gap: Gap, limit: usize) -> Result<usize> {
    let inbox = Inbox { rooms: rooms.clone(), fetch: Wire::new(rooms.0.parts.remote.clone()) };
    base::unbroken(async move { inbox.backfill(room, gap, limit.min(BATCH_MAX)).await }).await
}

/// The same for a client that scrolled back to the gap. Answers whether there was more.
pub async fn backfill_for_app(rooms: &Rooms, room_id: &RoomId, gap: Gap) -> Result<bool> {
    // Missing events can be fetched later; the disk's reserve is for events that local users send.
    rooms.0.parts.store.check_spare()?;
    let num = state::num_of(rooms, room_id).await?;
    let count = backfill(rooms, num, gap, BATCH_MAX).await;
    count
        .map(|count| count > 0)
        .inspect_err(|failed| tracing::debug!(%room_id, %failed, "the server returned no older events"))
}

impl<F: Fetch> Inbox<F> {
    pub(in crate::room) async fn backfill(&self, room: RoomNum, gap: Gap, limit: usize) -> Result<usize> {
        let _turn = self.rooms.0.gaps.lock(room).await;
        let (open, servers) = self
            .rooms
            .reading(move |rooms, read| Ok((open_ends(read, room, gap)?, servers(read, room, rooms.server())?)))
            .await?;
        if open.is_empty() {
            if let Gap::Hole(bottom) = gap {
                self.close(room, bottom).await?;
            }
            return Ok(0);
        }
        let (mut answered, mut failure) = (false, None);
        for server in servers {
            match self.backfill_from(&server, room, gap, &open, limit).await {
                Ok(0) => answered = true,
                Ok(count) => return Ok(count),
                Err(failed) => {
                    tracing::debug!(%server, %failed, "the server returned no events before the given one");
                    match is_answer(&failed) {
                        true => answered = true,
                        false => failure = Some(failed),
                    }
                }
            }
        }
        // Only a server that answered can say that there are no more events.
        match failure {
            Some(failed) if !answered => Err(failed),
            _ => Ok(0),
        }
    }

    /// Closes a hole with no missing events left.
    async fn close(&self, num: RoomNum, bottom: i64) -> Result<()> {
        let _guard = self.rooms.lock(num).await;
        let job = move |w: &mut Write<'_>| {
            let mut row = room::get_of(w, num)?;
            row.holes.retain(|hole| hole.bottom != bottom);
            Ok(room::put(w, num, &row)?)
        };
        self.rooms.write(job).await
    }

    async fn backfill_from(
        &self,
        server: &ServerName,
        num: RoomNum,
        gap: Gap,
        open: &After,
        limit: usize,
    ) -> Result<usize> {
        let until = self.rooms.0.parts.clock.instant() + TIME_MAX;
        let mut filling = GapFill::new(self, server, num, until).await?;
        let from: Vec<OwnedEventId> = open.keys().cloned().collect();
        let mut limit = limit;
        let fetched = loop {
            match self.fetch.backfill(server, filling.room_id(), &from, limit).await {
                // Large events: as many as fit into an answer.
                Err(Failed::TooLarge { .. }) if limit > 1 => limit = fewer(limit),
                asked => break asked?,
            }
        };
        let mut events = Vec::new();
        for raw in fetched.iter() {
            let Ok(event) = filling.read(raw) else { continue };
            // As many as fit: the next request goes on from there.
            if filling.pay(&event).is_err() {
                break;
            }
            events.push(event);
        }
        drop(fetched);
        let checked = self.check(events).await;
        let mut found: HashMap<OwnedEventId, Arc<Event>> =
            checked.into_iter().filter_map(|(id, event)| Some((id, Arc::new(event.ok()?)))).collect();
        // Only events that lead to our own events count.
        let mut reached: HashMap<OwnedEventId, Arc<Event>> = HashMap::new();
        let mut next: Vec<OwnedEventId> = from;
        while let Some(id) = next.pop() {
            // Below the batch, or reached from another side already: other branches go on.
            let Some(event) = found.remove(&id) else { continue };
            next.extend(event.prev_events().map(ToOwned::to_owned));
            reached.insert(id, event);
        }
        if reached.is_empty() {
            return Ok(0);
        }
        let cited = filling.unknown_cited(&reached).await?;
        if !cited.is_empty() {
            // An event that cites one that cannot be had stays out by itself, with the events before it.
            filling.fetch_singly(cited).await?;
        }
        filling.store_outliers(reached.clone()).await?;
        let mut ordered = in_order(reached, |event| event.prev_events().map(ToOwned::to_owned).collect());
        ordered.reverse();
        self.place(num, gap, open.clone(), ordered).await
    }

    /// Appends events, newest first, below our own.
    async fn place(&self, room: RoomNum, gap: Gap, mut after: After, ordered: Vec<Arc<Event>>) -> Result<usize> {
        let mut count = 0;
        let earlier = Arc::new(ordered);
        for start in (0..earlier.len()).step_by(APPENDED_AT_ONCE) {
            let _guard = self.rooms.lock(room).await;
            let (here, events) = (self.rooms.here(), earlier.clone());
            let placing = move |w: &mut Write<'_>| {
                let mut count = 0;
                for at in start..events.len().min(start + APPENDED_AT_ONCE) {
                    count += usize::from(place_one(w, &here, (room, gap), &events[at], &events[at + 1..], &mut after)?);
                }
                Ok((count, after))
            };
            let placed = self.rooms.write(placing).await?;
            count += placed.0;
            after = placed.1;
        }
        Ok(count)
    }
}

/// Whether a server answered, if not with the events requested.
fn is_answer(failed: &Error) -> bool {
    match failed {
        Error::Remote(failed) => failed.is_refusal(),
        failed => !failed.is_passing(),
    }
}

/// Gives one stored event its place. `older`: the events before it, newest first.
fn place_one(
    w: &mut Write<'_>,
    here: &Here,
    (room, gap): (RoomNum, Gap),
    event: &Arc<Event>,
    older: &[Arc<Event>],
    after: &mut After,
) -> Result<bool> {
    let Some((num, row)) = state::event::stored(w, event.id().as_str())? else { return Ok(false) };
    let Some(root) = after.get(event.id()).copied().flatten() else { return Ok(false) };
    if state::event::is_placed(&row) || !state::event::is_same(w, &row, room, event)? {
        return Ok(false);
    }
    let before = events_before(w, num, &row, root, event, older)?;
    for prev in event.prev_events() {
        after.entry(prev.to_owned()).or_insert(Some(before));
    }
    let new = Append {
        flags: row.flags,
        before: if row.kind == Kind::CREATE { Before::Unknown } else { Before::At(before) },
        current: Current::Keep,
        place: match gap {
            Gap::Beginning => Place::Older,
            Gap::Hole(bottom) => Place::InHole(bottom),
        },
        ..Append::next(room, (**event).clone())
    };
    let done = append(w, here, new)?;
    Ok(done.order.is_some())
}

/// The state before an event, from the one after it: the earlier event of its key is found among the events it cites,
/// or in an older event of the batch. A history visibility without an earlier event stays as it is, since without any
/// the room would be open to more.
fn events_before(
    w: &mut Write<'_>,
    num: EventNum,
    row: &Row,
    after: Root,
    event: &Event,
    older: &[Arc<Event>],
) -> store::Result<Root> {
    let Some(key) = row.state_key.filter(|_| row.is_state()) else { return Ok(after) };
    if state_tree::get(w, after, key)? != Some(num) {
        return Ok(after);
    }
    let earlier = match cited_under(w, row, key)? {
        Some(earlier) => Some(earlier),
        None => older_under(w, event, older)?,
    };
    if earlier.is_none() && row.kind == Kind::HISTORY_VISIBILITY {
        return Ok(after);
    }
    state_tree::set(w, Some(after), &[(key, earlier)])
}

fn cited_under(get: &impl Get, row: &Row, key: StateKeyNum) -> store::Result<Option<EventNum>> {
    for &cited in &row.auth {
        if event::row_of(get, cited)?.state_key == Some(key) {
            return Ok(Some(cited));
        }
    }
    Ok(None)
}

fn older_under(get: &impl Get, event: &Event, older: &[Arc<Event>]) -> store::Result<Option<EventNum>> {
    let same = |other: &&Arc<Event>| other.kind() == event.kind() && other.state_key() == event.state_key();
    for other in older.iter().filter(same) {
        if let Some((num, row)) = state::event::stored(get, other.id().as_str())?
            && !row.flags.rejected
        {
            return Ok(Some(num));
        }
    }
    Ok(None)
}

/// Missing events that the events behind a gap follow, with the state before those events.
fn open_ends(get: &Read, num: RoomNum, gap: Gap) -> Result<After> {
    let room = known_num(get, num)?;
    let hole = match gap {
        Gap::Beginning => None,
        Gap::Hole(bottom) => Some(room.row.holes.iter().find(|hole| hole.bottom == bottom)),
    };
    let from = match hole {
        None => i64::MIN,
        Some(Some(hole)) if hole.next - 1 > hole.bottom => hole.next - 1,
        Some(_) => return Ok(After::new()),
    };
    // Events missing further up belong to another hole.
    let next = room.row.holes.iter().find(|other| hole.flatten().is_none_or(|hole| other.bottom > hole.bottom));
    let to = next.map_or(i64::MAX - 1, |next| next.bottom);
    let mut oldest = Vec::with_capacity(BEGINNING);
    timeline::forward(get, num, from, to, &mut |_, event| {
        oldest.push(event);
        Ok(if oldest.len() < BEGINNING { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    // A room just joined may have nothing in its timeline but later events.
    if oldest.is_empty() && hole.is_none() {
        oldest.extend(&room.row.extremities);
    }
    let mut open = After::new();
    for at in oldest {
        let row = event::row_of(get, at)?;
        for prev in load_row(get, room.version, &row)?.prev_events() {
            let placed =
                state::event::stored(get, prev.as_str())?.is_some_and(|(_, row)| state::event::is_placed(&row));
            if !placed && open.len() < OPEN_MAX {
                open.entry(prev.to_owned()).or_insert(row.before);
            }
        }
    }
    Ok(open)
}
