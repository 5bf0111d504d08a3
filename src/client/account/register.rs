//! New accounts: POST register, GET register/available, GET register/m.login.registration_token/validity.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::session;
use crate::base::unbroken;
use crate::client::{Client, Error, Options, Registration, STRANGER_BYTES_MAX, auth, rates};
use crate::flow;
use crate::http::{ErrorResponse, Request, Response};
use crate::user::{self, Login, Made, New, Stage, Target, UiaRequest, check_new_password};

/// Sessions of ours are shorter.
const SESSION_BYTES_MAX: usize = 64;
/// The length of a user name that the server makes up when the request has none.
const MADE_UP_CHARS: usize = 12;

#[derive(Deserialize)]
struct Body {
    /// `m.login.application_service`; nothing else stands here.
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    device_id: Option<String>,
    #[serde(default)]
    initial_device_display_name: Option<String>,
    #[serde(default)]
    inhibit_login: bool,
    /// Whether the app refreshes its access token.
    #[serde(default)]
    refresh_token: bool,
    #[serde(default)]
    auth: Option<Value>,
    /// The token of a guest whose account is to become an ordinary one.
    #[serde(default)]
    guest_access_token: Option<String>,
}

/// POST /_matrix/client/v3/register
///
/// 403 `M_GUEST_ACCESS_FORBIDDEN` for guests when there are none; 403 `M_FORBIDDEN` when registration is off, or for a guest's token that is
/// not of that user name; 401 with the flows of
/// user-interactive authentication until it is complete; 400 `M_INVALID_USERNAME`; 400 `M_USER_IN_USE`; 400
/// `M_MISSING_PARAM` without a password; 400 `M_WEAK_PASSWORD` when it has less than eight characters; 400 `M_INVALID_PARAM` when the password is too long or the device id is not
/// valid; 413 `M_TOO_LARGE` when the device name is too long.
///
/// With the type `m.login.application_service`: 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN` without the token of one, 400
/// `M_EXCLUSIVE` for a name outside its namespace or in another one's.
///
/// Sent again with the session that made the account, its name and its password, it answers with the same account and
/// device, and a new token: the first answer may have been lost.
pub async fn register(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    match request.query("kind").as_deref() {
        None | Some("user") => {}
        Some("guest") => return guest(&client, &mut request).await,
        Some(_) => return Err(ErrorResponse::invalid_param("kind must be \"user\" or \"guest\"").into()),
    }
    let mut body: Body = request.json_or_empty_max(STRANGER_BYTES_MAX).await?;
    if body.kind.as_deref() == Some(session::SERVICE_LOGIN) {
        return by_service(&client, &request, body).await;
    }
    let options = client.options();
    let (stages, tokens) = stages(&options)?;
    // A user name with capital letters is made lower case, not refused.
    body.username = body.username.map(|username| username.to_lowercase());
    request.limit(if body.auth.is_some() { &rates::REGISTER } else { &rates::REQUIREMENTS })?;
    let session = body.auth.as_ref().and_then(|auth| auth.get("session")?.as_str());
    let session = session.filter(|session| session.len() <= SESSION_BYTES_MAX).map(ToOwned::to_owned);
    let turn = match &session {
        Some(session) => Some(client.users.registering(session).await),
        None => None,
    };
    if let Some(made) = session.as_deref().and_then(|session| client.users.made_with(session))
        && body.username.as_deref().is_none_or(|username| username == made.user_id.localpart())
    {
        return again(&client, &request, made, body).await;
    }
    let upgraded = match &body.guest_access_token {
        Some(token) => Some(guest_of(&client, &request, token, body.username.as_deref()).await?),
        None => None,
    };
    if let Some(username) = body.username.as_ref().filter(|_| upgraded.is_none()) {
        check_free(&client, username).await?;
    }
    if let Some(password) = &body.password {
        check_new_password(password)?;
    }
    let login = (!body.inhibit_login).then_some(Login {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        ip: Some(request.peer().ip),
        lifetime_ms: client.options().lifetime_ms(body.refresh_token),
    });
    login.as_ref().map_or(Ok(()), Login::check)?;
    // Apps ask for the flows before there is a name, so a session is for no name in particular; it makes one account.
    let made = made_token(&client, stages, body.auth.as_ref()).await?;
    let tokens: Vec<String> = tokens.iter().chain(&made).cloned().collect();
    let demand = UiaRequest { operation: "register", target: Target::default(), user: None, stages, tokens: &tokens };
    if let Some(asked) = auth::authenticate(&client, &request, None, demand, body.auth.as_ref()).await? {
        return Ok(asked);
    }
    if let (Some(session), Some(made)) = (&session, &made) {
        client.users.note_token(session, made);
    }
    let token = session.as_deref().and_then(|session| client.users.token_of(session)).or(made);
    let password = body.password.ok_or_else(|| ErrorResponse::missing_param("password"))?;
    let localpart = body.username.unwrap_or_else(|| client.random.token(MADE_UP_CHARS).to_lowercase());
    let new = New {
        localpart,
        password: Some(password),
        admin: false,
        agreed: client.options().terms.digest(),
        bot: false,
        token,
    };
    let users = client.users.clone();
    // Not cancelled when the client disconnects: it would not learn what became of its account.
    let registered = unbroken(async move {
        let _turn = turn;
        let registered = match upgraded {
            Some(guest) => flow::upgrade_guest(&users, guest, new, login).await?,
            None => flow::register(&users, new, login).await?,
        };
        if let Some(session) = session {
            let device_id = registered.session.as_ref().map(|session| session.device_id.clone());
            users.note_made(&session, Made { user_id: registered.user_id.clone(), device_id });
        }
        Ok::<_, Error>(registered)
    });
    let registered = registered.await?;
    Ok(Response::json(&match registered.session {
        Some(session) => session::answer(&client, &session),
        None => json!({ "user_id": registered.user_id, "home_server": client.users.server() }),
    }))
}

