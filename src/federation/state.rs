//! The state of a room, now and then: `state`, `state_ids`, `event_auth`, `event`, complexity. For servers in the room.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId};
use serde_json::json;

use super::{Error, Federation, auth};
use crate::http::{ErrorResponse, Request, Response, StatusCode};

/// `GET /state/{roomId}?event_id=`
pub async fn state(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    answer_state_before(&federation, request, false).await
}

/// `GET /state_ids/{roomId}?event_id=`
pub async fn state_ids(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    answer_state_before(&federation, request, true).await
}

async fn answer_state_before(federation: &Federation, mut request: Request, ids_only: bool) -> Result<Response, Error> {
    let origin = auth::origin(federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let at: OwnedEventId = request.query_as("event_id")?.ok_or_else(|| ErrorResponse::missing_param("event_id"))?;
    let served = federation.rooms.serve_state(&origin, &room, &at, ids_only).await?;
    Ok(Response::stream(served.grant, served.chunks))
}

/// `GET /event_auth/{roomId}/{eventId}`
pub async fn event_auth(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let origin = auth::origin(&federation, &mut request).await?;
    let (room, event): (OwnedRoomId, OwnedEventId) = (request.param_as("room_id")?, request.param_as("event_id")?);
    let served = federation.rooms.serve_event_auth(&origin, &room, &event).await?;
    Ok(Response::stream(served.grant, served.chunks))
}

/// `GET /event/{eventId}`
pub async fn event(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let origin = auth::origin(&federation, &mut request).await?;
    let id: OwnedEventId = request.param_as("event_id")?;
    // The event as it is stored, as it is decoded, and in the answer: 64 KiB each at most.
    let grant = federation.answers.take(3 * 64 * 1024).await?;
    let event = federation.rooms.event_for(&origin, &id).await?;
    let head = json!({ "origin": federation.server_name, "origin_server_ts": federation.clock.now_ms() }).to_string();
    let mut body = head.into_bytes();
    body.pop();
    body.extend_from_slice(b",\"pdus\":[");
    body.extend_from_slice(&event);
    body.extend_from_slice(b"]}");
    Ok(Response::charged(StatusCode::OK, "application/json", body, grant))
}

/// `GET /unstable/rooms/{roomId}/complexity`: Synapse's measure, 500 state events being 1.
pub async fn complexity(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let origin = auth::origin(&federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let events = federation.rooms.state_events_for(&origin, &room).await?;
    let measure = (events as f64 / 500.0 * 100.0).round() / 100.0;
    Ok(Response::json(&json!({ "v1": measure })))
}
