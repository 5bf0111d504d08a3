//! Requests of another server: which of our rooms it may ask about, and which events it is given whole.
//!
//! For a room without members here any more we do not answer; a room's ACL and its membership decide the rest. Every
//! question is a handful of lookups.

use std::ops::ControlFlow;

use ruma::{RoomId, ServerName};

use super::{RoomRef, StateView, known};
use crate::matrix::Event;
use crate::matrix::acl::Acl;
use crate::matrix::auth::Membership as Closest;
use crate::matrix::visibility::{self, History};
use crate::room::error::{Error, Result};
use crate::store::tables::room::event_row::{Membership, Row};
use crate::store::tables::room::member;
use crate::store::tables::user;
use crate::store::{Get, RoomNum};

/// People invited to a room whose servers may ask how large it is; more are not looked at.
const INVITED_LOOKED_AT_MAX: usize = 1000;

/// A room we are in whose ACL lets the server take part.
pub(in crate::room) fn for_server(get: &impl Get, origin: &ServerName, room_id: &RoomId) -> Result<RoomRef> {
    let room = known(get, room_id.as_str())?;
    if !room.is_resident() {
        return Err(Error::NotFound);
    }
    match acl_allows(get, &room, origin)? {
        true => Ok(room),
        false => Err(Error::forbidden(format!("the room's server ACL (m.room.server_acl) denies {origin}"))),
    }
}

/// The same for requests that only servers in the room may make.
pub(in crate::room) fn for_member_server(get: &impl Get, origin: &ServerName, room_id: &RoomId) -> Result<RoomRef> {
    let room = for_server(get, origin, room_id)?;
    match member::server(get, room.num, origin.as_str())? {
        Some(_) => Ok(room),
        None => Err(Error::forbidden(format!("{origin} is not in this room"))),
    }
}

/// Refuses a server that the ACL of a room we are in denies. Of other rooms we know no ACL.
pub(in crate::room) fn check_acl(get: &impl Get, origin: &ServerName, room_id: &RoomId) -> Result<()> {
    match for_server(get, origin, room_id) {
        Ok(_) | Err(Error::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the room's present ACL lets a server take part.
pub(in crate::room) fn acl_allows(get: &impl Get, room: &RoomRef, server: &ServerName) -> Result<bool> {
    let acl = room.view(get).event("m.room.server_acl", "")?;
    Ok(acl.is_none_or(|acl| Acl::parse(acl.content()).allows(server.as_str())))
}

/// Whether a server that is in the room may be given an event whole; if not, it gets the redacted event. The events of
/// users who asked for erasure are only for servers that were in the room.
///
/// Whether it had a member in the room then is read from how long it has been in the room without a break.
pub(in crate::room) fn may_see_event(get: &impl Get, room: &RoomRef, row: &Row, origin: &ServerName) -> Result<bool> {
    let view = StateView::tree(get, room.num, room.version, row.before.or(room.row.state));
    let content = view.event("m.room.history_visibility", "")?;
    let history = History::of_content(content.as_ref().map(Event::content));
    let since = member::server(get, room.num, origin.as_str())?.map(|(_, since)| since.0 as i64);
    let was_in = since.zip(row.order).is_some_and(|(since, order)| since <= order);
    let own = user::id_of(get, row.sender)?.split_once(':').is_some_and(|(_, server)| server == origin.as_str());
    let closest = if was_in { Closest::Join } else { Closest::Leave };
    let is_erased = !was_in && user::is_erased(get, row.sender)?;
    Ok(own || (!is_erased && visibility::server_may_see(history, closest)))
}

/// Whether a user of the server is in the room or has been invited to it.
pub(in crate::room) fn is_expected(get: &impl Get, room: RoomNum, origin: &ServerName) -> Result<bool> {
    if member::server(get, room, origin.as_str())?.is_some() {
        return Ok(true);
    }
    let mut invited = Vec::new();
    member::list(get, room, Membership::Invite, None, &mut |user, _| {
        invited.push(user);
        Ok(if invited.len() < INVITED_LOOKED_AT_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    for user in invited {
        if user::id_of(get, user)?.split_once(':').is_some_and(|(_, server)| server == origin.as_str()) {
            return Ok(true);
        }
    }
    Ok(false)
}
