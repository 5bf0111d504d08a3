//! Authentication of requests: access tokens and user-interactive authentication.

use std::sync::Arc;

use ruma::{EventId, OwnedUserId, RoomId};
use serde_json::Value;

use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::{self, Progress, Stage, UiaRequest};

pub use crate::user::Requester;

use super::{Client, Error, guests, rates, terms};
use crate::user::Service;

/// The user and device of the access token. 401 `M_MISSING_TOKEN` without a token, `M_UNKNOWN_TOKEN` for one that is
/// not valid, `M_USER_LOCKED` for one of a locked account.
///
/// 403 `M_GUEST_ACCESS_FORBIDDEN` for what guests may not do.
pub async fn requester(client: &Client, request: &Request) -> Result<Requester, ErrorResponse> {
    let requester = even_locked(client, request).await?;
    match requester.is_locked {
        true => Err(locked()),
        false => Ok(requester),
    }
}

/// As [`requester`], and whose report is being passed on, for who has the token that went with it: to ask who that is, or for
/// the event that it is about.
pub async fn even_reporter(
    client: &Client,
    request: &Request,
    event: Option<(&RoomId, &EventId)>,
) -> Result<Requester, ErrorResponse> {
    if let Some(token) = request.access_token()
        && let Some(reporter) = client.users.reporter(&token, event).await.map_err(Error::from)?
    {
        return Ok(reporter);
    }
    requester(client, request).await
}

