//! Pushers and notifications: GET pushers, POST pushers/set, GET notifications.

use std::sync::Arc;

use crate::client::room::timeline::{reader, stream};
use crate::client::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{NOTIFICATIONS_MAX, NotificationQuery};
use crate::user::SetPusher;

/// GET /_matrix/client/v3/pushers
pub async fn pushers(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    stream(&client, client.users.pushers(requester.user_num, false).await?).await
}

/// POST /_matrix/client/v3/pushers/set
///
/// 400 `M_MISSING_PARAM` without what a pusher needs; 400 `M_INVALID_PARAM` for a kind other than `http` and null, what
/// is too long, and a gateway's URL that is no HTTP URL or has another path than `/_matrix/push/v1/notify`.
pub async fn set(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let set: SetPusher = request.json().await?;
    client.users.set_pusher(&requester, set).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/notifications
///
/// Newest first, from joined rooms, by the push rules of today. A page may be shorter than asked for, or empty, and
/// have a `next_token` all the same. 400 `M_INVALID_PARAM` for a `from` that is no token of this server's.
pub async fn notifications(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    // Each page judges some hundred events.
    request.limit_user(&rates::FIND, requester.user_id.as_str())?;
    let from = match request.query("from").filter(|from| !from.is_empty()) {
        Some(from) => Some(from.parse().map_err(|_| ErrorResponse::invalid_param("from is no token of this server"))?),
        None => None,
    };
    let limit = request.query_as::<usize>("limit")?.unwrap_or(20).clamp(1, NOTIFICATIONS_MAX);
    let only_highlight = request.query("only").is_some_and(|only| only == "highlight");
    let query = NotificationQuery { from, limit, only_highlight };
    stream(&client, client.rooms.notifications(reader(requester), query).await?).await
}