/// A new user of an application service, which is trusted with its namespace: no proof is asked for, and there is no password.
async fn by_service(client: &Client, request: &Request, body: Body) -> Result<Response, Error> {
    let service = auth::service(client, request)?;
    let username = body.username.ok_or_else(|| ErrorResponse::missing_param("username"))?;
    let user_id = client.users.service_user_id(&username)?;
    if !service.may_be(&user_id) {
        return Err(user::exclusive("This user ID is not in the application service's namespace").into());
    }
    client.users.check_not_exclusive(&user_id, Some(&service.id))?;
    let login = (!body.inhibit_login).then_some(Login {
        device_id: body.device_id,
        display_name: body.initial_device_display_name,
        ip: Some(request.peer().ip),
        lifetime_ms: client.options().lifetime_ms(body.refresh_token),
    });
    login.as_ref().map_or(Ok(()), Login::check)?;
    let (users, new) = (client.users.clone(), user_id.clone());
    let session = unbroken(async move {
        users.create_service_user(&new).await?;
        match login {
            Some(login) => users.login(&new, login).await.map(Some),
            None => Ok(None),
        }
    });
    Ok(Response::json(&match session.await? {
        Some(session) => session::answer(client, &session),
        None => json!({ "user_id": user_id, "home_server": client.users.server() }),
    }))
}

/// A new guest, who is never asked to prove anything and has no password.
async fn guest(client: &Client, request: &mut Request) -> Result<Response, Error> {
    if !client.options().guests {
        return Err(auth::guests_forbidden("This server has no guest accounts").into());
    }
    let body: Body = request.json_or_empty_max(STRANGER_BYTES_MAX).await?;
    request.limit(&rates::REGISTER)?;
    // A guest chooses no device: there is nothing to come back to.
    let (display_name, ip) = (body.initial_device_display_name, Some(request.peer().ip));
    let login = Login { display_name, ip, ..Login::default() };
    login.check()?;
    let (users, localpart) = (client.users.clone(), client.random.token(MADE_UP_CHARS).to_lowercase());
    let session = unbroken(async move { flow::register_guest(&users, &localpart, login).await }).await?;
    Ok(Response::json(&session::answer(client, &session)))
}

