//! The server itself: its version, notices to its users, what works in the background.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{administrator, done, local_user};
use crate::base::gathered;
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};

/// GET /_synapse/admin/v1/server_version. Anybody may ask, as at Synapse.
pub async fn version(_: Arc<Client>, _: Request) -> Result<Response, Error> {
    Ok(Response::json(&json!({ "server_version": concat!("Snug ", env!("CARGO_PKG_VERSION")) })))
}

#[derive(Deserialize)]
struct Notice {
    user_id: OwnedUserId,
    content: Map<String, Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
    state_key: Option<String>,
}

/// POST /_synapse/admin/v1/send_server_notice, and PUT with a transaction id.
///
/// 400 `M_INVALID_PARAM` for what is no message: notices here are `m.room.message` events.
pub async fn notice(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let Notice { user_id, content, kind, state_key } = request.json().await?;
    if kind.is_some_and(|kind| kind != "m.room.message") || state_key.is_some() {
        return Err(ErrorResponse::invalid_param("Notices of this server are m.room.message events").into());
    }
    if user_id.server_name() != client.users.server() {
        return Err(ErrorResponse::bad("M_UNKNOWN", "Server notices can only be sent to local users").into());
    }
    let event_id = client.notices.send(&user_id, Value::Object(content)).await?;
    Ok(Response::json(&json!({ "event_id": event_id })))
}

/// Synapse's names for what it has behind switches, and what is so here for everybody: pushers that another session switches off, the
/// first form of sliding sync, and the state behind a sync's timeline.
const EXPERIMENTAL: [(&str, bool); 3] = [("msc3881", true), ("msc3575", false), ("msc4222", true)];

/// GET /_synapse/admin/v1/experimental_features/{user_id}: what there is, there is for everybody.
pub async fn experimental(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    client.users.listed(&local_user(&client, &request)?).await?;
    let features = EXPERIMENTAL.iter().map(|(name, is_on)| ((*name).to_owned(), Value::from(*is_on)));
    let features: Map<_, _> = gathered(features);
    Ok(Response::json(&json!({ "features": features })))
}

#[derive(Deserialize)]
struct Features {
    features: std::collections::BTreeMap<String, bool>,
}

/// PUT /_synapse/admin/v1/experimental_features/{user_id}: nothing can be changed, so that only what is so already is answered as done.
///
/// 400 `M_UNKNOWN` for anything else.
pub async fn set_experimental(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    client.users.listed(&local_user(&client, &request)?).await?;
    let Features { features } = request.json().await?;
    for (name, wanted) in features {
        let message = match EXPERIMENTAL.iter().find(|(known, _)| *known == name) {
            None => format!("{name:?} is not recognised as a valid experimental feature."),
            Some((_, true)) if !wanted => format!("{name} is there for everybody, and cannot be switched off"),
            Some((_, false)) if wanted => format!("{name} is not there"),
            Some(_) => continue,
        };
        return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
    }
    Ok(done())
}

/// GET /_synapse/admin/v1/background_updates/enabled. What works in the background here cannot be switched off (no POST), nor are there
/// jobs to be started (no `start_job`).
pub async fn is_enabled(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    Ok(Response::json(&json!({ "enabled": true })))
}

/// GET /_synapse/admin/v1/background_updates/status: there are none that could be switched off.
pub async fn background_updates(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    Ok(Response::json(&json!({ "enabled": true, "current_updates": {} })))
}
