//! Sessions: GET and POST login, POST logout, POST logout/all, GET account/whoami.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Client, Error, STRANGER_BYTES_MAX, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::matrix::id;
use crate::user::{self, Login, Session};

/// GET /_matrix/client/v3/login
pub async fn flows(_: Arc<Client>, _: Request) -> Result<Response, Error> {
    Ok(Response::json(&json!({ "flows": [{ "type": "m.login.password" }] })))
}

#[derive(Deserialize)]
struct LoginBody {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    identifier: Option<Value>,
    /// The older form of `identifier`.
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    device_id: Option<String>,
    #[serde(default)]
    initial_device_display_name: Option<String>,
}

/// POST /_matrix/client/v3/login
///
/// 400 `M_UNKNOWN` for another type of login or identifier, or when the password was hashed under a larger memory
/// budget; 400 `M_MISSING_PARAM` without user or password; 403 `M_FORBIDDEN` when user or password is wrong; 403
/// `M_USER_DEACTIVATED`; 400 `M_INVALID_PARAM` when the password is too long or the device id is not valid; 413
/// `M_TOO_LARGE` when the device name is too long; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords.
pub async fn login(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let body: LoginBody = request.json_max(STRANGER_BYTES_MAX).await?;
    if body.kind != "m.login.password" {
        return Err(ErrorResponse::bad("M_UNKNOWN", "The only login type of this server is m.login.password").into());
    }
    let typed = typed_name(body.identifier.as_ref(), body.user.as_deref())?;
    let password = body.password.as_deref().ok_or_else(|| ErrorResponse::missing_param("password"))?;
    let wrong = || ErrorResponse::forbidden("Wrong user name or password");
    let user_id = id::typed_user(typed, client.users.server()).ok_or_else(wrong)?;
    if user_id.server_name() != client.users.server() {
        return Err(wrong().into());
    }
    let counted = request.attempt(&rates::PASSWORDS, user_id.as_str())?;
    match client.users.check_password(&user_id, password).await {
        Err(failed @ user::Error::Forbidden(_)) => return Err(failed.into()),
        checked => {
            counted.forgive();
            checked?;
        }
    }
    request.note_guest(user_id.as_str());
    let login = Login {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        ip: Some(request.peer().ip),
    };
    let session = client.users.login(&user_id, login).await?;
    Ok(Response::json(&answer(&client, &session)))
}

/// The answer of login and registration about a new session.
pub fn answer(client: &Client, session: &Session) -> Value {
    let mut answer = json!({
        "user_id": session.user_id,
        "access_token": session.access_token,
        "device_id": session.device_id,
        "home_server": client.users.server(),
    });
    if let Some(url) = &client.options.public_url {
        answer["well_known"] = json!({ "m.homeserver": { "base_url": url } });
    }
    answer
}

/// The name in an `m.id.user` identifier, or in the older `user`.
pub fn typed_name<'a>(identifier: Option<&'a Value>, user: Option<&'a str>) -> Result<&'a str, ErrorResponse> {
    let Some(identifier) = identifier else {
        return user.ok_or_else(|| ErrorResponse::missing_param("identifier"));
    };
    match identifier.get("type").and_then(Value::as_str) {
        Some("m.id.user") => identifier.get("user").and_then(Value::as_str),
        _ => return Err(ErrorResponse::bad("M_UNKNOWN", "The only identifier type of this server is m.id.user")),
    }
    .ok_or_else(|| ErrorResponse::missing_param("user"))
}

/// POST /_matrix/client/v3/logout
pub async fn logout(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    client.users.logout(&requester).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/logout/all
pub async fn logout_all(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    client.users.logout_all(&requester.user_id, None).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/account/whoami
pub async fn whoami(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    Ok(Response::json(&json!({
        "user_id": requester.user_id,
        "device_id": requester.device_id,
        "is_guest": requester.is_guest,
    })))
}
