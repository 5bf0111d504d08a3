//! Sessions: GET and POST login, POST login/get_token, POST refresh, POST logout, POST logout/all, GET account/whoami.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Client, Error, STRANGER_BYTES_MAX, auth, rates, terms};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::id;
use crate::user::{self, LOGIN_TOKEN_MS, Login, Refreshed, Session, Stage, Target, UiaRequest};

/// GET /_matrix/client/v3/login
pub async fn flows(_: Arc<Client>, _: Request) -> Result<Response, Error> {
    let token = json!({ "type": "m.login.token", "get_login_token": true });
    let service = json!({ "type": SERVICE_LOGIN });
    Ok(Response::json(&json!({ "flows": [{ "type": "m.login.password" }, token, service] })))
}

/// The login and registration of an application service, which shows its own token.
pub const SERVICE_LOGIN: &str = "m.login.application_service";

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
    /// Of `m.login.token`.
    #[serde(default)]
    token: Option<String>,
    /// Whether the app refreshes its access token.
    #[serde(default)]
    refresh_token: bool,
}

/// POST /_matrix/client/v3/login
///
/// 400 `M_UNKNOWN` for another type of login or identifier, or when the password was hashed under a larger memory
/// budget; 400 `M_MISSING_PARAM` without user or password, or without the token; 403 `M_FORBIDDEN` when user or password
/// is wrong, or the token is not good any more; 403 `M_USER_DEACTIVATED`; 401 `M_USER_LOCKED`; 400 `M_INVALID_PARAM` when
/// the password is too long or the device id is not valid; 413 `M_TOO_LARGE` when the device name is too long; 429
/// `M_LIMIT_EXCEEDED` after too many wrong passwords or tokens. For `m.login.application_service`: 401 `M_MISSING_TOKEN` or
/// `M_UNKNOWN_TOKEN` without the token of one, 403 `M_EXCLUSIVE` for a user that is not in its namespace.
pub async fn login(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let body: LoginBody = request.json_max(STRANGER_BYTES_MAX).await?;
    let user_id = match body.kind.as_str() {
        "m.login.password" => by_password(&client, &request, &body).await?,
        "m.login.token" => {
            request.limit(&rates::LOGIN_TOKEN)?;
            let token = body.token.as_deref().ok_or_else(|| ErrorResponse::missing_param("token"))?;
            client.users.take_login_token(token)?
        }
        SERVICE_LOGIN => by_service(&client, &request, &body).await?,
        _ => {
            let message =
                "The login types of this server are m.login.password, m.login.token and m.login.application_service";
            return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
        }
    };
    request.note_guest(user_id.as_str());
    let login = Login {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        ip: Some(request.peer().ip),
        lifetime_ms: client.options().lifetime_ms(body.refresh_token),
    };
    let session = client.users.login(&user_id, login).await?;
    if body.kind != SERVICE_LOGIN {
        terms::tell_newcomer(&client, &request, &user_id).await;
    }
    Ok(Response::json(&answer(&client, &session)))
}

/// The user of an application service that a login names.
async fn by_service(client: &Client, request: &Request, body: &LoginBody) -> Result<OwnedUserId, Error> {
    let service = auth::service(client, request)?;
    let typed = typed_name(body.identifier.as_ref(), body.user.as_deref())?;
    // Historical user IDs have capitals.
    let user_id = match typed.starts_with('@') {
        true => OwnedUserId::try_from(typed).map_err(|_| ErrorResponse::invalid_param("This is no user ID"))?,
        false => client.users.service_user_id(typed)?,
    };
    if user_id.server_name() != client.users.server() || !service.may_be(&user_id) {
        let message = "This user ID is not in the application service's namespace";
        return Err(ErrorResponse::new(StatusCode::FORBIDDEN, "M_EXCLUSIVE", message).into());
    }
    match client.users.account(&user_id).await? {
        Some(_) => Ok(user_id),
        None => Err(ErrorResponse::forbidden("The application service has not registered this user").into()),
    }
}

