//! Rooms, from the command line.

use std::sync::Arc;

use ruma::OwnedRoomId;
use serde_json::json;

use super::{Admin, PAGE_ROWS, error::Error, page};
use crate::http::{Answer, Request, Response};

/// `GET /rooms?after=!room`: at most a page of rooms, and the joins under way.
pub async fn list(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let after = request.query_as::<OwnedRoomId>("after")?;
    let rooms = admin.rooms.overview(after.as_deref(), PAGE_ROWS).await?;
    let next = (rooms.len() == PAGE_ROWS).then(|| rooms.last().map(|room| room.room_id.clone())).flatten();
    let joins: Vec<serde_json::Value> = Vec::new();
    Ok(page(&admin, &json!({ "rooms": rooms, "joins": joins, "next": next })).await?)
}

/// `POST /rooms/{room}/allow`: this one room may be joined whatever the policy says.
pub async fn allow(_: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let _room: OwnedRoomId = request.param_as("room")?;
    Err(Answer::bad("M_UNRECOGNIZED", "not there yet").into())
}
