//! Another server at the door: which of our rooms it may ask about, and which events it is given whole.
//!
//! A room we are not in any more is not ours to speak for; a room's ACL and its membership decide the rest. Every
//! question is a handful of lookups.

use std::ops::ControlFlow;

use ruma::{EventId, RoomId, ServerName};

use super::{Known, View, known, load_row};
use crate::matrix::Event;
use crate::matrix::acl::Acl;
use crate::matrix::auth::{JoinRule, Membership as Closest, State as _};
use crate::matrix::visibility::{self, History};
use crate::room::{Error, Result, Rooms};
use crate::store::tables::room::event::{self, Kind, Membership, Row};
use crate::store::tables::room::{self, member, state_tree};
use crate::store::tables::user;
use crate::store::{Get, RoomNum};

/// What somebody outside is shown of a room.
pub(in crate::room) const SHOWN: [Kind; 8] = [
    Kind::CREATE,
    Kind::JOIN_RULES,
    Kind::NAME,
    Kind::CANONICAL_ALIAS,
    Kind::AVATAR,
    Kind::TOPIC,
    Kind::ENCRYPTION,
    Kind::TOMBSTONE,
];
/// People invited to a room whose servers may ask how large it is; more are not looked at.
const INVITED_LOOKED_AT_MAX: usize = 1000;
/// State entries counted at once.
const PAGE: usize = 512;

/// A room we are in whose ACL lets the server take part.
pub(in crate::room) fn enter(get: &impl Get, origin: &ServerName, room_id: &RoomId) -> Result<Known> {
    let room = known(get, room_id.as_str())?;
    if !room.is_resident() {
        return Err(Error::NotFound);
    }
    match acl_allows(get, &room, origin)? {
        true => Ok(room),
        false => Err(Error::forbidden(format!("{origin} is denied this room by its access control list"))),
    }
}

/// The same for what only servers in the room may ask.
pub(in crate::room) fn enter_as_member(get: &impl Get, origin: &ServerName, room_id: &RoomId) -> Result<Known> {
    let room = enter(get, origin, room_id)?;
    match member::server(get, room.num, origin.as_str())? {
        Some(_) => Ok(room),
        None => Err(Error::forbidden(format!("{origin} is not in this room"))),
    }
}

/// Refuses a server that the ACL of a room we are in denies it. Of other rooms we know no ACL.
pub(in crate::room) fn check_acl(get: &impl Get, origin: &ServerName, room_id: &RoomId) -> Result<()> {
    match enter(get, origin, room_id) {
        Ok(_) | Err(Error::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the room's present ACL lets a server take part.
pub(in crate::room) fn acl_allows(get: &impl Get, room: &Known, server: &ServerName) -> Result<bool> {
    let acl = room.view(get).event("m.room.server_acl", "")?;
    Ok(acl.is_none_or(|acl| Acl::parse(acl.content()).allows(server.as_str())))
}

/// Whether a server that is in the room may be given an event whole; if not, it gets what a redaction would leave.
///
/// That it had somebody in the room then is read from how long it has been in the room without a break.
pub(in crate::room) fn may_have(get: &impl Get, room: &Known, row: &Row, origin: &ServerName) -> Result<bool> {
    let view = View::tree(get, room.num, room.version, row.before.or(room.row.state));
    let content = view.event("m.room.history_visibility", "")?;
    let history = History::of_content(content.as_ref().map(Event::content));
    let since = member::server(get, room.num, origin.as_str())?.map(|(_, since)| since.0 as i64);
    let was_in = since.zip(row.order).is_some_and(|(since, order)| since <= order);
    let own = user::id_of(get, row.sender)?.split_once(':').is_some_and(|(_, server)| server == origin.as_str());
    let closest = if was_in { Closest::Join } else { Closest::Leave };
    Ok(own || visibility::server_may_see(history, closest))
}

/// Whether somebody of the server is in the room or has been invited to it.
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

impl Rooms {
    /// The version of a room that a server may ask about.
    pub async fn version_for(&self, origin: &ServerName, room_id: &RoomId) -> Result<&'static str> {
        let (origin, room_id) = (origin.to_owned(), room_id.to_owned());
        self.reading(move |_, read| Ok(enter(read, &origin, &room_id)?.version.id)).await
    }

    /// One event for a server in its room: canonical JSON, in full or as a redaction would leave it.
    pub async fn event_for(&self, origin: &ServerName, id: &EventId) -> Result<Vec<u8>> {
        let (origin, id) = (origin.to_owned(), id.to_owned());
        self.reading(move |_, read| {
            let num = event::num(read, id.as_str())?.ok_or(Error::NotFound)?;
            let row = event::row_of(read, num)?;
            let room_id = room::get_of(read, row.room)?.id;
            let room_id = <&RoomId>::try_from(room_id.as_str()).map_err(|_| Error::NotFound)?;
            // Whoever is not in the room does not learn that we know the event.
            let room = enter_as_member(read, &origin, room_id).map_err(|_| Error::NotFound)?;
            if row.flags.rejected {
                return Err(Error::NotFound);
            }
            let event = load_row(read, room.version, &row)?;
            match may_have(read, &room, &row, &origin)? {
                true => Ok(event.into_bytes()),
                false => Ok(event.redacted().into_bytes()),
            }
        })
        .await
    }

    /// How many state events a room has, for a server that may be about to join it. One pass over the state's tree, a page
    /// at a time.
    pub async fn state_events_for(&self, origin: &ServerName, room_id: &RoomId) -> Result<u64> {
        let (origin, room_id) = (origin.to_owned(), room_id.to_owned());
        self.reading(move |_, read| {
            let room = enter(read, &origin, &room_id)?;
            let rule = room.view(read).join_rule()?;
            let open = matches!(
                rule,
                Some(JoinRule::Public | JoinRule::Knock | JoinRule::Restricted | JoinRule::KnockRestricted)
            );
            if !open && !is_expected(read, room.num, &origin)? {
                return Err(Error::NotFound);
            }
            let Some(root) = room.row.state else { return Ok(0) };
            let (mut count, mut after, mut page) = (0, None, Vec::with_capacity(PAGE));
            loop {
                page.clear();
                let ended = state_tree::page(read, root, after, PAGE, &mut page)?;
                count += page.len() as u64;
                after = page.last().map(|entry| entry.key).or(after);
                if ended {
                    return Ok(count);
                }
            }
        })
        .await
    }
}
