//! Looking up rooms and users of other networks ("Third-party Networks"): GET thirdparty/protocols, protocol, location and
//! user. They are what bridges say; as long as none is connected, there is no protocol, and nothing is found.

use std::sync::Arc;

use serde_json::json;

use super::{Client, Error, auth};
use crate::http::{ErrorResponse, Request, Response};

/// GET /_matrix/client/v3/thirdparty/protocols
pub async fn protocols(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/thirdparty/protocol/{protocol}
///
/// 404 `M_NOT_FOUND` when no bridge has this protocol.
pub async fn protocol(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Err(ErrorResponse::not_found("No bridge of this server has this protocol").into())
}

/// GET /_matrix/client/v3/thirdparty/location[/{protocol}] and /thirdparty/user[/{protocol}]
pub async fn found(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Ok(Response::json(&json!([])))
}
