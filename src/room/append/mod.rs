//! The only place an event enters a room.
//!
//! By now the event has been checked; nothing here can refuse it. Everything that must be true once it exists is
//! written in this one transaction, the outbox included, so a power cut leaves the room before it or after it, never
//! between. Bounded by the number of local members and of state keys the event changes, never by the room.

use std::sync::atomic::Ordering::Relaxed;

use ruma::UserId;

use super::state;
use super::state::event::id_in;
use super::state::fork::Current;
use crate::matrix::{Event, json};
use crate::store::schema::EVENT;
use crate::store::tables::room::current_state::{self as tables_current_state, NewState};
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Flags, Kind, Membership, Row};
use crate::store::tables::room::sticky::{self as sticky_table, Sticky};
use crate::store::tables::room::txn;
use crate::store::tables::room::{self, Room, Sort};
use crate::store::tables::room::{state_tree, timeline};
use crate::store::tables::user;
use crate::store::{Change, Error, EventNum, Get, Position, Result, RoomNum, UserNum, Write};
use current_state::change_state;
use derived::{Appended, Derived};
use extremities::{follow, leaves_hole, note_followed, open_hole};
use members::add_local_joined;
use new_event::{Append, Before, Done, Here, Place};

pub mod redact;
pub mod unread;
pub mod current_state;
pub mod derived;
pub mod device_lists;
pub mod extremities;
pub mod guests;
pub mod mass_redaction;
pub mod members;
pub mod new_event;
pub mod outbound;
pub mod policy;
pub mod relations;
pub mod rules_cache;
pub mod sticky;
pub mod searched;
#[cfg(test)]
mod tests;

/// What follows from events, each a file of its own. The next is one more file and one more line.
const DERIVED: [&dyn Derived; 10] = [
    &relations::Relations,
    &members::Members,
    &unread::UnreadCounts,
    &outbound::OutboundLog,
    &device_lists::DeviceLists,
    &sticky::StickyEvents,
    &guests::Guests,
    &mass_redaction::MassRedactions,
    &searched::Searched,
    &policy::PolicyRules,
];

/// Writes a part of the state of a room that is joined through another server, in the order of the keys, and what
/// follows from it.
pub fn build_from_state(w: &mut Write<'_>, room: RoomNum, batch: &[NewState]) -> Result<()> {
    tables_current_state::put_new(w, room, batch)?;
    DERIVED.iter().try_for_each(|derived| derived.build_from_state(w, room, batch))
}

/// Removes at most `rows_max` rows of a room's present state and of what was built from it; fewer means that none are
/// left. For a room that is built anew, or was never finished.
pub fn forget(w: &mut Write<'_>, room: RoomNum, rows_max: usize) -> Result<usize> {
    let mut removed = tables_current_state::clear(w, room, rows_max)?;
    for derived in DERIVED {
        removed += derived.forget(w, room, rows_max - removed)?;
    }
    Ok(removed)
}

