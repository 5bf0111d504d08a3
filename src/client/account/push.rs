//! Pushers: GET pushers, POST pushers/set.

use std::sync::Arc;

use crate::client::room::timeline::stream;
use crate::client::{Client, Error, auth, rates};
use crate::http::{Request, Response};
use crate::user::SetPusher;

/// GET /_matrix/client/v3/pushers
pub async fn pushers(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    stream(&client, client.users.pushers(requester.user_num).await?).await
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