/// The user whose password a login has.
async fn by_password(client: &Client, request: &Request, body: &LoginBody) -> Result<OwnedUserId, Error> {
    let typed = typed_name(body.identifier.as_ref(), body.user.as_deref())?;
    let password = body.password.as_deref().ok_or_else(|| ErrorResponse::missing_param("password"))?;
    let wrong = || ErrorResponse::forbidden("Wrong user name or password");
    let user_id = id::typed_user(typed, client.users.server()).ok_or_else(wrong)?;
    if user_id.server_name() != client.users.server() {
        return Err(wrong().into());
    }
    let counted = request.attempt(&rates::PASSWORDS, user_id.as_str())?;
    match client.users.check_password(&user_id, password).await {
        Err(failed @ user::Error::Forbidden(_)) => Err(failed.into()),
        checked => {
            counted.forgive();
            checked?;
            Ok(user_id)
        }
    }
}

#[derive(Deserialize)]
struct AuthBody {
    #[serde(default)]
    auth: Option<Value>,
}

/// POST /_matrix/client/v1/login/get_token. The password is asked for each time.
///
/// 401 with the flows of user-interactive authentication until it is complete; 403 `M_FORBIDDEN` when `auth` names
/// another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords or tokens.
pub async fn login_token(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: AuthBody = request.json_or_empty().await?;
    let demand = UiaRequest {
        operation: "get_token",
        target: Target::default(),
        user: Some(&requester.user_id),
        stages: &[Stage::Password],
        tokens: &[],
    };
    if let Some(asked) = auth::authenticate(&client, &request, Some(&requester), demand, body.auth.as_ref()).await? {
        return Ok(asked);
    }
    request.limit_user(&rates::GET_TOKEN, requester.user_id.as_str())?;
    if let Some(session) = body.auth.as_ref().and_then(|auth| auth.get("session")?.as_str()) {
        client.users.spend(session);
    }
    let login_token = client.users.login_token(&requester);
    Ok(Response::json(&json!({ "login_token": login_token, "expires_in_ms": LOGIN_TOKEN_MS })))
}

#[derive(Deserialize)]
struct RefreshBody {
    refresh_token: String,
}

/// POST /_matrix/client/v3/refresh
///
/// 401 `M_UNKNOWN_TOKEN` when the refresh token is of no session or was replaced; 401 `M_USER_LOCKED`.
pub async fn refresh(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    request.limit(&rates::REFRESH)?;
    let RefreshBody { refresh_token } = request.json_max(STRANGER_BYTES_MAX).await?;
    let session = client.users.refresh(&refresh_token, client.options().access_token_lifetime_ms).await?;
    let mut answer = json!({ "access_token": session.access_token });
    show_refreshed(&mut answer, &session);
    Ok(Response::json(&answer))
}

fn show_refreshed(answer: &mut Value, session: &Session) {
    if let Some(Refreshed { refresh_token, expires_in_ms }) = &session.refreshed {
        answer["refresh_token"] = refresh_token.as_str().into();
        answer["expires_in_ms"] = (*expires_in_ms).into();
    }
}

/// The answer of login and registration about a new session.
pub fn answer(client: &Client, session: &Session) -> Value {
    let mut answer = json!({
        "user_id": session.user_id,
        "access_token": session.access_token,
        "device_id": session.device_id,
        "home_server": client.users.server(),
    });
    show_refreshed(&mut answer, session);
    if let Some(url) = &client.options().public_url {
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
    let requester = auth::even_locked(&client, &request).await?;
    client.users.logout(&requester).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/logout/all
pub async fn logout_all(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::even_locked(&client, &request).await?;
    client.users.logout_all(&requester.user_id, None).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/account/whoami
pub async fn whoami(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::even_reporter(&client, &request, None).await?;
    let mut answer = json!({ "user_id": requester.user_id, "is_guest": requester.is_guest });
    if !requester.device_id.is_empty() {
        answer["device_id"] = requester.device_id.into();
    }
    Ok(Response::json(&answer))
}
