//! Versions and capabilities of this server: GET versions, capabilities, `.well-known`, voip/turnServer.

use std::sync::Arc;

use serde_json::json;

use super::{Client, Error, auth};
use crate::http::{ErrorResponse, Request, Response};
use crate::matrix::version;

/// Releases of the specification that this server supports.
const VERSIONS: &[&str] = &[
    "r0.5.0", "r0.6.0", "r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10",
    "v1.11", "v1.12", "v1.13", "v1.14", "v1.15",
];

/// GET /_matrix/client/versions
pub async fn versions(_: Arc<Client>, _: Request) -> Result<Response, Error> {
    let features = json!({
        "org.matrix.e2e_cross_signing": true,
        "org.matrix.msc3814": true,
        "org.matrix.msc3881": true,
        "org.matrix.msc4076": true,
        "org.matrix.msc4262": true,
        "org.matrix.simplified_msc3575": true,
        "org.matrix.msc4306": true,
        "uk.tcpip.msc4133": true,
        "uk.tcpip.msc4133.stable": true,
    });
    Ok(Response::json(&json!({ "versions": VERSIONS, "unstable_features": features })))
}

/// GET /_matrix/client/v3/capabilities
pub async fn capabilities(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    let available: serde_json::Map<_, _> =
        version::offered().map(|version| (version.id.to_owned(), json!("stable"))).collect();
    Ok(Response::json(&json!({ "capabilities": {
        "m.change_password": { "enabled": true },
        "m.room_versions": { "default": version::DEFAULT, "available": available },
        "m.set_displayname": { "enabled": true },
        "m.set_avatar_url": { "enabled": true },
        "m.profile_fields": { "enabled": true },
        "m.3pid_changes": { "enabled": false },
        "m.get_login_token": { "enabled": false },
    }})))
}

/// GET /.well-known/matrix/client
///
/// 404 `M_NOT_FOUND` when the setting for the public URL is not set.
pub async fn well_known_client(client: Arc<Client>, _: Request) -> Result<Response, Error> {
    match &client.options.public_url {
        Some(url) => Ok(Response::json(&json!({ "m.homeserver": { "base_url": url } }))),
        None => Err(ErrorResponse::not_found("This server publishes no address for apps (public_url)").into()),
    }
}

/// GET /_matrix/client/v3/voip/turnServer: answers `{}`, the specification's answer when no TURN server is set up.
pub async fn turn_server(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Ok(Response::ok())
}
