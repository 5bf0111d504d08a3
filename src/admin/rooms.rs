//! The commands of `snug rooms`.

use std::sync::Arc;

use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::json;

use super::{Admin, PAGE_ROWS, error::Error, page};
use crate::http::{ErrorResponse, Request, Response};

/// `GET /rooms?after=!room`: at most a page of rooms, the joins in progress, and the rooms that wait to be allowed.
pub async fn list(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let after = request.query_as::<OwnedRoomId>("after")?;
    let rooms = admin.rooms.overview(after.as_deref(), PAGE_ROWS).await?;
    let next = (rooms.len() == PAGE_ROWS).then(|| rooms.last().map(|room| room.room_id.clone())).flatten();
    let mut joins: Vec<_> = admin.rooms.joins().iter().map(ToString::to_string).collect();
    let interrupted = admin.rooms.interrupted_joins().await?.into_iter();
    joins.extend(interrupted.map(|(room_id, events)| {
        format!("{room_id}: interrupted with {events} events stored; goes on when the server starts")
    }));
    let asked = admin.rooms.allowed_rooms().await?;
    let asked: Vec<_> = asked.into_iter().map(|(room_id, row)| json!({ "room_id": room_id, "asked": row })).collect();
    Ok(page(&admin, &json!({ "rooms": rooms, "joins": joins, "asked": asked, "next": next })).await?)
}

/// `POST /rooms/{room}/allow`: allows joining this room whatever its size, or takes that back with `allowed: false`.
pub async fn allow(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Allow {
        allowed: bool,
    }
    let room_id: OwnedRoomId = request.param_as("room")?;
    let Allow { allowed } = request.json().await?;
    admin.rooms.allow(&room_id, allowed).await?;
    Ok(Response::ok())
}

/// `POST /rooms/{room}/cancel`: ends a join of this room that is in progress or waits to be resumed.
pub async fn cancel(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let room_id: OwnedRoomId = request.param_as("room")?;
    match admin.rooms.cancel_join(&room_id).await? {
        true => Ok(Response::ok()),
        false => Err(ErrorResponse::not_found(format!("no join of {room_id} is under way")).into()),
    }
}