/// The guest whose account is to become an ordinary one under the same name.
async fn guest_of(
    client: &Client,
    request: &Request,
    token: &str,
    username: Option<&str>,
) -> Result<OwnedUserId, Error> {
    let wrong = || ErrorResponse::forbidden("The guest_access_token is not of a guest with that username");
    let guest = client.users.requester(token, request.peer().ip).await.map_err(|failed| match failed {
        user::Error::UnknownToken => Error::from(wrong()),
        failed => failed.into(),
    })?;
    match guest.is_guest && username == Some(guest.user_id.localpart()) {
        true => Ok(guest.user_id),
        false => Err(wrong().into()),
    }
}

/// The answer to a registration that was sent again: the same account and the same device, with a new token.
async fn again(client: &Client, request: &Request, made: Made, body: Body) -> Result<Response, Error> {
    let password = body.password.ok_or_else(|| ErrorResponse::missing_param("password"))?;
    client.users.check_password(&made.user_id, &password).await?;
    if body.inhibit_login {
        return Ok(Response::json(&json!({ "user_id": made.user_id, "home_server": client.users.server() })));
    }
    let login = Login {
        device_id: made.device_id.or(body.device_id),
        display_name: body.initial_device_display_name,
        ip: Some(request.peer().ip),
        lifetime_ms: client.options().lifetime_ms(body.refresh_token),
    };
    let session = client.users.login(&made.user_id, login).await?;
    Ok(Response::json(&session::answer(client, &session)))
}

/// The registration token that a request proves, when an administrator made it and it is valid. Such a token is counted when the
/// account is made.
async fn made_token(client: &Client, stages: &[Stage], auth: Option<&Value>) -> Result<Option<String>, Error> {
    let text = |name| auth.and_then(|auth| auth.get(name)?.as_str());
    let token = text("token").filter(|_| stages.contains(&Stage::RegistrationToken));
    let Some(token) = token.filter(|_| text("type") == Some(Stage::RegistrationToken.name())) else { return Ok(None) };
    if client.options().registration_tokens.iter().any(|known| known == token) {
        return Ok(None);
    }
    Ok(client.users.is_registration_token(token).await?.then(|| token.to_owned()))
}

/// The stages of user-interactive authentication for a new account, and the registration tokens. 403 when registration
/// is off.
fn stages(options: &Options) -> Result<(&'static [Stage], &[String]), ErrorResponse> {
    let has_terms = !options.terms.is_empty();
    match options.registration {
        Registration::Open if has_terms => Ok((&[Stage::Terms, Stage::Dummy], &[])),
        Registration::Open => Ok((&[Stage::Dummy], &[])),
        Registration::Token if has_terms => {
            Ok((&[Stage::RegistrationToken, Stage::Terms], &options.registration_tokens))
        }
        Registration::Token => Ok((&[Stage::RegistrationToken], &options.registration_tokens)),
        Registration::Closed => Err(ErrorResponse::forbidden(
            "Registration is closed: the administrators of this server create the accounts",
        )),
    }
}

/// An error unless a new account may have this name.
async fn check_free(client: &Client, username: &str) -> Result<(), Error> {
    if client.notices.is_reserved(username) {
        return Err(user::Error::Taken.into());
    }
    Ok(client.users.is_free(username).await?)
}

/// GET /_matrix/client/v3/register/available
///
/// 400 `M_MISSING_PARAM` without `username`; 400 `M_INVALID_USERNAME`; 400 `M_USER_IN_USE`; 400 `M_EXCLUSIVE`; 403 `M_FORBIDDEN` when
/// registration is off.
pub async fn available(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    request.limit(&rates::NAME)?;
    stages(&client.options())?;
    let username = request.query("username").ok_or_else(|| ErrorResponse::missing_param("username"))?;
    check_free(&client, &username.to_lowercase()).await?;
    Ok(Response::json(&json!({ "available": true })))
}

/// GET /_matrix/client/v1/register/m.login.registration_token/validity
///
/// 400 `M_MISSING_PARAM` without `token`.
pub async fn token_validity(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    request.limit(&rates::TOKEN)?;
    let token = request.query("token").ok_or_else(|| ErrorResponse::missing_param("token"))?;
    let Options { registration, registration_tokens, .. } = &*client.options();
    let valid = *registration == Registration::Token
        && (registration_tokens.contains(&token) || client.users.is_registration_token(&token).await?);
    Ok(Response::json(&json!({ "valid": valid })))
}
