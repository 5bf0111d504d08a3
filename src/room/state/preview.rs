//! Who is shown what a room is, without being in it.
//!
//! Client-server API, "Spaces" and "Room summary": whoever is in the room, may join it or knock at it, and everybody where its
//! history is readable by the world. Each question is a handful of lookups.

use ruma::{ServerName, UserId};

use super::description::Description;
use super::join_conditions::{allowed_rooms, meets_join_condition};
use super::server_access::is_expected;
use super::{RoomRef, known};
use crate::matrix::Event;
use crate::matrix::auth::{JoinRule, State as _};
use crate::matrix::visibility::History;
use crate::room::error::Result;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{self, member, user_room};
use crate::store::tables::user;
use crate::store::{Get, RoomNum};

/// Who asks about a room.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// A user of this server.
    User(&'a UserId),
    /// Another server, which asks for any of its users.
    Server(&'a ServerName),
    /// Somebody without an account.
    Nobody,
}

/// Whether a room we are in is shown to whoever asks.
pub fn is_shown(get: &impl Get, room: &RoomRef, asker: Asker<'_>) -> Result<bool> {
    let view = room.view(get);
    let rule = match view.join_rule() {
        Ok(rule) => rule,
        // Join rules nobody can read let nobody in.
        Err(crate::room::Error::Reject(_)) => None,
        Err(failed) => return Err(failed),
    };
    let is_open = match rule {
        Some(JoinRule::Public) => true,
        Some(JoinRule::Knock) => room.version.knock,
        Some(JoinRule::KnockRestricted) => room.version.knock_restricted,
        _ => false,
    };
    let history = view.event("m.room.history_visibility", "")?;
    if is_open || History::of_content(history.as_ref().map(Event::content)) == History::WorldReadable {
        return Ok(true);
    }
    let is_restricted = match rule {
        Some(JoinRule::Restricted) => room.version.restricted,
        _ => false,
    };
    match asker {
        Asker::User(user) => {
            let mine = view.member(user)?.map(|(membership, _)| membership);
            Ok(matches!(mine, Some(Membership::Join | Membership::Invite))
                || (is_restricted
                    && mine != Some(Membership::Ban)
                    && meets_join_condition(get, room, user)? == Some(true)))
        }
        Asker::Server(server) => {
            if is_expected(get, room.num, server)? {
                return Ok(true);
            }
            for allowed in if is_restricted { allowed_rooms(get, room)? } else { Vec::new() } {
                if let Some(num) = room::num(get, &allowed)?
                    && member::server(get, num, server.as_str())?.is_some()
                {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Asker::Nobody => Ok(false),
    }
}

/// Whether a room of which another server told this server is shown to whoever asks: it was told for all people here together.
pub fn is_told_shown(get: &impl Get, told: &Description, asker: Asker<'_>) -> Result<bool> {
    // Rooms have the join rule `invite` when none is set, but servers leave `public` out.
    if matches!(told.join_rule.as_deref(), None | Some("public" | "knock" | "knock_restricted")) || told.world_readable
    {
        return Ok(true);
    }
    let Asker::User(user) = asker else { return Ok(false) };
    if let Some(num) = user::num(get, user.as_str())? {
        for allowed in &told.allowed_room_ids {
            if let Some(room) = room::num(get, allowed)?
                && member::is_joined(get, room, num)?
            {
                return Ok(true);
            }
        }
    }
    let mine = membership(get, user, &told.room_id)?;
    Ok(matches!(mine, Some(Membership::Join | Membership::Invite)))
}

/// A local user's membership in a room, whether we are in it or not.
pub fn membership(get: &impl Get, user_id: &UserId, room_id: &str) -> Result<Option<Membership>> {
    let (Some(user), Some(room)) = (user::num(get, user_id.as_str())?, room::num(get, room_id)?) else {
        return Ok(None);
    };
    Ok(user_room::mine(get, user, room)?.map(|mine| mine.membership))
}

/// A room we are in; none when we are not, and others know more of it.
pub fn resident(get: &impl Get, room_id: &str) -> Result<Option<RoomRef>> {
    match known(get, room_id) {
        Ok(room) => Ok(Some(room).filter(RoomRef::is_resident)),
        Err(crate::room::Error::NotFound) => Ok(None),
        Err(failed) => Err(failed),
    }
}

/// The rooms in which both users are, behind `after`: at most `most` of them, and how many there are.
pub fn mutual_rooms(
    get: &impl Get,
    one: &UserId,
    other: &str,
    after: Option<RoomNum>,
    most: usize,
) -> Result<(Vec<RoomNum>, u64)> {
    let (mut found, mut count) = (Vec::new(), 0);
    let (Some(one), Some(other)) = (user::num(get, one.as_str())?, user::num(get, other)?) else {
        return Ok((found, count));
    };
    let mut joined = Vec::new();
    user_room::list_mine(get, one, None, &mut |room, mine| {
        if mine.membership == Membership::Join {
            joined.push(room);
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    for room in joined {
        if !member::is_joined(get, room, other)? {
            continue;
        }
        count += 1;
        if after.is_none_or(|after| room > after) && found.len() < most {
            found.push(room);
        }
    }
    Ok((found, count))
}
