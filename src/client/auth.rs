//! Authentication of requests: access tokens and user-interactive authentication.

use serde_json::Value;

use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::{self, Progress, UiaRequest};

pub use crate::user::Requester;

use super::{Client, Error, guests, rates};

/// The user and device of the access token. 401 `M_MISSING_TOKEN` without a token, `M_UNKNOWN_TOKEN` for one that is
/// not valid.
///
/// 403 `M_GUEST_ACCESS_FORBIDDEN` for what guests may not do.
pub async fn requester(client: &Client, request: &Request) -> Result<Requester, ErrorResponse> {
    let requester = anybody(client, request).await?;
    if requester.is_guest && !guests::may_ask(request) {
        return Err(guests_forbidden("Guests may not do this: an account is needed"));
    }
    Ok(requester)
}

/// The answer to a guest who may not.
pub fn guests_forbidden(why: &'static str) -> ErrorResponse {
    ErrorResponse::new(StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN", why)
}

/// The user and device of the access token, whether a guest's or not.
async fn anybody(client: &Client, request: &Request) -> Result<Requester, ErrorResponse> {
    let Some(token) = request.access_token() else {
        return Err(ErrorResponse::unauthorized("M_MISSING_TOKEN", "The request needs an access token"));
    };
    let requester = client.users.requester(&token, request.peer().ip).await.map_err(Error::from)?;
    request.note_guest(requester.user_id.as_str());
    Ok(requester)
}

/// The requester of an endpoint that has the user in its path. 403 `M_FORBIDDEN` when the path names another user.
pub async fn own(client: &Client, request: &Request) -> Result<Requester, ErrorResponse> {
    let requester = requester(client, request).await?;
    if request.param("user_id") != requester.user_id.as_str() {
        return Err(ErrorResponse::forbidden("The user ID in the path is not that of the access token"));
    }
    Ok(requester)
}

/// User-interactive authentication: nothing when it is complete, else the response to send. `requester` is the session
/// that makes the request; there is none at registration.
///
/// 403 `M_FORBIDDEN` when `auth` names another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords.
pub async fn authenticate(
    client: &Client,
    request: &Request,
    requester: Option<&Requester>,
    demand: UiaRequest<'_>,
    auth: Option<&Value>,
) -> Result<Option<Response>, Error> {
    let is_password = auth.is_some_and(|auth| auth.get("password").is_some());
    let counted = match requester.filter(|_| is_password) {
        // Counted per session: wrong passwords at the login must not keep a user from ending a stolen session.
        Some(requester) => {
            Some(request.attempt_in_session(&rates::PASSWORDS, requester.user_id.as_str(), &requester.device_id)?)
        }
        None => None,
    };
    let progress = client.users.authenticate(demand, request.peer().ip, auth).await;
    if let Some(counted) = counted
        && !matches!(progress, Ok(Progress::Wrong(_)))
    {
        counted.forgive();
    }
    match progress? {
        Progress::Done => Ok(None),
        Progress::Ask(what) | Progress::Wrong(what) => Ok(Some(Response::json_with(StatusCode::UNAUTHORIZED, &what))),
    }
}

/// The requester when the request has an access token, `None` when it has none.
pub async fn maybe(client: &Client, request: &Request) -> Result<Option<Requester>, ErrorResponse> {
    match request.access_token() {
        Some(_) => anybody(client, request).await.map(Some),
        None => Ok(None),
    }
}

/// The answer to an access token that is not valid.
pub fn unknown_token() -> ErrorResponse {
    ErrorResponse::unauthorized("M_UNKNOWN_TOKEN", user::Error::UnknownToken.to_string()).with("soft_logout", false)
}
