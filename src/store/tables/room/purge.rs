//! Rooms that are being removed for good, row by row.
//!
//! A room on its way out is a stub at once: nothing reads its rows any more, and they go in many small writes. What the
//! journal says survives a power cut, and the next start goes on.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::search::{Down, stale};
use super::{Room, Status, directory, event, thread_subscription, user_room};
use crate::store::schema::{
    CURRENT_STATE, GUESTS_NOTED, MASS_REDACTION, MEMBER, POLICY_RULE, PURGE, RECEIPT, RECEIPT_LOG, RELATION,
    ROOM_ALIAS, ROOM_LOCAL, ROOM_SERVER, SEARCH_GONE, STATE_LOG, STICKY, TIMELINE, UNREAD,
};
use crate::store::tables::user::account_data;
use crate::store::{Change, Error, EventNum, Get, Result, RoomNum, Table, UserNum, Write, tables};

/// Tables whose keys begin with the room.
const BY_ROOM: [&Table; 13] = [
    &TIMELINE,
    &STATE_LOG,
    &CURRENT_STATE,
    &MEMBER,
    &ROOM_SERVER,
    &RELATION,
    &RECEIPT,
    &RECEIPT_LOG,
    &STICKY,
    &GUESTS_NOTED,
    &MASS_REDACTION,
    &SEARCH_GONE,
    &POLICY_RULE,
];

/// A room that is being removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    pub room_id: String,
    pub begun_ms: u64,
    /// Its own rows are gone; its events are looked for behind this one.
    pub cursor: Option<u32>,
    /// Events from this number on are of later.
    pub end: u32,
    /// Rows removed so far, and events among them.
    pub rows: u64,
    pub events: u64,
}

pub fn get(get: &impl Get, room: RoomNum) -> Result<Option<Purge>> {
    tables::get_json(get, &PURGE, &room.to_key())
}