/// As [`requester`], of a locked account too: it may log out.
pub async fn even_locked(client: &Client, request: &Request) -> Result<Requester, ErrorResponse> {
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

/// The user and device of the access token, whether a guest's or not, and whether the account is locked or not.
async fn anybody(client: &Client, request: &Request) -> Result<Requester, ErrorResponse> {
    let Some(token) = request.access_token() else {
        return Err(ErrorResponse::unauthorized("M_MISSING_TOKEN", "The request needs an access token"));
    };
    if let Some(service) = client.users.services().by_token(&token) {
        return asserted(client, request, &service).await;
    }
    let requester = client.users.requester(&token, request.peer().ip).await.map_err(Error::from)?;
    request.note_guest(requester.user_id.as_str());
    lift_limits_of(&requester, request);
    Ok(requester)
}

/// The user whom an application service says to be ("Identity assertion"), and the device.
async fn asserted(client: &Client, request: &Request, service: &Service) -> Result<Requester, ErrorResponse> {
    let user_id = request.query_as::<OwnedUserId>("user_id")?;
    let device_id = request.query("device_id").or_else(|| request.query("org.matrix.msc3202.device_id"));
    let requester = client.users.masquerade(service, user_id, device_id, request.peer().ip).await;
    let requester = requester.map_err(Error::from)?;
    request.note_guest(service.sender.as_str());
    if !service.rate_limited || requester.user_id == service.sender {
        request.lift_limits();
    }
    lift_limits_of(&requester, request);
    Ok(requester)
}

/// No rate holds for an account to whom the operator said so.
fn lift_limits_of(requester: &Requester, request: &Request) {
    if requester.pace.is_some_and(|pace| pace.per_second == 0) {
        request.lift_limits();
    }
}

/// The application service whose token the request has: 401 `M_MISSING_TOKEN` or `M_UNKNOWN_TOKEN` for any other.
pub fn service(client: &Client, request: &Request) -> Result<Arc<Service>, ErrorResponse> {
    let Some(token) = request.access_token() else {
        return Err(ErrorResponse::unauthorized(
            "M_MISSING_TOKEN",
            "The request needs the token of an application service",
        ));
    };
    let service = client.users.services().by_token(&token).ok_or_else(|| unknown_token(false))?;
    if !service.rate_limited {
        request.lift_limits();
    }
    Ok(service)
}

/// The time that an application service wants an event to say it was sent at, in the query; 400 `M_INVALID_PARAM` when it is
/// no time. Ignored of everybody else.
pub fn massaged_time(requester: &Requester, request: &Request) -> Result<Option<u64>, ErrorResponse> {
    /// Integers in canonical JSON end there.
    const MOST: u64 = (1 << 53) - 1;
    if requester.service.is_none() {
        return Ok(None);
    }
    match request.query_as::<u64>("ts")? {
        Some(ts) if ts > MOST => Err(ErrorResponse::invalid_param("ts is no time in milliseconds")),
        ts => Ok(ts),
    }
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
    // Its registration is proof enough (MSC4190), but for what a person alone may do.
    const PERSONAL: [&str; 2] = ["password", "get_token"];
    if requester.is_some_and(|requester| requester.service.is_some()) {
        return match PERSONAL.contains(&demand.operation) {
            true => Err(ErrorResponse::forbidden("An application service cannot do this").into()),
            false => Ok(None),
        };
    }
    let is_password = auth.is_some_and(|auth| auth.get("password").is_some());
    let counted = match requester.filter(|_| is_password) {
        // Counted per session: wrong passwords at the login must not keep a user from ending a stolen session.
        Some(requester) => {
            Some(request.attempt_in_session(&rates::PASSWORDS, requester.user_id.as_str(), &requester.device_id)?)
        }
        None => None,
    };
    let asks_terms = demand.stages.contains(&Stage::Terms);
    let progress = client.users.authenticate(demand, request.peer().ip, auth).await;
    if let Some(counted) = counted
        && !matches!(progress, Ok(Progress::Wrong(_)))
    {
        counted.forgive();
    }
    match progress? {
        Progress::Done => Ok(None),
        Progress::Ask(mut what) | Progress::Wrong(mut what) => {
            if asks_terms {
                what["params"]["m.login.terms"] = client.options().terms.params(&terms::base(client, request));
            }
            Ok(Some(Response::json_with(StatusCode::UNAUTHORIZED, &what)))
        }
    }
}

/// The requester when the request has an access token, `None` when it has none.
pub async fn maybe(client: &Client, request: &Request) -> Result<Option<Requester>, ErrorResponse> {
    match request.access_token() {
        Some(_) => match anybody(client, request).await? {
            locked if locked.is_locked => Err(self::locked()),
            requester => Ok(Some(requester)),
        },
        None => Ok(None),
    }
}

/// The requester of what others see: 403 `M_USER_SUSPENDED` for a suspended account ("Account suspension"), 403
/// `M_CONSENT_NOT_GIVEN` for who has not agreed to this server's terms and must.
pub async fn speaker(client: &Client, request: &Request) -> Result<Requester, Error> {
    let requester = requester(client, request).await?;
    check_may_speak(client, request, &requester).await?;
    Ok(requester)
}

/// The errors of [`speaker`].
pub async fn check_may_speak(client: &Client, request: &Request, requester: &Requester) -> Result<(), Error> {
    check_not_suspended(requester)?;
    terms::check_agreed(client, request, requester).await
}

/// 403 `M_USER_SUSPENDED` for a suspended account.
pub fn check_not_suspended(requester: &Requester) -> Result<(), ErrorResponse> {
    match requester.is_suspended {
        false => Ok(()),
        true => Err(ErrorResponse::new(
            StatusCode::FORBIDDEN,
            "M_USER_SUSPENDED",
            "This account is suspended: it may read, and not send, invite, join or change its profile",
        )),
    }
}

/// The answer to an access token that is not valid. `soft`: its device is still there and can have another.
pub fn unknown_token(soft: bool) -> ErrorResponse {
    let why = if soft { user::Error::ExpiredToken } else { user::Error::UnknownToken };
    ErrorResponse::unauthorized("M_UNKNOWN_TOKEN", why.to_string()).with("soft_logout", soft)
}

/// The answer to everything that a locked account asks for.
pub fn locked() -> ErrorResponse {
    ErrorResponse::unauthorized("M_USER_LOCKED", user::Error::Locked.to_string()).with("soft_logout", true)
}
