//! Finding rooms: aliases, the public list, and the visibility of a room in it.

use std::sync::Arc;

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::client::{Client, Error, Requester, auth, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{PUBLIC_PAGE_BYTES, PublicQuery, Rooms};
use crate::user;

/// The room of an alias of this server or another, and servers in that room. 404 `M_NOT_FOUND` when there is no such
/// alias; another server's error as `error.rs` maps it.
pub async fn resolve(rooms: &Rooms, alias: &OwnedRoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    if alias.server_name() != rooms.server() {
        return Ok(rooms.resolve_remote_alias(alias).await?);
    }
    let found = rooms.resolve_here(alias).await?;
    Ok((found.room_id, found.servers))
}

/// GET /_matrix/client/v3/directory/room/{alias}. Needs no token. Requests without one are limited by address,
/// and requests with one by user when another server must be asked.
///
/// 404 `M_NOT_FOUND` when there is no such alias; another server's error as `error.rs` maps it.
pub async fn alias(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::maybe(&client, &request).await?;
    let alias: OwnedRoomAliasId = request.param_as("alias")?;
    let is_here = alias.server_name() == client.rooms.server();
    match requester {
        Some(_) if is_here => {}
        Some(requester) => request.limit_user(&rates::ASK, requester.user_id.as_str())?,
        None => request.limit(if is_here { &rates::BROWSE } else { &rates::ASK })?,
    }
    let (room_id, servers) = resolve(&client.rooms, &alias).await?;
    Ok(Response::json(&json!({ "room_id": room_id, "servers": servers })))
}

#[derive(Deserialize)]
struct Target {
    room_id: OwnedRoomId,
}

/// 400 `M_EXCLUSIVE` when an alias is an application service's alone, or when a service asks for one outside of its namespace.
pub fn check_alias(client: &Client, requester: &Requester, alias: &str) -> Result<(), Error> {
    let services = client.users.services();
    let own = requester.service.as_deref().and_then(|id| services.by_id(id));
    if own.as_ref().is_some_and(|own| !own.aliases.has(alias)) {
        return Err(user::exclusive("This alias is not in the application service's namespace").into());
    }
    match services.owner_of_alias(alias, requester.service.as_deref()) {
        None => Ok(()),
        Some(_) => Err(user::exclusive("This alias is reserved by an application service of this server").into()),
    }
}

/// PUT /_matrix/client/v3/directory/room/{alias}
///
/// 400 `M_INVALID_PARAM` for an alias of another server; 400 `M_EXCLUSIVE` for one of an application service; 403 `M_FORBIDDEN` when the user is not in the room, or the
/// room has too many aliases; 409 `M_UNKNOWN` when the alias exists.
pub async fn set_alias(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let alias: OwnedRoomAliasId = request.param_as("alias")?;
    let Target { room_id } = request.json().await?;
    check_alias(&client, &requester, alias.as_str())?;
    client.rooms.set_alias(&requester.user_id, &alias, &room_id).await.map_err(|failed| match failed {
        crate::room::Error::Taken => Error::from(ErrorResponse::new(
            StatusCode::CONFLICT,
            "M_UNKNOWN",
            format!("The alias {alias} is in use already"),
        )),
        other => other.into(),
    })?;
    Ok(Response::ok())
}

/// DELETE /_matrix/client/v3/directory/room/{alias}
///
/// 400 `M_INVALID_PARAM` for an alias of another server; 404 `M_NOT_FOUND` when there is no such alias; 403
/// `M_FORBIDDEN` unless the user made it, may set the room's canonical alias, or is an administrator.
pub async fn remove_alias(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let alias: OwnedRoomAliasId = request.param_as("alias")?;
    check_alias(&client, &requester, alias.as_str())?;
    let is_trusted = requester.is_admin || requester.service.is_some();
    client.rooms.remove_alias(&requester.user_id, &alias, is_trusted).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/rooms/{room_id}/aliases
///
/// 403 `M_FORBIDDEN` when the user is not joined and the room's history is not `world_readable`.
pub async fn aliases(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let asks = (!requester.is_admin).then_some(&*requester.user_id);
    let aliases = client.rooms.aliases(asks, &room_id).await?;
    Ok(Response::json(&json!({ "aliases": aliases })))
}

/// GET /_matrix/client/v3/directory/list/room/{room_id}
///
/// 404 `M_NOT_FOUND` when the room is not known.
pub async fn visibility(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let public = client.rooms.is_public(&request.param_as::<OwnedRoomId>("room_id")?).await?;
    Ok(Response::json(&json!({ "visibility": if public { "public" } else { "private" } })))
}

#[derive(Deserialize)]
struct Visibility {
    visibility: Option<String>,
}

/// PUT /_matrix/client/v3/directory/list/room/{room_id}
///
/// 400 `M_INVALID_PARAM` for an unknown visibility; 404 `M_NOT_FOUND` when the room is not known; 403 `M_FORBIDDEN`
/// unless the user may set the room's canonical alias, or is an administrator.
pub async fn set_visibility(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let Visibility { visibility } = request.json_or_empty().await?;
    let public = match visibility.as_deref() {
        None | Some("public") => true,
        Some("private") => false,
        Some(_) => return Err(ErrorResponse::invalid_param("visibility must be \"public\" or \"private\"").into()),
    };
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    if requester.is_shadow_banned && public {
        return Ok(Response::ok());
    }
    client.rooms.set_public(&requester.user_id, &room_id, public, requester.is_admin).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/publicRooms. Needs no token. Requests without one are limited by address.
///
/// 400 `M_INVALID_PARAM` when `since` is no token of this server; for the list of another server, its error as
/// `error.rs` maps it, and 401 `M_MISSING_TOKEN` without an access token.
pub async fn public_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    if auth::maybe(&client, &request).await?.is_none() {
        request.limit(&rates::BROWSE)?;
    }
    let mut asked = Map::new();
    if let Some(limit) = request.query_as::<u64>("limit")? {
        asked.insert("limit".into(), limit.into());
    }
    if let Some(since) = request.query("since") {
        asked.insert("since".into(), since.into());
    }
    if let Some(all) = request.query_as::<bool>("include_all_networks")? {
        asked.insert("include_all_networks".into(), all.into());
    }
    if let Some(network) = request.query("third_party_instance_id") {
        asked.insert("third_party_instance_id".into(), network.into());
    }
    listed(&client, &request, asked).await
}

/// POST /_matrix/client/v3/publicRooms
///
/// 400 `M_INVALID_PARAM` when `since` is no token of this server; for the list of another server, its error as
/// `error.rs` maps it; 400 `M_BAD_JSON` when `limit`, `since` or `filter` has the wrong type.
pub async fn search_public_rooms(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    let asked: Map<String, Value> = request.json_or_empty().await?;
    listed(&client, &request, asked).await
}

/// The list of this server, or of the server that the query names.
async fn listed(client: &Client, request: &Request, asked: Map<String, Value>) -> Result<Response, Error> {
    if let Some(server) = request.query_as::<OwnedServerName>("server")?
        && server != client.rooms.server()
    {
        // Other servers are asked for users of this server only.
        let requester = auth::requester(client, request).await?;
        request.limit_user(&rates::ASK, requester.user_id.as_str())?;
        let (list, grant) = client.rooms.remote_public_rooms(&server, &asked).await?;
        return Ok(Response::charged(StatusCode::OK, "application/json", list, grant));
    }
    let answers = client.budget.account("response_bodies");
    let grant = answers.take(PUBLIC_PAGE_BYTES).await?;
    let (page, grant) = client.rooms.public_rooms(query(&asked)?).await?.into_json(grant);
    Ok(Response::charged(StatusCode::OK, "application/json", page, grant))
}

fn query(asked: &Map<String, Value>) -> Result<PublicQuery, ErrorResponse> {
    #[derive(Deserialize, Default)]
    struct Filter {
        generic_search_term: Option<String>,
        room_types: Option<Vec<Option<String>>>,
    }
    #[derive(Deserialize)]
    struct Asked {
        limit: Option<usize>,
        since: Option<String>,
        filter: Option<Filter>,
        #[serde(default)]
        include_all_networks: bool,
        third_party_instance_id: Option<String>,
    }
    let asked = serde_json::from_value(Value::Object(asked.clone()));
    let asked: Asked = asked.map_err(|error| ErrorResponse::bad("M_BAD_JSON", error.to_string()))?;
    let Asked { limit, since, filter, include_all_networks: all_networks, third_party_instance_id: network } = asked;
    if all_networks && network.is_some() {
        let message = "third_party_instance_id and include_all_networks exclude each other";
        return Err(ErrorResponse::invalid_param(message));
    }
    let Filter { generic_search_term, room_types } = filter.unwrap_or_default();
    Ok(PublicQuery { limit, since, search: generic_search_term, room_types, network, all_networks })
}