/// Appends an event. The caller holds the room's lock.
///
/// An event that is stored already is not stored twice: an outlier gets its place, anything else stays as it is.
/// Always bounded: a handful of rows, and two for each local member.
pub fn append(w: &mut Write<'_>, here: &Here, new: Append) -> Result<Done> {
    let known = stored(w, &new)?;
    if let Some((num, row)) = &known
        && !state::event::is_same(w, row, new.room, &new.event)?
    {
        // A different event under a stored id is not appended: it would get the stored one's columns, with other
        // content.
        return Err(Error::corrupt(&EVENT, &num.to_key()));
    }
    if let Some((num, row)) = &known
        && !(row.flags.outlier && new.place != Place::Nowhere)
    {
        return Ok(Done { num: *num, order: row.order, at: w.position()? });
    }
    let mut room = room::get_of(w, new.room)?;
    let at = match leaves_hole(w, &room, &new)? {
        true => open_hole(w, &mut room),
        false => w.next_position(),
    };
    let (num, row) = store_event(w, &mut room, &new, known, at)?;
    if let Some(order) = row.order {
        timeline::put(w, new.room, order, num)?;
    }
    let may_be_named = new.cites.is_none();
    let is_followed =
        may_be_named && new.place != Place::Nowhere && event::take_followed(w, new.room, new.event.id().as_str())?;
    if new.is_shown() && may_be_named {
        note_followed(w, &room, &new)?;
    }
    let mut wake = Vec::new();
    let state_before = room.state;
    if new.is_new() {
        let count = if new.outbound { &here.counts.sent } else { &here.counts.received };
        count.fetch_add(1, Relaxed);
        follow(w, &mut room, &new, num, is_followed)?;
        wake = change_state(w, here, &mut room, &new, num, &row, at)?;
        add_local_joined(w, new.room, &mut wake)?;
        room.latest = at;
        if BUMPS.contains(&new.event.kind()) {
            room.bump = at;
        }
        note_sort(w, &mut room)?;
    }
    // A message follows all that is there and changes no state.
    let only_room = row.state_key.is_none() && matches!(new.current, Current::Follow | Current::Keep);
    let message = only_room && new.is_new() && MESSAGES.contains(&new.event.kind());
    let change = Change { users: wake, room: Some(new.room), only_room, message, ..Change::default() };
    let mut appended = Appended { here, room: &room, new: &new, num, row: &row, at, change };
    for derived in DERIVED {
        derived.on_append(w, &mut appended)?;
    }
    let mut change = appended.change;
    change.only_room &= !redact::apply(w, here, &new, num, &row)?;
    if let Some(txn) = &new.txn {
        txn::put(w, txn, num, here.now_ms)?;
    }
    if room.state != state_before {
        for (held, event, row) in sticky::take_allowed(w, new.room, new.event.version(), here.now_ms)? {
            tell_held(w, here, &mut room, held, event, row)?;
        }
    }
    room::put(w, new.room, &room)?;
    w.announce(change);
    Ok(Done { num, order: row.order, at })
}

/// A sticky event that was held back is one again: at its place in the timeline, or at the end when it never had one.
fn tell_held(w: &mut Write<'_>, here: &Here, room: &mut Room, held: Sticky, event: Event, mut row: Row) -> Result<()> {
    let (num, room_num) = (held.event, row.room);
    if let Some(order) = row.order {
        // Who was in the room was told of it there.
        return match u64::try_from(order) {
            Ok(order) => sticky_table::put(w, room_num, Sticky { order, ..held }, here.now_ms),
            Err(_) => Ok(()),
        };
    }
    let at = w.next_position();
    let mut users = Vec::new();
    add_local_joined(w, room_num, &mut users)?;
    let change = Change { users, room: Some(room_num), only_room: true, ..Change::default() };
    row.flags.soft_failed = false;
    row.order = Some(at.0 as i64);
    event::put_row(w, num, &row)?;
    timeline::put(w, room_num, at.0 as i64, num)?;
    room.latest = at;
    // It is no extremity: nothing here was built upon it.
    let new = Append { current: Current::Keep, ..Append::next(room_num, event) };
    let mut appended = Appended { here, room, new: &new, num, row: &row, at, change };
    for derived in DERIVED {
        derived.on_append(w, &mut appended)?;
    }
    w.announce(appended.change);
    Ok(())
}

/// The types of events that count as messages of a day.
const MESSAGES: [&str; 3] = ["m.room.message", "m.room.encrypted", "m.sticker"];

/// The types of events for which people look into a room (MSC4186, `bump_stamp`).
const BUMPS: [&str; 7] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
];

/// Notes once what the room is for: a create event never changes.
fn note_sort(get: &impl Get, room: &mut Room) -> Result<()> {
    if let (Sort::Unknown, Some(create)) = (room.sort, room.create) {
        let body = event::shown(get, &event::row_of(get, create)?)?;
        let room_type = json::read::get_path(&body, &["content", "type"]).and_then(json::read::text);
        room.sort = Sort::of(room_type.as_deref());
    }
    Ok(())
}

