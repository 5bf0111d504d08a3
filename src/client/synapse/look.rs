//! What is in a room, for an administrator who looks into a matter: in the room or not, everything is shown that was not refused.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedUserId};
use serde::Deserialize;

use super::{administrator, done};
use crate::client::room::membership::named_room;
use crate::client::room::timeline::{context_for, messages_for, nearest_for, reader, room_id, stream};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{HierarchyQuery, Reader};

async fn looking(client: &Client, request: &Request) -> Result<Reader, Error> {
    let requester = administrator(client, request).await?;
    tracing::info!("{} looks into {}", requester.user_id, request.param_maybe("room_id").unwrap_or("an event"));
    Ok(Reader { sees_all: true, ..reader(requester) })
}

/// GET /_synapse/admin/v1/rooms/{room_id}/state
pub async fn state(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = looking(&client, &request).await?;
    let state = client.rooms.state_of(&reader, &room_id(&request)?, request.query("type")).await?;
    stream(&client, state).await
}

/// GET /_synapse/admin/v1/rooms/{room_id}/messages
pub async fn messages(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = looking(&client, &request).await?;
    messages_for(&client, &request, reader).await
}

/// GET /_synapse/admin/v1/rooms/{room_id}/context/{event_id}
pub async fn context(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = looking(&client, &request).await?;
    context_for(&client, &request, reader).await
}

/// GET /_synapse/admin/v1/rooms/{room_id}/timestamp_to_event
pub async fn nearest(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = looking(&client, &request).await?;
    nearest_for(&client, &request, reader).await
}

/// GET /_synapse/admin/v1/rooms/{room_id}/hierarchy: of rooms that this server is in.
pub async fn hierarchy(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = administrator(&client, &request).await?;
    let query = HierarchyQuery {
        max_depth: request.query_as::<u64>("max_depth")?.map(|depth| depth.min(u16::MAX.into()) as u16),
        suggested_only: false,
        limit: request.query_as("limit")?,
        from: request.query("from").filter(|from| !from.is_empty()),
        sees_all: true,
    };
    if query.limit == Some(0) {
        return Err(ErrorResponse::invalid_param("limit must be greater than zero").into());
    }
    let page = client.rooms.hierarchy(&requester.user_id, &room_id(&request)?, query, || false).await?;
    stream(&client, page).await
}

/// GET /_synapse/admin/v1/fetch_event/{event_id}: as servers exchange it.
pub async fn event(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    looking(&client, &request).await?;
    let event_id: OwnedEventId = request.param_as("event_id")?;
    let event = client.rooms.stored_event(&event_id).await?;
    Ok(Response::json_bytes(StatusCode::OK, [b"{\"event\":", &event[..], b"}"].concat()))
}

#[derive(Deserialize, Default)]
struct MakeAdmin {
    user_id: Option<OwnedUserId>,
}

/// POST /_synapse/admin/v1/rooms/{room_id_or_alias}/make_room_admin: the administrator, or another user.
///
/// 400 `M_UNKNOWN` when nobody of this server is in the room who may give that power.
pub async fn make_admin(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let MakeAdmin { user_id } = request.json_or_empty().await?;
    let (room_id, _) = named_room(&client, &request).await?;
    let user_id = user_id.unwrap_or_else(|| by.user_id.clone());
    client.rooms.make_admin(&room_id, &user_id).await?;
    tracing::info!("{} had {user_id} made an administrator of {room_id}", by.user_id);
    Ok(done())
}
