//! POST upgrade: replaces a room by one of another version.

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::json;

use crate::client::{Client, Error, auth, rates};
use crate::flow;
use crate::http::{ErrorResponse, Request, Response};

#[derive(Deserialize)]
struct Body {
    new_version: String,
    #[serde(default)]
    additional_creators: Vec<OwnedUserId>,
}

/// POST /_matrix/client/v3/rooms/{room_id}/upgrade
///
/// 400 `M_UNSUPPORTED_ROOM_VERSION`; 403 `M_FORBIDDEN` when the user is not in the room or may not send its
/// `m.room.tombstone`; 400 `M_INVALID_ROOM_STATE` when an event of the new room does not pass the authorisation
/// rules.
pub async fn upgrade(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::speaker(&client, &request).await?;
    request.limit_user(&rates::CREATE, requester.user_id.as_str())?;
    let Body { new_version, additional_creators } = request.json().await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    if requester.is_shadow_banned {
        return Err(ErrorResponse::forbidden("You may not upgrade this room").into());
    }
    let (users, rooms) = (&client.users, &client.rooms);
    let new = flow::upgrade(users, rooms, &requester, &room_id, &new_version, additional_creators).await?;
    Ok(Response::json(&json!({ "replacement_room": new })))
}
