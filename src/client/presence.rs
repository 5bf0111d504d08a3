//! Presence: GET and PUT presence/{user_id}/status.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;

use super::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::PresenceStatus;

/// GET /_matrix/client/v3/presence/{user_id}/status
///
/// 403 `M_FORBIDDEN` when the user shares no room with the other one.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let user_id: OwnedUserId = request.param_as("user_id")?;
    Ok(Response::json(&client.users.presence(&requester, &user_id).await?))
}

#[derive(Deserialize)]
struct Status {
    presence: String,
    status_msg: Option<String>,
}

/// PUT /_matrix/client/v3/presence/{user_id}/status
///
/// 403 `M_FORBIDDEN` when the path names another user; 400 `M_INVALID_PARAM` for an unknown state, and for a status message
/// that is too long.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let Status { presence, status_msg } = request.json().await?;
    let status = PresenceStatus::of(&presence)
        .ok_or_else(|| ErrorResponse::invalid_param("presence is online, unavailable or offline"))?;
    let status_msg = status_msg.filter(|_| !requester.is_shadow_banned);
    client.users.set_presence(&requester, status, status_msg).await?;
    Ok(Response::ok())
}
