//! Membership: POST join, knock, leave, forget, invite, kick, ban, unban.

use std::sync::Arc;

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{directory, unsent};
use crate::client::{Client, Error, Requester, auth, rates, terms};
use crate::flow;
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::Joining;

#[derive(Deserialize, Default)]
struct Reason {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    user_id: OwnedUserId,
    reason: Option<String>,
    /// In a kick or ban: the user's events are redacted along with it (MSC4293).
    redact_events: Option<bool>,
    #[serde(rename = "org.matrix.msc4293.redact_events")]
    unstable_redact_events: Option<bool>,
}

impl Target {
    /// The name under which the event says that it redacts.
    fn redacts(&self) -> Option<&'static str> {
        match (self.redact_events, self.unstable_redact_events) {
            (Some(true), _) => Some("redact_events"),
            (_, Some(true)) => Some("org.matrix.msc4293.redact_events"),
            _ => None,
        }
    }
}

#[derive(Deserialize, Default)]
struct JoinBody {
    reason: Option<String>,
    /// Added to the content of the member event.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// POST /_matrix/client/v3/join/{room_id_or_alias}
///
/// 400 `M_INVALID_PARAM` when a `via` is no server name; 404 `M_NOT_FOUND` when there is no such alias; 403
/// `M_FORBIDDEN` when the authorisation rules refuse the join, or the user is in none of the rooms that a restricted
/// room names; 400 `M_UNABLE_TO_AUTHORISE_JOIN` or `M_UNABLE_TO_GRANT_JOIN` when no user of this server can let the
/// user into a restricted room; 400 `M_RESOURCE_LIMIT_EXCEEDED` when the room is too large; 400
/// `M_UNSUPPORTED_ROOM_VERSION`; 404 `M_NOT_FOUND` when no server is known that has the room; another server's error
/// as `error.rs` maps it.
pub async fn join(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::JOIN, requester.user_id.as_str())?;
    let (room_id, via) = named_room(&client, &request).await?;
    join_room(&client, &mut request, &requester, room_id, via).await
}

/// POST /_matrix/client/v3/rooms/{room_id}/join
///
/// 403 `M_FORBIDDEN` when the authorisation rules refuse the join, or the user is in none of the rooms that a
/// restricted room names; 400 `M_UNABLE_TO_AUTHORISE_JOIN` or `M_UNABLE_TO_GRANT_JOIN` when no user of this server
/// can let the user into a restricted room; 400 `M_RESOURCE_LIMIT_EXCEEDED` when the room is too large; 400
/// `M_UNSUPPORTED_ROOM_VERSION`; 404 `M_NOT_FOUND` when no server is known that has the room; another server's error
/// as `error.rs` maps it.
pub async fn join_by_id(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::JOIN, requester.user_id.as_str())?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    join_room(&client, &mut request, &requester, room_id, Vec::new()).await
}

async fn join_room(
    client: &Client,
    request: &mut Request,
    requester: &Requester,
    room_id: OwnedRoomId,
    via: Vec<OwnedServerName>,
) -> Result<Response, Error> {
    auth::check_not_suspended(requester)?;
    // Where the server says what has to be agreed to, one may be before that.
    if !client.notices.is_notice_room(requester, &room_id).await? {
        terms::check_agreed(client, request, requester).await?;
    }
    let JoinBody { mut reason, mut rest } = request.json_or_empty().await?;
    if requester.is_shadow_banned {
        (reason, rest) = (None, Map::new());
    }
    // Signed by an identity server. No authorisation rule reads it in a join, and this server uses no identity server.
    rest.remove("third_party_signed");
    check_guest(client, request, requester, &room_id, via.clone()).await?;
    let joining = Joining { via, reason, content_extra: rest, by_server: false };
    // Joining a large room through another server takes up to an hour, and goes on after the client has disconnected.
    request.cancel_when_peer_leaves();
    flow::join(&client.users, &client.rooms, requester, &room_id, joining).await?;
    client.users.tell_presence_again(requester);
    Ok(Response::json(&json!({ "room_id": room_id })))
}

