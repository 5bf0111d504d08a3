//! The present state of a room, and the rows derived from it: its members, and each local user's own rooms.

use super::new_event::{Append, Here, server_of};
use crate::room::state::fork::Current;
use crate::room::state::join_conditions::local_joined;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Row};
use crate::store::tables::room::member;
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{self, Room, Status, state_tree, timeline};
use crate::store::tables::room::{current_state, user_room};
use crate::store::tables::user;
use crate::store::{EventNum, Get, Position, Result, RoomNum, StateKeyNum, UserNum, Write};

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

/// One key of the present state, from one event to another.
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
    if kind != Kind::MEMBER {
        return Ok(None);
    }
    let before = before.and_then(|row| row.member);
    let after = after.and_then(|(event, row)| row.member.map(|(membership, target)| (membership, target, event)));
    let Some(target) = after.map(|(_, target, _)| target).or(before.map(|(_, target)| target)) else {
        return Ok(None);
    };
    let before = before.map(|(membership, _)| membership);
    let after = after.map(|(membership, _, event)| (membership, event));
    move_member(w, here, num, room, target, before, after, at)
}

/// A user's membership changes: rows, counts, servers; and, for a local user, the row of their own rooms.
#[allow(clippy::too_many_arguments)] // one fact with its two sides; a struct would be named once and taken apart once
fn move_member(
    w: &mut Write<'_>,
    here: &Here,
    num: RoomNum,
    room: &mut Room,
    target: UserNum,
    before: Option<Membership>,
    after: Option<(Membership, EventNum)>,
    at: Position,
) -> Result<Option<UserNum>> {
    member::set(w, num, target, before, after)?;
    let membership = after.map(|(membership, _)| membership);
    let change = |which| i64::from(membership == Some(which)) - i64::from(before == Some(which));
    room.joined = room.joined.saturating_add_signed(change(Membership::Join));
    room.invited = room.invited.saturating_add_signed(change(Membership::Invite));
    let user_id = user::id_of(w, target)?;
    if change(Membership::Join) != 0 {
        member::count_server(w, num, server_of(&user_id), change(Membership::Join), at)?;
    }
    if !here.is_local(&user_id) {
        return Ok(None);
    }
    set_mine(w, num, target, before, after, at)?;
    room.status = match member::server(w, num, here.server.as_str())? {
        Some(_) => Status::Resident,
        None => Status::Left,
    };
    Ok(Some(target))
}

/// Sets a local user's row for a room, after a change of membership that we hold the event of.
fn set_mine(
    w: &mut Write<'_>,
    room: RoomNum,
    user: UserNum,
    before: Option<Membership>,
    after: Option<(Membership, EventNum)>,
    at: Position,
) -> Result<()> {
    let old = user_room::mine(w, user, room)?;
    let Some((membership, event)) = after else {
        return user_room::remove_mine(w, user, room);
    };
    let was_joined = before == Some(Membership::Join);
    let stays = before == Some(membership);
    let left_at = match membership == Membership::Join || !was_joined {
        true => old.and_then(|old| old.left_at),
        false => Some(at),
    };
    let mine = Mine {
        membership,
        // A changed display name is a new event in the timeline, not a new membership.
        since: old.filter(|_| stays).map_or(at, |old| old.since),
        event: Some(event),
        forgotten: false,
        outside: false,
        before: if stays { old.and_then(|old| old.before) } else { before },
        left_at,
    };
    user_room::set_stripped(w, user, room, None)?;
    if membership != Membership::Join {
        crate::store::tables::room::unread::clear(w, user, room)?;
    }
    user_room::set_mine(w, user, room, &mine)
}

pub fn add_local_joined(get: &impl Get, room: RoomNum, users: &mut Vec<UserNum>) -> Result<()> {
    for user in local_joined(get, room)? {
        if !users.contains(&user) {
            users.push(user);
        }
    }
    Ok(())
}
