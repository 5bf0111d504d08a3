//! Membership changes: `make_join`/`send_join`, `make_leave`/`send_leave`, `make_knock`/`send_knock`, `invite`.
//!
//! What can go wrong: 403 when the rules or the room's ACL say no, 404 for rooms we are not in, 400
//! `M_INCOMPATIBLE_ROOM_VERSION`, `M_UNABLE_TO_AUTHORISE_JOIN`, `M_UNABLE_TO_GRANT_JOIN`.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::{Error, Federation, auth, rates, send};
use crate::base::brief;
use crate::http::{ErrorResponse, Request, Response};
use crate::matrix::Event;
use crate::matrix::json::partial;
use crate::room::{Invitation, JoinAnswer, STRIPPED_EVENTS_MAX, Submitted, Verb};

/// Room versions a requesting server may name; each is a short word.
const VERSIONS_MAX: usize = 100;

/// `GET /make_join/{roomId}/{userId}`
pub async fn make_join(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    make(&federation, request, Verb::Join).await
}

/// `GET /make_leave/{roomId}/{userId}`
pub async fn make_leave(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    make(&federation, request, Verb::Leave).await
}

/// `GET /make_knock/{roomId}/{userId}`
pub async fn make_knock(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    make(&federation, request, Verb::Knock).await
}

async fn make(federation: &Federation, mut request: Request, verb: Verb) -> Result<Response, Error> {
    let origin = auth::origin(federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let user: OwnedUserId = request.param_as("user_id")?;
    let mut versions: Vec<String> = request.query_all("ver").take(VERSIONS_MAX).collect();
    if versions.is_empty() {
        versions.push("1".to_owned());
    }
    let known = federation.rooms.version_for(&origin, &room).await?;
    if verb != Verb::Leave && !versions.iter().any(|version| version == known) {
        let why = format!("The room has version {known}, which is not among the versions of the asking server");
        return Err(ErrorResponse::bad("M_INCOMPATIBLE_ROOM_VERSION", why).with("room_version", known).into());
    }
    let drawn = federation.rooms.draw_up(&origin, &room, &user, verb).await?;
    Ok(Response::json(&json!({ "room_version": drawn.version.id, "event": drawn.event })))
}

/// `PUT /v2/send_join/{roomId}/{eventId}`
pub async fn send_join_v2(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let omit_members = request.query_as::<bool>("omit_members")?.unwrap_or(false);
    let submitted = submitted(&federation, &mut request).await?;
    let how = JoinAnswer { omit_members, old_api: false };
    let served = federation.rooms.take_join(submitted, how).await?;
    Ok(Response::stream(served.grant, served.chunks))
}

/// `PUT /v1/send_join/{roomId}/{eventId}`
pub async fn send_join_v1(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let submitted = submitted(&federation, &mut request).await?;
    let how = JoinAnswer { omit_members: false, old_api: true };
    let served = federation.rooms.take_join(submitted, how).await?;
    Ok(Response::stream(served.grant, served.chunks))
}

/// `PUT /v2/send_leave/{roomId}/{eventId}`
pub async fn send_leave_v2(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let submitted = submitted(&federation, &mut request).await?;
    federation.rooms.take_leave(submitted).await?;
    Ok(Response::ok())
}

/// `PUT /v1/send_leave/{roomId}/{eventId}`
pub async fn send_leave_v1(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let submitted = submitted(&federation, &mut request).await?;
    federation.rooms.take_leave(submitted).await?;
    Ok(Response::json(&json!([200, {}])))
}

/// `PUT /send_knock/{roomId}/{eventId}`
pub async fn send_knock(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let submitted = submitted(&federation, &mut request).await?;
    #[derive(Serialize)]
    struct Answered {
        knock_room_state: Vec<Box<RawValue>>,
    }
    let knock_room_state = federation.rooms.take_knock(submitted).await?;
    Ok(Response::json(&Answered { knock_room_state }))
}

async fn submitted(federation: &Federation, request: &mut Request) -> Result<Submitted, Error> {
    let (origin, event) = auth::origin_and_json::<Box<RawValue>>(federation, request).await?;
    charge(federation, request, &origin).await?;
    Ok(Submitted { origin, room: request.param_as("room_id")?, id: request.param_as("event_id")?, event })
}

/// Events that come one by one fill the disk like those in transactions, and are charged the same.
async fn charge(federation: &Federation, request: &mut Request, origin: &ServerName) -> Result<(), Error> {
    send::check_intake(federation, origin)?;
    let body = request.bytes(auth::CONTENT_BYTES_MAX).await?;
    federation.rooms.charge_intake(origin, body.len() as u64);
    Ok(())
}

/// `PUT /v2/invite/{roomId}/{eventId}`
pub async fn invite_v2(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Asked {
        room_version: String,
        event: Box<RawValue>,
        #[serde(default, deserialize_with = "partial::first::<STRIPPED_EVENTS_MAX, _, _>")]
        invite_room_state: Vec<Box<RawValue>>,
    }
    let (origin, asked) = auth::origin_and_json::<Asked>(&federation, &mut request).await?;
    request.limit_server(&rates::INVITE, origin.as_str())?;
    charge(&federation, &mut request, &origin).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let id: OwnedEventId = request.param_as("event_id")?;
    let invitation =
        Invitation { room, version: asked.room_version, event: asked.event, stripped: asked.invite_room_state };
    let signed = federation.rooms.receive_invite(&origin, Some(&id), invitation).await?;
    Ok(Response::json(&SignedInvite::of(&signed)?))
}

/// `PUT /v1/invite/{roomId}/{eventId}`: rooms of versions 1 and 2, whose events name their own ids.
pub async fn invite_v1(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize, Default)]
    struct Unsigned {
        #[serde(default, deserialize_with = "partial::first::<STRIPPED_EVENTS_MAX, _, _>")]
        invite_room_state: Vec<Box<RawValue>>,
    }
    #[derive(Deserialize)]
    struct Beside {
        #[serde(default)]
        unsigned: Unsigned,
    }
    let (origin, event) = auth::origin_and_json::<Box<RawValue>>(&federation, &mut request).await?;
    request.limit_server(&rates::INVITE, origin.as_str())?;
    charge(&federation, &mut request, &origin).await?;
    let beside: Beside = serde_json::from_str(event.get())
        .map_err(|error| ErrorResponse::bad("M_BAD_JSON", format!("The event cannot be read: {}", brief(error))))?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let id: OwnedEventId = request.param_as("event_id")?;
    let invitation = Invitation { room, version: "1".to_owned(), event, stripped: beside.unsigned.invite_room_state };
    let signed = federation.rooms.receive_invite(&origin, Some(&id), invitation).await?;
    Ok(Response::json(&(200, SignedInvite::of(&signed)?)))
}

/// An invite as it is returned, byte for byte.
#[derive(Serialize)]
struct SignedInvite<'a> {
    event: &'a RawValue,
}

impl SignedInvite<'_> {
    fn of(event: &Event) -> Result<SignedInvite<'_>, Error> {
        let event = serde_json::from_slice(event.to_federation()).map_err(ErrorResponse::internal)?;
        Ok(SignedInvite { event })
    }
}
