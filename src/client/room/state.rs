//! Reading a room's state and its members.
//!
//! - `GET /rooms/{room_id}/state`, `GET /rooms/{room_id}/state/{event_type}/{state_key}`
//! - `GET /rooms/{room_id}/members`, `GET /rooms/{room_id}/joined_members`, `GET /joined_rooms`

use std::sync::Arc;

use serde_json::json;

use super::timeline::{reader, room_id, stream, token};
use crate::client::{Client, Error, auth};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{MemberQuery, Membership};

/// 403 `M_FORBIDDEN` when the room is not known or the user may not see it.
pub async fn state(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let state = client.rooms.state(&reader, &room_id(&request)?).await?;
    stream(&client, state).await
}

/// 403 `M_FORBIDDEN` when the room is not known or the user may not see it; 404 `M_NOT_FOUND` when the state has no
/// such event.
pub async fn state_event(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let (kind, state_key) = (request.param("event_type"), request.param_maybe("state_key").unwrap_or(""));
    let whole = request.query("format").as_deref() == Some("event");
    let found = client.rooms.state_event(&reader, &room_id(&request)?, kind, state_key, whole).await?;
    Ok(Response::json_bytes(StatusCode::OK, found))
}

/// 403 `M_FORBIDDEN` when the room is not known or the user may not see it; 400 `M_INVALID_PARAM` when `at` is no
/// token, or for an unknown membership.
pub async fn members(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let who = MemberQuery {
        at: token(&request, "at")?,
        only: membership(&request, "membership")?,
        not: membership(&request, "not_membership")?,
    };
    let members = client.rooms.members(&reader, &room_id(&request)?, who).await?;
    stream(&client, members).await
}

/// 403 `M_FORBIDDEN` when the user is not joined to the room.
pub async fn joined_members(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let members = client.rooms.joined_members(&reader, &room_id(&request)?).await?;
    stream(&client, members).await
}

pub async fn joined_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let rooms = client.rooms.joined_rooms(&requester.user_id).await?;
    Ok(Response::json(&json!({ "joined_rooms": rooms })))
}

fn membership(request: &Request, name: &str) -> Result<Option<Membership>, ErrorResponse> {
    let Some(text) = request.query(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    Membership::of(&text).map(Some).ok_or_else(|| ErrorResponse::invalid_param(format!("{name} is not a membership")))
}
