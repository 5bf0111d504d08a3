//! Membership changes through us: `make_join`, `make_leave`, `make_knock`, and the events that come back.
//!
//! Server-server API, "Joining Rooms", "Leaving Rooms", "Knocking upon a room". A template is drawn up from the room's
//! present state. The signed event that comes back takes the path of all events from other servers (`receive/`) and is
//! sent to all servers in the room. `state.rs` writes the long answer to a join.

use ruma::{EventId, OwnedEventId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::long_answer::Served;
use super::state::JoinAnswer;
use crate::matrix::{Event, Reject, RoomVersion, sign};
use crate::remote::Deed;
use crate::room::Rooms;
use crate::room::blocked;
use crate::room::error::{Error, Result};
use crate::room::handshake::Verb;
use crate::room::receive;
use crate::room::receive::fetch;
use crate::room::send;
use crate::room::send::New;
use crate::room::serve::slots;
use crate::room::state;
use crate::room::state::join_conditions::authorising_user;
use crate::room::state::server_access;
use crate::room::state::stripped::shown_state;
use crate::room::state::{RoomRef, known_num};
use crate::store::tables::room::event;
use crate::store::{EventNum, Read};

/// A template for another server.
pub struct Drawn {
    pub version: &'static RoomVersion,
    pub event: Value,
}

/// A membership event another server sent us, with the room and event id of its request.
pub struct Submitted {
    pub origin: OwnedServerName,
    pub room: ruma::OwnedRoomId,
    pub id: OwnedEventId,
    pub event: Box<RawValue>,
}

impl Rooms {
    /// Draws up a membership event for a user of the asking server.
    pub async fn draw_up(&self, origin: &ServerName, room_id: &RoomId, user: &UserId, verb: Verb) -> Result<Drawn> {
        let (origin, room_id, user) = (origin.to_owned(), room_id.to_owned(), user.to_owned());
        self.reading(move |rooms, read| {
            if user.server_name() != origin {
                return Err(Error::forbidden("the user belongs to another server"));
            }
            let room = server_access::for_server(read, &origin, &room_id)?;
            check_named(rooms, read, &user, &room_id, verb)?;
            blocked::check_entry(read, room_id.as_str(), Some(verb.as_str()))?;
            let mut content = Map::new();
            content.insert("membership".into(), verb.as_str().into());
            if verb == Verb::Join
                && let Some(by) = authorising_user(read, &room, &user)?
            {
                content.insert("join_authorised_via_users_server".into(), by.as_str().into());
            }
            let new = New::state("m.room.member", user.as_str(), &user, Value::Object(content));
            // Judged as if it were ours; the template itself has no signature.
            send::build(rooms, read, &room, new.clone()).map_err(refused)?;
            let (draft, _) = send::draft(rooms, read, &room, new, &room.view(read))?;
            Ok(Drawn { version: room.version, event: draft.template(room.version) })
        })
        .await
    }

    /// Accepts a signed join and answers with the room. The answer's memory is reserved first: a join that is in the
    /// room without its sender knowing would be half done. A join drawn up by another server may follow events we lack;
    /// no slot is held while other servers are asked for those.
    pub async fn take_join(&self, submitted: Submitted, how: JoinAnswer) -> Result<Served> {
        let origin = submitted.origin.clone();
        let event = read_member_event(self, submitted, Verb::Join).await?;
        fetch::fetch_signing_keys(self, &event).await?;
        let (turn, num) = match has_all_behind(self, &event).await? {
            true => {
                let turn = slots::acquire(self, &origin).await?;
                (turn, receive_member_event(self, &origin, event.clone()).await?)
            }
            false => {
                let num = receive_member_event(self, &origin, event.clone()).await?;
                (slots::acquire(self, &origin).await?, num)
            }
        };
        self.reading(move |rooms, read| {
            let row = event::row_of(read, num)?;
            let room = known_num(read, row.room)?;
            super::state::answer_join(rooms, read, &room, turn, (num, &event), how)
        })
        .await
    }

    pub async fn take_leave(&self, submitted: Submitted) -> Result<()> {
        let origin = submitted.origin.clone();
        let event = read_member_event(self, submitted, Verb::Leave).await?;
        receive_member_event(self, &origin, event).await.map(drop)
    }

    /// Accepts a signed knock and answers the stripped state the knocking user may see.
    pub async fn take_knock(&self, submitted: Submitted) -> Result<Vec<Box<RawValue>>> {
        let origin = submitted.origin.clone();
        let event = read_member_event(self, submitted, Verb::Knock).await?;
        let num = receive_member_event(self, &origin, event).await?;
        self.reading(move |_, read| {
            let room = known_num(read, event::row_of(read, num)?.room)?;
            shown_state(read, &room)
        })
        .await
    }
}

/// Checks that a membership event is the one its server was to send.
async fn read_member_event(rooms: &Rooms, submitted: Submitted, verb: Verb) -> Result<Event> {
    let Submitted { origin, room: room_id, id, event: raw } = submitted;
    rooms
        .reading(move |rooms, read| {
            let room = server_access::for_server(read, &origin, &room_id)?;
            blocked::check_entry(read, room_id.as_str(), Some(verb.as_str()))?;
            let event = Event::from_wire(room.version, raw.get().as_bytes())?;
            check_is_asked_for(&event, &origin, &room_id, &id, verb)?;
            check_named(rooms, read, event.sender(), &room_id, verb)?;
            countersign(rooms, read, &room, event)
        })
        .await
}

/// Nobody comes in whom a policy list names, nor into a room that one names; leaving is always free.
fn check_named(rooms: &Rooms, read: &Read, user: &UserId, room_id: &RoomId, verb: Verb) -> Result<()> {
    if verb == Verb::Leave {
        return Ok(());
    }
    let barred = rooms.0.parts.remote.barred();
    Error::barred(barred.user(read, user, Deed::Join)?)?;
    Error::barred(barred.room(read, room_id.as_str(), Deed::Join)?)
}

async fn receive_member_event(rooms: &Rooms, origin: &ServerName, event: Event) -> Result<EventNum> {
    receive::accept(rooms, origin, event).await.map_err(refused)
}

/// Whether all events it cites are here, and its `prev_events` are placed, so that it can be judged without asking
/// another server.
async fn has_all_behind(rooms: &Rooms, event: &Event) -> Result<bool> {
    let event = event.clone();
    rooms
        .reading(move |_, read| {
            for prev in event.prev_events() {
                if !state::event::stored(read, prev.as_str())?.is_some_and(|(_, row)| state::event::is_placed(&row)) {
                    return Ok(false);
                }
            }
            for cited in event.auth_events() {
                if event::num(read, cited.as_str())?.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await
}

/// Adds our signature to a join of a restricted room that one of our users authorises, when the conditions hold.
fn countersign(rooms: &Rooms, read: &Read, room: &RoomRef, event: Event) -> Result<Event> {
    let Some(by) = event.content_text("join_authorised_via_users_server") else { return Ok(event) };
    let by =
        OwnedUserId::try_from(&*by).map_err(|_| Reject::shape("join_authorised_via_users_server is not a user ID"))?;
    if !room.version.restricted || by.server_name() != rooms.server() {
        return Ok(event);
    }
    // A member or invited user needs no authorising user; for others the conditions are checked again.
    authorising_user(read, room, event.sender())?;
    Ok(sign::event::add_signature(&event, &rooms.0.parts.server, &rooms.0.parts.key)?)
}

/// A rejected event is reported as 403, not as our own error.
fn refused(error: Error) -> Error {
    match error {
        Error::Reject(reject) => Error::Forbidden(reject.to_string()),
        other => other,
    }
}

fn check_is_asked_for(event: &Event, origin: &ServerName, room_id: &RoomId, id: &EventId, verb: Verb) -> Result<()> {
    let bad = |why: &str| Err(Error::bad("M_INVALID_PARAM", why));
    if event.id() != id {
        return bad("the event's ID differs from the one in the path");
    }
    if event.room_id() != room_id {
        return bad("the event belongs to another room");
    }
    if event.kind() != "m.room.member" || event.membership().as_deref() != Some(verb.as_str()) {
        return bad("the event is not the change of membership of this endpoint");
    }
    if event.state_key() != Some(event.sender().as_str()) {
        return bad("the state key of the event differs from its sender");
    }
    match event.sender().server_name() == origin {
        true => Ok(()),
        false => Err(Error::forbidden("the event's sender belongs to another server")),
    }
}
