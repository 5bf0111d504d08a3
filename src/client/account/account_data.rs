//! Data that apps store: GET, PUT and DELETE account_data (global and by room), room tags, filters.

use std::sync::Arc;

use ruma::OwnedRoomId;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::client::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::Filter;

/// The type that is stored by the room part.
const FULLY_READ: &str = "m.fully_read";
/// Types that have endpoints of their own.
const MANAGED: [&str; 2] = [FULLY_READ, "m.push_rules"];

/// GET /_matrix/client/v3/user/{user_id}/account_data/{kind}, and the same path for a room.
///
/// 403 `M_FORBIDDEN` when the path names another user, or asks for `m.fully_read` of a room the user is not in; 404
/// `M_NOT_FOUND` when the entry was never set.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    let room = room(&request)?;
    if let Some(room) = &room
        && request.param("kind") == FULLY_READ
    {
        let marker = client.rooms.fully_read(&requester.user_id, room).await?;
        let event_id = marker.ok_or_else(|| ErrorResponse::not_found("No read marker is set in this room"))?;
        return Ok(Response::json(&json!({ "event_id": event_id })));
    }
    let json = client.users.account_data(requester.user_num, room.as_deref(), request.param("kind")).await?;
    Ok(Response::json_bytes(StatusCode::OK, json))
}

/// PUT /_matrix/client/v3/user/{user_id}/account_data/{kind}, and the same path for a room. An empty object removes the entry.
///
/// 403 `M_FORBIDDEN` when the path names another user; 405 `M_BAD_JSON` for types that have endpoints of their own;
/// 400 `M_BAD_JSON` when the content is no object, is nested too deeply or is not what the specification has for its type,
/// or the type is too long; 404 `M_NOT_FOUND` when the room is not
/// known; 413 `M_TOO_LARGE` when the entry, or all account data of the user, would be too large.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let room = room(&request)?;
    check_kind(&request)?;
    let content: Box<RawValue> = request.json().await?;
    client.users.set_account_data(requester.user_num, room.as_deref(), request.param("kind"), content).await?;
    Ok(Response::ok())
}

/// DELETE /_matrix/client/unstable/org.matrix.msc3391/user/{user_id}/account_data/{kind}, and the same path for a room.
///
/// 403 `M_FORBIDDEN` when the path names another user; 405 `M_BAD_JSON` for types that have endpoints of their own; 404
/// `M_NOT_FOUND` when the room is not known. An entry that was never set is removed all the same.
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let room = room(&request)?;
    check_kind(&request)?;
    client.users.remove_account_data(requester.user_num, room.as_deref(), request.param("kind")).await?;
    Ok(Response::ok())
}

fn check_kind(request: &Request) -> Result<(), ErrorResponse> {
    match MANAGED.contains(&request.param("kind")) {
        true => {
            let message = "This type of account data has endpoints of its own";
            Err(ErrorResponse::new(StatusCode::METHOD_NOT_ALLOWED, "M_BAD_JSON", message))
        }
        false => Ok(()),
    }
}

/// The room in the path, for the paths that have one.
fn room(request: &Request) -> Result<Option<OwnedRoomId>, ErrorResponse> {
    match request.param_maybe("room_id") {
        Some(_) => request.param_as("room_id").map(Some),
        None => Ok(None),
    }
}

/// GET /_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags
///
/// 403 `M_FORBIDDEN` when the path names another user.
pub async fn tags(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    Ok(Response::json(&client.users.tags(requester.user_num, &room).await?))
}

/// PUT /_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}
///
/// 403 `M_FORBIDDEN` when the path names another user; 400 `M_INVALID_PARAM` when the tag is empty or too long; 404
/// `M_NOT_FOUND` when the room is not known; 413 `M_TOO_LARGE` for too many tags, or when they would be too large.
pub async fn put_tag(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let content: Map<String, Value> = request.json_or_empty().await?;
    client.users.set_tag(requester.user_num, &room, request.param("tag"), Some(content)).await?;
    Ok(Response::ok())
}

/// DELETE /_matrix/client/v3/user/{user_id}/rooms/{room_id}/tags/{tag}
///
/// 403 `M_FORBIDDEN` when the path names another user; 400 `M_INVALID_PARAM` when the tag is empty or too long; 404
/// `M_NOT_FOUND` when the room is not known.
pub async fn delete_tag(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    client.users.set_tag(requester.user_num, &room, request.param("tag"), None).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/user/{user_id}/filter
///
/// 403 `M_FORBIDDEN` when the path names another user; 400 `M_BAD_JSON` when the body is no filter, or its lists are
/// too long; 413 `M_TOO_LARGE` when it has too many bytes.
pub async fn post_filter(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let content: Box<RawValue> = request.json().await?;
    if Filter::parse(content.get().as_bytes()).is_none() {
        return Err(ErrorResponse::bad("M_BAD_JSON", "The filter is not valid, or its lists are too long").into());
    }
    let number = client.users.add_filter(requester.user_num, &content).await?;
    Ok(Response::json(&json!({ "filter_id": number.to_string() })))
}

/// GET /_matrix/client/v3/user/{user_id}/filter/{filter_id}
///
/// 403 `M_FORBIDDEN` when the path names another user; 404 `M_NOT_FOUND` when there is no such filter.
pub async fn get_filter(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    let json = client.users.filter(requester.user_num, request.param("filter_id")).await?;
    Ok(Response::json_bytes(StatusCode::OK, json))
}