/// 403 `M_GUEST_ACCESS_FORBIDDEN` for a guest and a room that is not open to guests.
pub async fn check_guest(
    client: &Client,
    request: &Request,
    requester: &Requester,
    room_id: &RoomId,
    via: Vec<OwnedServerName>,
) -> Result<(), Error> {
    if !requester.is_guest {
        return Ok(());
    }
    let may_ask = || request.limit_user(&rates::ASK, requester.user_id.as_str()).is_ok();
    match client.rooms.guests_may_join(&requester.user_id, room_id, via, may_ask).await? {
        true => Ok(()),
        false => Err(auth::guests_forbidden("The room is not open to guests (m.room.guest_access)").into()),
    }
}

/// The room that the id or alias in the path names, and servers that may know it. An alias is resolved by its own
/// server.
pub async fn named_room(client: &Client, request: &Request) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    let mut via: Vec<OwnedServerName> = Vec::new();
    for name in request.query_all("via").chain(request.query_all("server_name")) {
        let server = name.try_into().map_err(|_| ErrorResponse::invalid_param("via must be a list of server names"))?;
        if !via.contains(&server) {
            via.push(server);
        }
    }
    if !request.param("room_id_or_alias").starts_with('#') {
        return Ok((request.param_as("room_id_or_alias")?, via));
    }
    let alias: OwnedRoomAliasId = request.param_as("room_id_or_alias")?;
    client.rooms.check_not_barred(alias.as_str()).await?;
    let (room_id, servers) = directory::resolve(&client.rooms, &alias).await?;
    for server in servers {
        if !via.contains(&server) {
            via.push(server);
        }
    }
    Ok((room_id, via))
}

/// POST /_matrix/client/v3/knock/{room_id_or_alias}
///
/// 400 `M_INVALID_PARAM` when a `via` is no server name; 404 `M_NOT_FOUND` when there is no such alias, or no server
/// is known that has the room; 403 `M_FORBIDDEN` when the authorisation rules refuse the knock; another server's
/// error as `error.rs` maps it.
pub async fn knock(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::speaker(&client, &request).await?;
    request.limit_user(&rates::KNOCK, requester.user_id.as_str())?;
    let (room_id, via) = named_room(&client, &request).await?;
    let Reason { reason } = request.json_or_empty().await?;
    if requester.is_shadow_banned {
        return Ok(Response::json(&json!({ "room_id": room_id })));
    }
    client.rooms.knock(&requester.user_id, &room_id, via, reason).await?;
    Ok(Response::json(&json!({ "room_id": room_id })))
}

/// POST /_matrix/client/v3/rooms/{room_id}/leave
///
/// 403 `M_FORBIDDEN` when the user is neither in the room, invited, nor knocking; 403
/// `M_CANNOT_LEAVE_SERVER_NOTICE_ROOM` for an invite to the room of the user's notices. Leaving a room again succeeds.
pub async fn leave(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let Reason { reason } = request.json_or_empty().await?;
    check_may_decline(&client, &requester, &room_id).await?;
    client.rooms.leave(&requester.user_id, &room_id, reason.filter(|_| !requester.is_shadow_banned)).await?;
    Ok(Response::ok())
}

/// An error when the user is invited to the room of their notices: that invite cannot be declined.
pub async fn check_may_decline(client: &Client, requester: &Requester, room_id: &OwnedRoomId) -> Result<(), Error> {
    match client.notices.would_decline(requester, room_id).await? {
        false => Ok(()),
        true => Err(ErrorResponse::new(
            StatusCode::FORBIDDEN,
            "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM",
            "The invite to the room of this server's notices cannot be declined",
        )
        .into()),
    }
}