fn stored(get: &impl Get, new: &Append) -> Result<Option<(EventNum, Row)>> {
    if new.cites.is_some() {
        return Ok(None);
    }
    match event::num(get, new.event.id().as_str())? {
        Some(num) => Ok(Some((num, event::row_of(get, num)?))),
        None => Ok(None),
    }
}

/// Writes the event's rows, or gives the outlier we have its place.
fn store_event(
    w: &mut Write<'_>,
    room: &mut Room,
    new: &Append,
    known: Option<(EventNum, Row)>,
    at: Position,
) -> Result<(EventNum, Row)> {
    let before = match new.before {
        Before::Present => room.state,
        Before::At(root) => Some(root),
        Before::Unknown => None,
    };
    let order = match new.place {
        _ if !new.is_shown() => None,
        Place::Newest => Some(at.0 as i64),
        Place::Older => {
            room.min_order = room.min_order.min(0) - 1;
            Some(room.min_order)
        }
        Place::InHole(bottom) => {
            let hole = room.holes.iter_mut().find(|hole| hole.bottom == bottom && hole.next - 1 > bottom);
            hole.map(|hole| {
                hole.next -= 1;
                hole.next
            })
        }
        Place::Nowhere => None,
    };
    let guessed = matches!(new.place, Place::Older | Place::InHole(_));
    let flags = Flags { outlier: new.place == Place::Nowhere, redacted: false, guessed, ..new.flags };
    if let Some((num, mut row)) = known {
        let flags = Flags { redacted: row.flags.redacted, ..flags };
        (row.before, row.order, row.flags) = (before, order, flags);
        event::put_row(w, num, &row)?;
        return Ok((num, row));
    }
    let row = match &new.cites {
        Some(auth) => row_citing(w, new.room, &new.event, auth.clone())?,
        None => row_of(w, new.room, &new.event)?,
    };
    let row = Row { flags, before, order, ..row };
    room.events += 1;
    room.bytes += new.event.to_federation().len() as u64;
    if new.place != Place::Nowhere {
        room.depth = room.depth.max(new.event.depth());
    }
    let (num, row) = event::insert(w, row, new.event.to_federation())?;
    if row.kind == Kind::CREATE && room.create.is_none() && !flags.rejected {
        room.create = Some(num);
    }
    Ok((num, row))
}

/// An event's columns as far as the event itself gives them: everything but flags, place and state before. Interns the
/// users it mentions. Auth events that are not stored are left out; the body then keeps the event's own list.
pub fn row_of(w: &mut Write<'_>, room: RoomNum, event: &Event) -> Result<Row> {
    let mut auth = Vec::new();
    for id in event.auth_events() {
        auth.extend(event::num(w, id.as_str())?);
    }
    row_citing(w, room, event, auth)
}

/// The same with the numbers of its auth events.
fn row_citing(w: &mut Write<'_>, room: RoomNum, event: &Event, auth: Vec<EventNum>) -> Result<Row> {
    let kind = Kind::of(event.kind());
    let state_key = match event.state_key() {
        Some(state_key) => Some(state_tree::intern_key(w, event.kind(), state_key)?),
        None => None,
    };
    let member = match event.state_key() {
        Some(target) if kind == Kind::MEMBER => member_of(w, event, target)?,
        _ => None,
    };
    Ok(Row {
        room,
        body: crate::store::BodyNum(0),
        id: id_in(event.version(), event.id().as_str()),
        kind,
        state_key,
        sender: user::intern(w, event.sender().as_str())?,
        member,
        flags: Flags::default(),
        depth: event.depth(),
        origin_server_ts: event.origin_server_ts(),
        auth,
        before: None,
        order: None,
        redacted_by: None,
    })
}

fn member_of(w: &mut Write<'_>, event: &Event, target: &str) -> Result<Option<(Membership, UserNum)>> {
    let Some(membership) = event.membership().as_deref().and_then(Membership::of) else { return Ok(None) };
    if UserId::parse(target).is_err() {
        return Ok(None);
    }
    Ok(Some((membership, user::intern(w, target)?)))
}
