//! The user's own account: a file for each family of endpoints. In this file: POST account/password, POST
//! account/deactivate, GET account/3pid.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Error, auth};
use crate::base::unbroken;
use crate::flow;
use crate::http::{Request, Response};
use crate::user::{Stage, Target, UiaRequest, check_new_password};

pub mod account_data;
pub mod device;
pub mod fallback;
pub mod profile;
pub mod push;
pub mod push_rules;
pub mod register;
pub mod session;

#[derive(Deserialize)]
struct PasswordBody {
    new_password: String,
    #[serde(default = "yes")]
    logout_devices: bool,
    #[serde(default)]
    auth: Option<Value>,
}

fn yes() -> bool {
    true
}

/// POST /_matrix/client/v3/account/password
///
/// 401 with the flows of user-interactive authentication until it is complete; 403 `M_FORBIDDEN` when `auth` names
/// another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords; 400 `M_WEAK_PASSWORD` when the new password has
/// less than eight characters; 400 `M_INVALID_PARAM` when it is too long.
pub async fn password(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: PasswordBody = request.json().await?;
    check_new_password(&body.new_password)?;
    let demand = UiaRequest {
        operation: "password",
        target: Target::of([body.new_password.as_str()]),
        user: Some(&requester.user_id),
        stages: &[Stage::Password],
        tokens: &[],
    };
    if let Some(asked) = auth::authenticate(&client, &request, Some(&requester), demand, body.auth.as_ref()).await? {
        return Ok(asked);
    }
    // Not cancelled when the client disconnects: otherwise sessions made with the old password could stay open after
    // the password has changed.
    unbroken(async move {
        client.users.set_password(&requester.user_id, &body.new_password).await?;
        if body.logout_devices {
            client.users.logout_all(&requester.user_id, Some(&requester.device_id)).await?;
        }
        Ok(Response::ok())
    })
    .await
}

#[derive(Deserialize)]
struct DeactivateBody {
    #[serde(default)]
    erase: bool,
    #[serde(default)]
    auth: Option<Value>,
}

/// POST /_matrix/client/v3/account/deactivate. With `erase`, who was not in a room at an event of the user is given that
/// event redacted from then on.
///
/// 401 with the flows of user-interactive authentication until it is complete; 403 `M_FORBIDDEN` when `auth` names
/// another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords.
pub async fn deactivate(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: DeactivateBody = request.json_or_empty().await?;
    let demand = UiaRequest {
        operation: "deactivate",
        target: Target::default(),
        user: Some(&requester.user_id),
        stages: &[Stage::Password],
        tokens: &[],
    };
    if let Some(asked) = auth::authenticate(&client, &request, Some(&requester), demand, body.auth.as_ref()).await? {
        return Ok(asked);
    }
    flow::deactivate(&client.users, &client.rooms, &requester.user_id, body.erase).await?;
    Ok(Response::json(&json!({ "id_server_unbind_result": "success" })))
}

/// GET /_matrix/client/v3/account/3pid: an empty list, since this server stores no third-party identifiers.
pub async fn threepids(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    Ok(Response::json(&json!({ "threepids": [] })))
}
