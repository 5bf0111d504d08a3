//! Coming and going: POST join, knock, leave, forget, invite, kick, ban, unban.

use std::sync::Arc;

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName, OwnedUserId, UserId};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::directory;
use crate::client::{Client, Error, auth};
use crate::http::{ErrorResponse, Limit, Request, Response};
use crate::room::Joining;

#[derive(Deserialize, Default)]
struct Reason {
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Target {
    user_id: OwnedUserId,
    reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct JoinBody {
    reason: Option<String>,
    /// Becomes part of the member event.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// POST /_matrix/client/v3/join/{room_id_or_alias}
pub async fn join(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_for(Limit::Join, requester.user_id.as_str())?;
    let (room_id, via) = named_room(&client, &request).await?;
    join_room(&client, &mut request, &requester.user_id, room_id, via).await
}

/// POST /_matrix/client/v3/rooms/{room_id}/join
pub async fn join_by_id(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_for(Limit::Join, requester.user_id.as_str())?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    join_room(&client, &mut request, &requester.user_id, room_id, Vec::new()).await
}

async fn join_room(
    client: &Client,
    request: &mut Request,
    user: &UserId,
    room_id: OwnedRoomId,
    via: Vec<OwnedServerName>,
) -> Result<Response, Error> {
    let JoinBody { reason, mut rest } = request.json_or_empty().await?;
    // A promise of an identity server: no rule looks at it in a join, and this server asks none.
    rest.remove("third_party_signed");
    let joining = Joining { via, reason, content_extra: rest };
    // A large room of others takes up to an hour, and is joined whether or not somebody still listens.
    request.cancel_when_peer_leaves();
    client.rooms.join(user, &room_id, joining).await?;
    Ok(Response::json(&json!({ "room_id": room_id })))
}

/// The room an id or alias in the path names, and servers that may know it. An alias of another server is asked for there.
async fn named_room(client: &Client, request: &Request) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    let mut via: Vec<OwnedServerName> = Vec::new();
    for name in request.query_all("via").chain(request.query_all("server_name")) {
        let server = name.try_into().map_err(|_| ErrorResponse::invalid_param("via is a list of server names"))?;
        if !via.contains(&server) {
            via.push(server);
        }
    }
    if !request.param("room_id_or_alias").starts_with('#') {
        return Ok((request.param_as("room_id_or_alias")?, via));
    }
    let alias: OwnedRoomAliasId = request.param_as("room_id_or_alias")?;
    let (room_id, servers) = directory::resolve(&client.rooms, &alias).await?;
    for server in servers {
        if !via.contains(&server) {
            via.push(server);
        }
    }
    Ok((room_id, via))
}

/// POST /_matrix/client/v3/knock/{room_id_or_alias}
pub async fn knock(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_for(Limit::Join, requester.user_id.as_str())?;
    let (room_id, via) = named_room(&client, &request).await?;
    let Reason { reason } = request.json_or_empty().await?;
    client.rooms.knock(&requester.user_id, &room_id, via, reason).await?;
    Ok(Response::json(&json!({ "room_id": room_id })))
}

/// POST /_matrix/client/v3/rooms/{room_id}/leave
pub async fn leave(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let Reason { reason } = request.json_or_empty().await?;
    client.rooms.leave(&requester.user_id, &room_id, reason).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/forget
pub async fn forget(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    client.rooms.forget(&requester.user_id, &request.param_as::<OwnedRoomId>("room_id")?).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/invite. Invitations by e-mail or telephone need an identity server, and this server
/// asks none.
pub async fn invite(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_for(Limit::Invite, requester.user_id.as_str())?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let body: Map<String, Value> = request.json().await?;
    if !body.contains_key("user_id") && body.contains_key("medium") {
        return Err(ErrorResponse::bad(
            "M_THREEPID_DENIED",
            "This server cannot invite an address; invite the person's Matrix ID",
        )
        .into());
    }
    let target = target(body)?;
    client.rooms.invite(&requester.user_id, &room_id, &target.user_id, target.reason).await?;
    Ok(Response::ok())
}

fn target(body: Map<String, Value>) -> Result<Target, ErrorResponse> {
    if !body.contains_key("user_id") {
        return Err(ErrorResponse::missing_param("user_id"));
    }
    serde_json::from_value(Value::Object(body)).map_err(|error| ErrorResponse::bad("M_BAD_JSON", error.to_string()))
}

/// What `kick`, `ban` and `unban` are asked with.
async fn asked(client: &Client, request: &mut Request) -> Result<(OwnedUserId, OwnedRoomId, Target), Error> {
    let requester = auth::requester(client, request).await?;
    let room_id = request.param_as("room_id")?;
    Ok((requester.user_id, room_id, target(request.json().await?)?))
}

/// POST /_matrix/client/v3/rooms/{room_id}/kick
pub async fn kick(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (user, room_id, target) = asked(&client, &mut request).await?;
    client.rooms.kick(&user, &room_id, &target.user_id, target.reason).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/ban
pub async fn ban(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (user, room_id, target) = asked(&client, &mut request).await?;
    client.rooms.ban(&user, &room_id, &target.user_id, target.reason).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/unban
pub async fn unban(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (user, room_id, target) = asked(&client, &mut request).await?;
    client.rooms.unban(&user, &room_id, &target.user_id, target.reason).await?;
    Ok(Response::ok())
}
