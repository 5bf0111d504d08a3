//! The present state of a room, one row a key.

use super::DERIVED;
use super::derived::StateChange;
use super::new_event::{Append, Here};
use crate::room::state::fork::Current;
use crate::store::tables::room::current_state;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Row;
use crate::store::tables::room::{self, Room, state_tree, timeline};
use crate::store::{EventNum, Position, Result, RoomNum, StateKeyNum, UserNum, Write};

/// Applies the event to the present state. Answers the local users whose own membership changed.
pub fn change_state(
    w: &mut Write<'_>,
    here: &Here,
    room: &mut Room,
    new: &Append,
    num: EventNum,
    row: &Row,
    at: Position,
) -> Result<Vec<UserNum>> {
    let own = row.state_key.map(|key| (key, Some(num)));
    let changes: Vec<_> = match &new.current {
        Current::Follow => own.into_iter().collect(),
        Current::Resolved { changes, wins } => changes.iter().copied().chain(own.filter(|_| *wins)).collect(),
        Current::Keep => Vec::new(),
    };
    set_present_state(w, here, new.room, room, &changes, at)
}

/// Changes keys of a room's present state and everything that is derived from it: the materialised state, members,
/// counts, servers, local users' own rooms, the public list, and the state log at position `at`.
///
/// Answers the local users whose membership changed. The caller writes the room's row. Bounded by the changes.
pub fn set_present_state(
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    room: &mut Room,
    changes: &[(StateKeyNum, Option<EventNum>)],
    at: Position,
) -> Result<Vec<UserNum>> {
    let listed = room.public.then_some(room.joined);
    let mut effective = Vec::with_capacity(changes.len());
    let mut touched = Vec::new();
    for &(key, after) in changes {
        let before = match room.state {
            Some(root) => state_tree::get(w, root, key)?,
            None => None,
        };
        if before == after {
            continue;
        }
        effective.push((key, after));
        touched.extend(set_key(w, here, num, room, key, (before, after), at)?);
    }
    if effective.is_empty() {
        return Ok(touched);
    }
    let root = state_tree::set(w, room.state, &effective)?;
    room.state = Some(root);
    timeline::put_state(w, num, at, root)?;
    room::directory::set_public(w, num, listed, room.public.then_some(room.joined))?;
    Ok(touched)
}

/// One key of the present state, from one event to another, and what follows from it.
fn set_key(
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    room: &mut Room,
    key: StateKeyNum,
    (before, after): (Option<EventNum>, Option<EventNum>),
    at: Position,
) -> Result<Option<UserNum>> {
    let before = before.map(|event| event::row_of(w, event)).transpose()?;
    let after = match after {
        Some(event) => Some((event, event::row_of(w, event)?)),
        None => None,
    };
    let Some(kind) = after.as_ref().map(|(_, row)| row.kind).or(before.as_ref().map(|row| row.kind)) else {
        return Ok(None);
    };
    current_state::set_state(w, num, kind, key, after.as_ref().map(|(event, _)| *event))?;
    let mut change = StateChange { here, num, room, kind, before: before.as_ref(), after, at, local: None };
    for derived in DERIVED {
        derived.on_state(w, &mut change)?;
    }
    Ok(change.local)
}
