//! Receipts, read markers and typing notifications: POST receipt, POST read_markers, PUT typing.

use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;

use crate::client::{Client, Error, auth, rates};
use crate::http::{Request, Response};
use crate::room::{Marker, ReadMarkers};

#[derive(Deserialize, Default)]
struct ReceiptBody {
    thread_id: Option<String>,
    /// The read marker may go back to an older event (MSC4446).
    #[serde(default, alias = "com.beeper.allow_backward")]
    allow_backward: bool,
}

/// POST /_matrix/client/v3/rooms/{room_id}/receipt/{receipt_type}/{event_id}
///
/// 400 `M_INVALID_PARAM` for an unknown receipt type or thread, for a thread beside `m.fully_read`, and for `allow_backward`
/// beside anything else; 403 `M_FORBIDDEN` when the user is not in the room; 404 `M_NOT_FOUND` when the event is not one of
/// the room.
pub async fn receipt(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let ReceiptBody { thread_id, allow_backward } = request.json_or_empty().await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let kind = request.param("receipt_type").to_owned();
    let marker = Marker { kind, event_id: request.param_as("event_id")?, thread: thread_id, allow_backward };
    client.rooms.set_receipt(&requester.user_id, &room_id, marker).await?;
    client.users.acted(&requester);
    Ok(Response::ok())
}

#[derive(Deserialize, Default)]
struct MarkersBody {
    #[serde(rename = "m.fully_read")]
    fully_read: Option<OwnedEventId>,
    #[serde(rename = "m.read")]
    read: Option<OwnedEventId>,
    #[serde(rename = "m.read.private")]
    read_private: Option<OwnedEventId>,
    /// As for a receipt; of the three only `m.fully_read` may go back.
    #[serde(default, alias = "com.beeper.allow_backward")]
    allow_backward: bool,
}

/// POST /_matrix/client/v3/rooms/{room_id}/read_markers
///
/// 403 `M_FORBIDDEN` when the user is not in the room; 404 `M_NOT_FOUND` when an event is not one of the room.
pub async fn read_markers(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let MarkersBody { fully_read, read, read_private, allow_backward } = request.json_or_empty().await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let markers = ReadMarkers { fully_read, read, read_private, allow_backward };
    client.rooms.set_read_markers(&requester.user_id, &room_id, markers).await?;
    client.users.acted(&requester);
    Ok(Response::ok())
}

#[derive(Deserialize)]
struct TypingBody {
    typing: bool,
    /// In milliseconds.
    timeout: Option<u64>,
}

/// How long a typing notification lasts without a `timeout`.
const TYPING: Duration = Duration::from_secs(30);

/// PUT /_matrix/client/v3/rooms/{room_id}/typing/{user_id}
///
/// 403 `M_FORBIDDEN` when the path names another user, or the user is not in the room.
pub async fn typing(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let body: TypingBody = request.json().await?;
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    if requester.is_shadow_banned {
        return Ok(Response::ok());
    }
    let length = body.typing.then(|| body.timeout.map_or(TYPING, Duration::from_millis));
    client.rooms.set_typing(&requester.user_id, &room_id, length).await?;
    client.users.acted(&requester);
    Ok(Response::ok())
}