/// The rooms that are being removed, at most `most`.
pub fn list(get: &impl Get, most: usize) -> Result<Vec<(RoomNum, Purge)>> {
    let mut found = Vec::new();
    get.range(&PURGE, &[], None, false, &mut |key, value| {
        let room = RoomNum::from_key(key).ok_or_else(|| Error::corrupt(&PURGE, key))?;
        found.push((room, tables::parse(&PURGE, key, value)?));
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// Begins to remove a room that nobody here is in: from now on it is a name without rows.
pub fn begin(w: &mut Write<'_>, num: RoomNum, room: &Room, now_ms: u64) -> Result<()> {
    if room.public {
        directory::set_public(w, num, Some(room.joined), None)?;
    }
    directory::leave_networks(w, num)?;
    let (room_id, end) = (room.id.clone(), w.next_number("event")?);
    super::put(w, num, &Room::stub(&room.id, &room.version))?;
    let purge = Purge { room_id, begun_ms: now_ms, cursor: None, end, rows: 0, events: 0 };
    tables::put_json(w, &PURGE, &num.to_key(), &purge)
}

/// Removes at most `rows_max` of a room's own rows. True when there are none left but those of people who were invited
/// meanwhile.
pub fn clear(w: &mut Write<'_>, num: RoomNum, rows_max: usize) -> Result<bool> {
    let Some(mut purge) = get(w, num)? else { return Ok(true) };
    let mut removed = 0;
    for table in BY_ROOM {
        let gone = w.remove_prefix(table, &num.to_key(), rows_max - removed)?;
        if gone > 0 && table.name == POLICY_RULE.name {
            w.announce(Change { policies: true, ..Change::default() });
        }
        removed += gone;
        if removed == rows_max {
            purge.rows += removed as u64;
            tables::put_json(w, &PURGE, &num.to_key(), &purge)?;
            return Ok(false);
        }
    }
    for alias in directory::aliases(w, num, rows_max / 2)? {
        directory::remove_alias(w, &alias)?;
        // Also one that leads nowhere.
        w.remove(&ROOM_ALIAS, &[&num.to_key()[..], alias.as_bytes()].concat())?;
        removed += 2;
    }
    let mut locals = Vec::new();
    w.prefix(&ROOM_LOCAL, &num.to_key(), &mut |key, _| {
        locals.push(key.get(4..).and_then(UserNum::from_key).ok_or_else(|| Error::corrupt(&ROOM_LOCAL, key))?);
        Ok(ControlFlow::Continue(()))
    })?;
    let mut is_done = w.first_in_prefix(&ROOM_ALIAS, &num.to_key())?.is_none();
    for user in locals {
        if removed < rows_max {
            removed += 2 * thread_subscription::remove_room(w, user, num, rows_max / 2)?;
        }
        if removed >= rows_max {
            is_done = false;
            break;
        }
        // Who was invited from outside meanwhile keeps the invite.
        if user_room::mine(w, user, num)?.is_some_and(|mine| mine.outside && !mine.forgotten) {
            continue;
        }
        user_room::remove_mine(w, user, num)?;
        w.remove(&UNREAD, &[user.to_key(), num.to_key()].concat())?;
        removed += 3 + account_data::remove_room(w, user, num)?;
    }
    w.remove(&UNREAD, &[[0; 4], num.to_key()].concat())?;
    purge.rows += removed as u64;
    if is_done {
        purge.cursor = Some(0);
    }
    tables::put_json(w, &PURGE, &num.to_key(), &purge)?;
    Ok(is_done)
}

/// The events of a room behind `after`, among `looked_at` of all rooms; and the last that was looked at, none at the end.
pub fn events(
    get: &impl Get,
    num: RoomNum,
    after: EventNum,
    end: u32,
    looked_at: usize,
    most: usize,
) -> Result<(Vec<EventNum>, Option<EventNum>)> {
    let (mut found, mut last, mut looked) = (Vec::new(), None, 0);
    event::rows_up(get, EventNum(after.0.saturating_add(1)), &mut |event, row| {
        if event.0 >= end {
            last = None;
            return Ok(ControlFlow::Break(()));
        }
        last = Some(event);
        looked += 1;
        if row.room == num {
            found.push(event);
        }
        Ok(if looked < looked_at && found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let is_over = looked < looked_at && found.len() < most;
    Ok((found, last.filter(|_| !is_over)))
}

/// Removes events that were found, and notes how far that is.
pub fn remove_events(w: &mut Write<'_>, num: RoomNum, events: &[EventNum], reached: EventNum) -> Result<()> {
    let Some(mut purge) = get(w, num)? else { return Ok(()) };
    for event in events {
        event::remove(w, *event)?;
    }
    purge.cursor = Some(reached.0);
    (purge.events, purge.rows) = (purge.events + events.len() as u64, purge.rows + 3 * events.len() as u64);
    tables::put_json(w, &PURGE, &num.to_key(), &purge)
}

/// Ends it: the room's name goes too, unless somebody was invited meanwhile. Its words in the index are noted, and go next.
pub fn end(w: &mut Write<'_>, num: RoomNum) -> Result<Option<Purge>> {
    let Some(purge) = get(w, num)? else { return Ok(None) };
    stale::note(w, num, Down::MIN)?;
    if w.first_in_prefix(&ROOM_LOCAL, &num.to_key())?.is_none() {
        super::remove(w, num)?;
    }
    w.remove(&PURGE, &num.to_key())?;
    Ok(Some(purge))
}

/// Whether a room may go: nobody here is in it, or invited to it.
pub fn may_go(get: &impl Get, num: RoomNum, room: &Room, only_forgotten: bool) -> Result<bool> {
    if room.status == Status::Resident {
        return Ok(false);
    }
    let mut may_go = true;
    super::member::list_local(get, num, &mut |user, membership| {
        let mine = user_room::mine(get, user, num)?;
        use super::event_row::Membership::{Ban, Leave};
        let is_gone = matches!(membership, Leave | Ban);
        may_go &= is_gone && (!only_forgotten || mine.is_none_or(|mine| mine.forgotten));
        Ok(if may_go { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(may_go)
}
