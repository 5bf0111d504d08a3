//! The users that restricted join rules let in, and the local user that may authorise their join ("Restricted rooms").

use std::ops::ControlFlow;

use ruma::{OwnedUserId, UserId};

use super::RoomRef;
use crate::matrix::auth::{JoinRule, Named, State as _};
use crate::matrix::json as text;
use crate::room::error::{Error, Result};
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{self, member};
use crate::store::tables::user;
use crate::store::{Get, Read, RoomNum, UserNum};

/// Rooms that a restricted room lets people in from, looked at for one join at most.
const ALLOW_MAX: usize = 100;

/// The user of this server that authorises a join to a restricted room; `None` where none is needed.
pub fn authorising_user(read: &Read, room: &RoomRef, user: &UserId) -> Result<Option<OwnedUserId>> {
    let view = room.view(read);
    let rule = view.join_rule()?;
    let restricted = (rule == Some(JoinRule::Restricted) && room.version.restricted)
        || (rule == Some(JoinRule::KnockRestricted) && room.version.knock_restricted);
    let inside = view
        .member(user)?
        .is_some_and(|(membership, _)| matches!(membership, Membership::Join | Membership::Invite | Membership::Ban));
    if !restricted || inside {
        return Ok(None);
    }
    match meets_join_condition(read, room, user)? {
        Some(true) => {}
        Some(false) => {
            return Err(Error::forbidden(
                "the user is in none of the rooms that the join rules allow (m.room.join_rules)",
            ));
        }
        None => {
            let why =
                "this server is not in all the rooms of the join rules, so it cannot check the user's membership there";
            return Err(Error::bad("M_UNABLE_TO_AUTHORISE_JOIN", why));
        }
    }
    match who_may_invite(read, room)? {
        Some(by) => Ok(Some(by)),
        None => Err(Error::bad(
            "M_UNABLE_TO_GRANT_JOIN",
            "no local user may invite, so this server cannot authorise the join",
        )),
    }
}

/// Whether a user is in one of the rooms that the join rules of a restricted room name; `None` when the user is in none
/// of the rooms we know, and the rules name others.
pub(super) fn meets_join_condition(read: &impl Get, room: &RoomRef, user: &UserId) -> Result<Option<bool>> {
    let user = user::num(read, user.as_str())?;
    let mut known_all = true;
    for room_id in allowed_rooms(read, room)? {
        // For a room without members here any more we know no present members.
        let other = match room::num(read, &room_id)? {
            Some(other) if room::get_of(read, other)?.status == room::Status::Resident => other,
            _ => {
                known_all = false;
                continue;
            }
        };
        if let Some(user) = user
            && member::is_joined(read, other, user)?
        {
            return Ok(Some(true));
        }
    }
    Ok(known_all.then_some(false))
}

/// The rooms that a restricted room lets people in from, as its join rules name them. At most [`ALLOW_MAX`].
pub fn allowed_rooms(read: &impl Get, room: &RoomRef) -> crate::store::Result<Vec<String>> {
    let Some(rules) = room.view(read).event("m.room.join_rules", "")? else { return Ok(Vec::new()) };
    let allow = text::read::get(rules.content().as_bytes(), "allow").filter(|list| list.first() == Some(&b'['));
    let conditions = text::read::items(allow.unwrap_or(b"[]")).take(ALLOW_MAX);
    let of_members = conditions.filter(|one| {
        one.first() == Some(&b'{') && text::read::get_text(one, "type").as_deref() == Some("m.room_membership")
    });
    Ok(of_members.filter_map(|one| text::read::get_text(one, "room_id").map(|id| id.into_owned())).collect())
}

/// A joined user of this server who may invite. Bounded by the users of this server.
pub(super) fn who_may_invite(read: &impl Get, room: &RoomRef) -> Result<Option<OwnedUserId>> {
    let local: Vec<UserNum> = local_joined(read, room.num)?;
    let mut ids = Vec::with_capacity(local.len());
    for num in local {
        ids.extend(OwnedUserId::try_from(user::id_of(read, num)?));
    }
    let found = room
        .view(read)
        .with_powers(|powers| ids.into_iter().find(|id| powers.user(id) >= powers.named(Named::Invite)))?;
    Ok(found.flatten())
}

/// The joined users of this server. Bounded by its accounts.
pub fn local_joined(get: &impl Get, room: RoomNum) -> crate::store::Result<Vec<UserNum>> {
    let mut joined = Vec::new();
    member::list_local(get, room, &mut |user, membership| {
        if membership == Membership::Join {
            joined.push(user);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(joined)
}
