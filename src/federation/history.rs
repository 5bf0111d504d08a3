//! Our history of a room, for servers in it: `backfill` and `get_missing_events`, which fill their gaps, and `timestamp_to_event`.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::json;

use super::{Error, Federation, auth};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{Direction, Missing};

/// The specification's default when a server names no limit.
const MISSING_DEFAULT: usize = 10;

/// `GET /backfill/{roomId}?v=&limit=`
pub async fn backfill(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let origin = auth::origin(&federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let limit: usize = request.query_as("limit")?.ok_or_else(|| ErrorResponse::missing_param("limit"))?;
    let from: Vec<OwnedEventId> = request.query_all("v").filter_map(|id| id.try_into().ok()).collect();
    if from.is_empty() {
        return Err(ErrorResponse::missing_param("v").into());
    }
    let mut head =
        json!({ "origin": federation.server_name, "origin_server_ts": federation.clock.now_ms() }).to_string();
    head.pop();
    head.push_str(",\"pdus\":[");
    let served = federation.rooms.serve_backfill(&origin, &room, from, limit, head).await?;
    Ok(Response::stream(served.grant, served.chunks))
}

/// `POST /get_missing_events/{roomId}`
pub async fn get_missing_events(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Asked {
        earliest_events: Vec<OwnedEventId>,
        latest_events: Vec<OwnedEventId>,
        limit: Option<usize>,
        #[serde(default)]
        min_depth: u64,
    }
    let (origin, asked) = auth::origin_and_json::<Asked>(&federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let missing = Missing {
        earliest: asked.earliest_events,
        latest: asked.latest_events,
        limit: asked.limit.unwrap_or(MISSING_DEFAULT),
        min_depth: asked.min_depth,
    };
    let served = federation.rooms.serve_missing_events(&origin, &room, missing, "{\"events\":[".to_owned()).await?;
    Ok(Response::stream(served.grant, served.chunks))
}

/// `GET /timestamp_to_event/{roomId}?ts=&dir=`
pub async fn nearest(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let origin = auth::origin(&federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let wanted_ms = request.query_as::<u64>("ts")?.ok_or_else(|| ErrorResponse::missing_param("ts"))?;
    let direction = request.query("dir").ok_or_else(|| ErrorResponse::missing_param("dir"))?;
    let direction =
        Direction::of(&direction).ok_or_else(|| ErrorResponse::invalid_param("dir must be \"b\" or \"f\""))?;
    let (event_id, ts) = federation.rooms.serve_event_near(&origin, &room, wanted_ms, direction).await?;
    Ok(Response::json(&json!({ "event_id": event_id, "origin_server_ts": ts })))
}
