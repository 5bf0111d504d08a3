//! Finding rooms: aliases, the public list, whether a room stands in it.

use std::sync::Arc;

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::client::{Client, Error, auth};
use crate::http::{ErrorResponse, Limit, Request, Response, StatusCode};
use crate::room::{PUBLIC_PAGE_BYTES, PublicQuery, Rooms};

/// Where an alias leads, of this server or another.
pub async fn resolve(rooms: &Rooms, alias: &OwnedRoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
    if alias.server_name() != rooms.server() {
        return Ok(rooms.resolve_remote_alias(alias).await?);
    }
    let found = rooms.resolve_here(alias).await?;
    Ok((found.room_id, found.servers))
}

/// GET /_matrix/client/v3/directory/room/{alias}. Needs no token; whoever has one is limited by user.
pub async fn alias(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    match auth::maybe(&client, &request).await? {
        Some(requester) => request.limit_for(Limit::Ask, requester.user_id.as_str())?,
        None => request.limit(Limit::Ask)?,
    }
    let (room_id, servers) = resolve(&client.rooms, &request.param_as("alias")?).await?;
    Ok(Response::json(&json!({ "room_id": room_id, "servers": servers })))
}

#[derive(Deserialize)]
struct Target {
    room_id: OwnedRoomId,
}

/// PUT /_matrix/client/v3/directory/room/{alias}
pub async fn set_alias(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let alias: OwnedRoomAliasId = request.param_as("alias")?;
    let Target { room_id } = request.json().await?;
    client.rooms.set_alias(&requester.user_id, &alias, &room_id).await.map_err(|failed| match failed {
        crate::room::error::Error::Taken => Error::from(ErrorResponse::new(
            StatusCode::CONFLICT,
            "M_UNKNOWN",
            format!("{alias} leads somewhere already"),
        )),
        other => other.into(),
    })?;
    Ok(Response::ok())
}

/// DELETE /_matrix/client/v3/directory/room/{alias}
pub async fn remove_alias(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let alias: OwnedRoomAliasId = request.param_as("alias")?;
    client.rooms.remove_alias(&requester.user_id, &alias, requester.is_admin).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/rooms/{room_id}/aliases
pub async fn aliases(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let aliases = client.rooms.aliases(&requester.user_id, &room_id).await?;
    Ok(Response::json(&json!({ "aliases": aliases })))
}

/// GET /_matrix/client/v3/directory/list/room/{room_id}
pub async fn visibility(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let public = client.rooms.is_public(&request.param_as::<OwnedRoomId>("room_id")?).await?;
    Ok(Response::json(&json!({ "visibility": if public { "public" } else { "private" } })))
}

#[derive(Deserialize)]
struct Visibility {
    visibility: Option<String>,
}

/// PUT /_matrix/client/v3/directory/list/room/{room_id}
pub async fn set_visibility(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let Visibility { visibility } = request.json_or_empty().await?;
    let public = match visibility.as_deref() {
        None | Some("public") => true,
        Some("private") => false,
        Some(_) => return Err(ErrorResponse::invalid_param("visibility is public or private").into()),
    };
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    client.rooms.set_public(&requester.user_id, &room_id, public, requester.is_admin).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/publicRooms. Needs no token; whoever has none is limited by address.
pub async fn public_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    if auth::maybe(&client, &request).await?.is_none() {
        request.limit(Limit::Ask)?;
    }
    let mut asked = Map::new();
    if let Some(limit) = request.query_as::<u64>("limit")? {
        asked.insert("limit".into(), limit.into());
    }
    if let Some(since) = request.query("since") {
        asked.insert("since".into(), since.into());
    }
    listed(&client, &request, asked).await
}

/// POST /_matrix/client/v3/publicRooms
pub async fn search_public_rooms(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    let asked: Map<String, Value> = request.json_or_empty().await?;
    listed(&client, &request, asked).await
}

/// The list of this server, or of the one the query names.
async fn listed(client: &Client, request: &Request, asked: Map<String, Value>) -> Result<Response, Error> {
    if let Some(server) = request.query_as::<OwnedServerName>("server")?
        && server != client.rooms.server()
    {
        // Asking elsewhere is done for people who belong here.
        let requester = auth::requester(client, request).await?;
        request.limit_for(Limit::Ask, requester.user_id.as_str())?;
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
    }
    let asked = serde_json::from_value(Value::Object(asked.clone()));
    let Asked { limit, since, filter } = asked.map_err(|error| ErrorResponse::bad("M_BAD_JSON", error.to_string()))?;
    let Filter { generic_search_term, room_types } = filter.unwrap_or_default();
    Ok(PublicQuery { limit, since, search: generic_search_term, room_types })
}
