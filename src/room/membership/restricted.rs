//! Joins of a restricted room that this server is in, when no local user may authorise the join: another server's user
//! does.
//!
//! Server-server API, "Restricted rooms". The answer of `send_join` is read only as far as our event with the other
//! server's signature; the room itself is here already. Bounded: a few servers, one window of an answer, and a time
//! limit.

use std::time::Duration;

use http::Method;
use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::{Map, Value};

use crate::matrix::auth::Named;
use crate::matrix::{Event, Reject, json as text};
use crate::remote::json_stream::{Events, Item, Limits, Malformed};
use crate::remote::{Failed, StreamLimits, encode};
use crate::room::error::{Error, Result};
use crate::room::handshake;
use crate::room::handshake::{Template, Verb, is_no, of_all};
use crate::room::receive;
use crate::room::send::member::{content_of, with_profile};
use crate::room::state::servers;
use crate::room::state::{RoomRef, known};
use crate::room::{Joining, Rooms};
use crate::store::Read;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::member;
use crate::store::tables::user;

/// The most servers asked, one after the other.
const SERVERS_MAX: usize = 5;
/// The most users of the power levels that are looked at.
const NAMED_MAX: usize = 500;
/// The time limit of each server, its whole answer included: a user is waiting.
const PATIENCE: Duration = Duration::from_secs(90);
/// The answer holds the whole room, which is not kept.
const BODY_BYTES_MAX: u64 = 256 << 20;
/// The largest item of the answer, and a frame.
const WINDOW_BYTES: u64 = (256 + 64) * 1024;

/// Joins through a server that may authorise the user. `why`: the error that kept us from joining; returned when no
/// server can.
pub async fn join_restricted(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    joining: Joining,
    why: Error,
) -> Result<()> {
    let (id, via) = (room_id.to_owned(), joining.via.clone());
    let servers = rooms.reading(move |rooms, read| helpers(rooms, read, &known(read, id.as_str())?, via)).await?;
    let mut refusals: Vec<(OwnedServerName, Failed)> = Vec::new();
    for server in servers {
        // A server that the client named has said no: others that it did not name are not asked.
        let is_no = |(by, failed): &(OwnedServerName, Failed)| joining.via.contains(by) && is_no(failed);
        if !joining.via.contains(&server) && refusals.iter().any(is_no) {
            break;
        }
        match join_through(rooms, &server, user, room_id, &joining).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::info!(%server, %room_id, %error, "the server did not authorise the join of {user}");
                if let Error::Remote(failed) = error
                    && failed.is_refusal()
                {
                    refusals.push((server, failed));
                }
            }
        }
    }
    Err(of_all(refusals).map_or(why, Error::Remote))
}

async fn join_through(
    rooms: &Rooms,
    server: &ServerName,
    user: &UserId,
    room_id: &RoomId,
    joining: &Joining,
) -> Result<()> {
    let template = handshake::ask_template(rooms, server, Verb::Join, room_id, user).await?;
    let (who, content) = (user.to_owned(), content(&template, joining));
    let content = rooms.reading(move |_, read| with_profile(read, &who, content)).await?;
    let event = handshake::sign_template(rooms, &template, content)?;
    let signing = have_signed(rooms, server, &template, &event);
    let signed = rooms.0.parts.clock.timeout(PATIENCE, signing).await.unwrap_or(Err(Failed::Timeout.into()))?;
    receive::accept_signed(rooms, server, signed).await
}

/// Submits our event; returns it with the other server's signature.
async fn have_signed(rooms: &Rooms, server: &ServerName, template: &Template, event: &Event) -> Result<Event> {
    let (room, id) = (encode(event.room_id().as_str()), encode(event.id().as_str()));
    let target = format!("/_matrix/federation/v2/send_join/{room}/{id}?omit_members=true");
    let _window = rooms.0.parts.budget.account("outbound").take(WINDOW_BYTES).await?;
    let (content, pace) = (Some(event.to_federation().to_vec()), StreamLimits::patient(BODY_BYTES_MAX));
    let mut body = rooms.0.parts.remote.stream(server, Method::PUT, &target, content, pace).await?;
    let mut events = Events::new(Limits::events(BODY_BYTES_MAX));
    let mut signed = None;
    while signed.is_none()
        && let Some(frame) = body.next().await?
    {
        let found = events.feed::<Malformed>(&frame, &mut |item| {
            if let Item::Value { key: "event", raw } = item {
                signed = Some(raw.to_vec());
            }
            Ok(())
        });
        found.map_err(|malformed| Failed::BadAnswer(malformed.to_string()))?;
    }
    let signed = signed.ok_or_else(|| Failed::BadAnswer("the server did not return the event".to_owned()))?;
    let signed = Event::from_wire(template.version, &signed)?;
    match signed.id() == event.id() && signed.is_intact() {
        true => Ok(signed),
        false => Err(Reject::shape("the server returned another event").into()),
    }
}

/// The user's own fields, and the authorising user.
fn content(template: &Template, joining: &Joining) -> Map<String, Value> {
    let mut content = joining.content_extra.clone();
    content.extend(content_of(Membership::Join, joining.reason.clone()));
    content.remove("join_authorised_via_users_server");
    if let Some(by) = template.authorised_via() {
        content.insert("join_authorised_via_users_server".into(), by.into());
    }
    content
}

/// Servers to ask, best first: those the user names, those of users who may invite, then large ones.
fn helpers(rooms: &Rooms, read: &Read, room: &RoomRef, via: Vec<OwnedServerName>) -> Result<Vec<OwnedServerName>> {
    let mut servers = via;
    servers.extend(of_those_who_may_invite(read, room)?);
    servers.extend(servers::servers(read, room.num, rooms.server())?);
    let mut seen = std::collections::HashSet::new();
    servers.retain(|server| server != rooms.server() && seen.insert(server.clone()));
    servers.truncate(SERVERS_MAX);
    Ok(servers)
}

fn of_those_who_may_invite(read: &Read, room: &RoomRef) -> Result<Vec<OwnedServerName>> {
    let view = room.view(read);
    let mut people: Vec<OwnedUserId> = Vec::new();
    people.extend(view.event("m.room.create", "")?.map(|create| create.sender().to_owned()));
    if let Some(levels) = view.event("m.room.power_levels", "")? {
        let users = text::read::get(levels.content().as_bytes(), "users").filter(|users| users.first() == Some(&b'{'));
        let named = text::read::members(users.unwrap_or(b"{}")).take(NAMED_MAX);
        people.extend(named.filter_map(|(id, _)| OwnedUserId::try_from(std::str::from_utf8(id).ok()?).ok()));
    }
    let may = view.with_powers(|powers| {
        people.retain(|id| powers.user(id) >= powers.named(Named::Invite));
    })?;
    if may.is_none() {
        return Ok(Vec::new());
    }
    let mut servers = Vec::new();
    for id in people {
        if let Some(num) = user::num(read, id.as_str())?
            && member::is_joined(read, room.num, num)?
        {
            servers.push(id.server_name().to_owned());
        }
    }
    Ok(servers)
}