/// POST /_matrix/client/v3/rooms/{room_id}/forget
///
/// 404 `M_NOT_FOUND` when the user never was in the room; 400 `M_UNKNOWN` before the user has left it.
pub async fn forget(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    client.rooms.forget(&requester.user_id, &request.param_as::<OwnedRoomId>("room_id")?).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/invite. An invite by e-mail or telephone number needs an identity server,
/// and this server uses none.
///
/// 400 `M_THREEPID_DENIED` for an invite by e-mail or number; 400 `M_MISSING_PARAM` without `user_id`; 400
/// `M_BAD_JSON` when it is no user id; 403 `M_FORBIDDEN` when the sender is not in the room or the authorisation
/// rules refuse the invite; the error of the invited user's server as `error.rs` maps it.
pub async fn invite(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::speaker(&client, &request).await?;
    request.limit_user(&rates::INVITE, requester.user_id.as_str())?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let body: Map<String, Value> = request.json().await?;
    if !body.contains_key("user_id") && body.contains_key("medium") {
        return Err(ErrorResponse::bad(
            "M_THREEPID_DENIED",
            "This server cannot invite by e-mail address; invite the user's Matrix ID",
        )
        .into());
    }
    let target = target(body)?;
    if requester.is_shadow_banned {
        unsent::member(&client, &requester, &room_id, &target.user_id, "invite").await?;
        return Ok(Response::ok());
    }
    client.rooms.invite(&requester.user_id, &room_id, &target.user_id, target.reason).await?;
    Ok(Response::ok())
}

fn target(body: Map<String, Value>) -> Result<Target, ErrorResponse> {
    if !body.contains_key("user_id") {
        return Err(ErrorResponse::missing_param("user_id"));
    }
    serde_json::from_value(Value::Object(body)).map_err(|error| ErrorResponse::bad("M_BAD_JSON", error.to_string()))
}

/// The parameters of `kick`, `ban` and `unban`.
async fn asked(client: &Client, request: &mut Request) -> Result<(Requester, OwnedRoomId, Target), Error> {
    let requester = auth::speaker(client, request).await?;
    let room_id = request.param_as("room_id")?;
    Ok((requester, room_id, target(request.json().await?)?))
}

/// POST /_matrix/client/v3/rooms/{room_id}/kick
///
/// 400 `M_MISSING_PARAM` without `user_id`; 400 `M_BAD_JSON` when it is no user id; 403 `M_FORBIDDEN` when the sender
/// is not in the room, the target is not joined, invited or knocking, or the authorisation rules refuse it.
pub async fn kick(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (requester, room_id, target) = asked(&client, &mut request).await?;
    let redacts = target.redacts();
    if requester.is_shadow_banned {
        unsent::member(&client, &requester, &room_id, &target.user_id, "leave").await?;
        return Ok(Response::ok());
    }
    client.rooms.kick(&requester.user_id, &room_id, &target.user_id, target.reason, redacts).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/ban
///
/// 400 `M_MISSING_PARAM` without `user_id`; 400 `M_BAD_JSON` when it is no user id; 403 `M_FORBIDDEN` when the sender
/// is not in the room or the authorisation rules refuse it.
pub async fn ban(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (requester, room_id, target) = asked(&client, &mut request).await?;
    let redacts = target.redacts();
    if requester.is_shadow_banned {
        unsent::member(&client, &requester, &room_id, &target.user_id, "ban").await?;
        return Ok(Response::ok());
    }
    client.rooms.ban(&requester.user_id, &room_id, &target.user_id, target.reason, redacts).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/unban
///
/// 400 `M_MISSING_PARAM` without `user_id`; 400 `M_BAD_JSON` when it is no user id; 403 `M_FORBIDDEN` when the sender
/// is not in the room, the target is not banned, or the authorisation rules refuse it.
pub async fn unban(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (requester, room_id, target) = asked(&client, &mut request).await?;
    if requester.is_shadow_banned {
        unsent::member(&client, &requester, &room_id, &target.user_id, "leave").await?;
        return Ok(Response::ok());
    }
    client.rooms.unban(&requester.user_id, &room_id, &target.user_id, target.reason).await?;
    Ok(Response::ok())
}
