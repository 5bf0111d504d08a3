//! The users who share rooms, and notices to them about changed devices or keys.
//!
//! Server-server API, "Device Management". The memberships are read from the store; nothing here changes a room.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ruma::{OwnedRoomId, ServerName, UserId};

use super::lookup;
use super::{Error, Users};
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::user_room;
use crate::store::tables::room::{self, event, member, state_tree, timeline};
use crate::store::tables::user;
use crate::store::tables::user::to_device::Circle;
use crate::store::{self, Get, Position, RoomNum, StateKeyNum, UserNum};

impl Users {
    /// The rooms a local user is joined to, invited to, or knocking at. Bounded by the rooms of one user.
    pub async fn rooms_to_leave(&self, user_id: &UserId) -> Result<Vec<OwnedRoomId>, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = lookup::local(get, &user_id)?;
            let mut rooms = Vec::new();
            user_room::list_mine(get, num, None, &mut |room, mine| {
                if !matches!(mine.membership, Membership::Leave | Membership::Ban) {
                    rooms.push(room);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let mut ids = Vec::new();
            for room in rooms {
                ids.extend(OwnedRoomId::try_from(room::get_of(get, room)?.id).ok());
            }
            Ok(ids)
        })
        .await
    }
}

/// The rooms a local user is joined to. Bounded by the joins of one user; four bytes each.
pub(super) fn rooms(get: &impl Get, user: UserNum) -> Result<Vec<RoomNum>, Error> {
    let mut rooms = Vec::new();
    user_room::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Join {
            rooms.push(room);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rooms)
}

/// The local users who share a room with a local user, that user included. Bounded by the local users.
pub(super) fn locals(get: &impl Get, user: UserNum) -> Result<Vec<UserNum>, Error> {
    let mut locals = BTreeSet::from([user]);
    for room in rooms(get, user)? {
        member::list_local(get, room, &mut |other, membership| {
            if membership == Membership::Join {
                locals.insert(other);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(locals.into_iter().collect())
}

/// The local users who share a room with a remote user.
pub(super) fn locals_of_remote(get: &impl Get, remote: UserNum) -> Result<Vec<UserNum>, Error> {
    let mut accounts = Vec::new();
    user::accounts_after(get, None, &mut |num, _| {
        accounts.push(num);
        Ok(ControlFlow::Continue(()))
    })?;
    let mut sharing = Vec::new();
    for num in accounts {
        if shares_room(get, num, remote)? {
            sharing.push(num);
        }
    }
    Ok(sharing)
}

/// Whether a local user is joined to a room together with another user.
pub(super) fn shares_room(get: &impl Get, user: UserNum, other: UserNum) -> Result<bool, Error> {
    let mut shares = false;
    user_room::list_mine(get, user, None, &mut |room, mine| {
        shares = mine.membership == Membership::Join && member::is_joined(get, room, other)?;
        Ok(if shares { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(shares)
}

/// Renames of a remote user looked at, back to the event by which they came.
const RENAMES_MAX: usize = 16;

/// Whether a local user shares a room with a remote user in which both this server and that user have been, without a
/// break, since a position. When in doubt, no. Bounded by the rooms of the local user.
pub(super) fn share_since(
    get: &impl Get,
    here: &ServerName,
    user: UserNum,
    other: UserNum,
    since: Position,
) -> Result<bool, Error> {
    let mut share = false;
    user_room::list_mine(get, user, None, &mut |room, mine| {
        share = mine.membership == Membership::Join
            && member::server(get, room, here.as_str())?.is_some_and(|(_, from)| from <= since)
            && joined_since(get, room, other, since)?;
        Ok(if share { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(share)
}

/// Whether a user has been joined without a break since a position: each event after it follows on one that joins them.
fn joined_since(get: &impl Get, room: RoomNum, other: UserNum, since: Position) -> store::Result<bool> {
    let Some((Membership::Join, mut num)) = member::get(get, room, other)? else { return Ok(false) };
    for _ in 0..RENAMES_MAX {
        let row = event::row_of(get, num)?;
        if row.member.is_none_or(|(membership, _)| membership != Membership::Join) {
            return Ok(false);
        }
        match row.order {
            Some(order) if order <= since.0 as i64 => return Ok(true),
            Some(_) => {}
            // It came with the state in which the room was joined, or with one that was fetched over a gap: that is
            // without a break only if it was in force at the position already.
            None => {
                let Some((_, then)) = timeline::state_at(get, room, since)? else { return Ok(false) };
                return Ok(state_tree::get(get, then, StateKeyNum::of_member(other))? == Some(num));
            }
        }
        let Some(root) = row.before else { return Ok(false) };
        match state_tree::get(get, root, StateKeyNum::of_member(other))? {
            Some(before) => num = before,
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// How near a remote user is to a local user. Bounded by the rooms of the local user.
pub(super) fn of_sender(
    get: &impl Get,
    user: UserNum,
    server: &ServerName,
    sender: Option<UserNum>,
) -> Result<Circle, Error> {
    let mut circle = Circle::Stranger;
    user_room::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Join && member::server(get, room, server.as_str())?.is_some() {
            let is_there = sender.map_or(Ok(false), |sender| member::is_joined(get, room, sender))?;
            circle = if is_there { Circle::Near } else { Circle::Acquainted };
        }
        Ok(if circle == Circle::Near { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(circle)
}
